"""How an encoder is adapted to tasks: a linear head on it, or attention over its frozen tokens, trained on a split."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from cure.cohorts.base import Cohort
from cure.devices import device_of, share
from cure.embed import pool
from cure.errors import CureError
from cure.heads import best_threshold
from cure.lengths import require_whole
from cure.models import Encoder, InputSpec
from cure.paths import atomic
from cure.shards import Arrays, fingerprint
from cure.splits import Split
from cure.training import Recipe, Run, train

#: Length of a training crop and of a scored window where nothing else is said, seconds: half a record.
WINDOW_S = 5.0


def depths(encoder: Encoder) -> dict[str, int]:
    """Which of the encoder's stages each parameter belongs to, by name, counted from the input."""
    owner = {id(p): i for i, stage in enumerate(encoder.stages()) for p in stage.parameters()}
    found, current = {}, 0
    for name, parameter in encoder.named_parameters():
        current = owner.get(id(parameter), current)
        found[name] = current
    return found


class Classifier(nn.Module):
    """An encoder and a linear head with one logit per task. The head starts at zero: every probability at a half.

    Attributes
    ----------
    window : int
        Samples of a training crop and of a scored window.
    scales : dict of str to float
        Share of the learning rate by parameter, see `cure.training.train`.
    """

    def __init__(self, encoder: Encoder, pooling: str, n_tasks: int, window_s: float = WINDOW_S):
        super().__init__()
        self.title = type(encoder).__name__
        self.encoder = encoder
        self.window = round(window_s * encoder.input_spec.fs)
        self.scales: dict[str, float] = {}
        self._still: list[nn.Module] = []
        self.poolings = pooling.split("+")
        self.head = nn.Linear(encoder.dim * len(self.poolings), n_tasks)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_leads, n_samples) model-ready input to (n, n_tasks) float32 logits."""
        tokens = self.encoder(x)
        read_out = torch.cat([pool(tokens, name) for name in self.poolings], dim=1)
        # Eight bits of mantissa would make ties of scores that differ.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(read_out.float())

    def train_last(self, k: int) -> None:
        """Freeze all but the last k stages and the head, the statistics of frozen batch normalisations included.

        Raises
        ------
        CureError
            If the encoder has fewer stages, or does not name them.
        """
        stages = self.encoder.stages()
        if not 1 <= k <= len(stages):
            raise CureError(
                f"strategy 'last-{k}': {self.title} has {len(stages)} stages; choose last-1 to last-{len(stages)}"
            )
        first = len(stages) - k
        for name, depth in depths(self.encoder).items():
            self.encoder.get_parameter(name).requires_grad_(depth >= first)
        norms = [m for m in self.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._still = stages[:first] + [m for m in norms if m.weight is not None and not m.weight.requires_grad]

    def slow_down(self, factor: float) -> None:
        """Let each stage learn with `factor` times the rate of the one after it, the head with the whole.

        Layer-wise decay as in Clark et al. 2020 (ELECTRA, ICLR) and Bao et al. 2022 (BEiT, ICLR).
        """
        n = len(self.encoder.stages())
        self.scales = {f"encoder.{name}": factor ** (n - depth) for name, depth in depths(self.encoder).items()}

    def train(self, mode: bool = True) -> "Classifier":
        """As for any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self


class AttentiveProbe(nn.Module):
    """One learnt query per task attends to the tokens of a frozen encoder; a linear map reads what it finds.

    Tokens are standardised by batch statistics. Queries start at zero, so that attention starts as the mean over time,
    and so does the linear map: every probability at a half. Attentive probes as in Bardes et al. 2024 (V-JEPA), with a
    query for each task and neither values' projection nor MLP.
    """

    window = None
    title = "attentive probe"

    def __init__(self, dim: int, n_tasks: int):
        super().__init__()
        self.scales: dict[str, float] = {}
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.query = nn.Parameter(torch.zeros(n_tasks, dim))
        self.weight = nn.Parameter(torch.zeros(n_tasks, dim))
        self.bias = nn.Parameter(torch.zeros(n_tasks))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t, dim) tokens to (n, n_tasks) float32 logits."""
        with torch.autocast(tokens.device.type, enabled=False):
            z = self.norm(tokens.float().mT)
            attention = (self.query @ z * z.shape[1] ** -0.5).softmax(dim=-1)
            return (attention * (self.weight @ z)).sum(dim=-1) + self.bias


@torch.inference_mode()
def frozen_tokens(encoder: Encoder, x: np.ndarray, keep: Callable[[slice, np.ndarray], None]) -> None:
    """Hand the tokens of all records to `keep`, batch by batch, (n, t, dim) float16.

    Half precision has eleven bits of mantissa: three more than the products of a training step.

    Raises
    ------
    CureError
        If a token is not finite or does not fit into half precision.
    """
    for start in range(0, len(x), 64):
        rows = slice(start, min(start + 64, len(x)))
        found = encoder(torch.from_numpy(np.array(x[rows]))).numpy()
        if not np.abs(found).max() < np.finfo(np.float16).max:
            raise CureError(
                f"{type(encoder).__name__}: a token of records {rows.start} to {rows.stop - 1} is not finite"
            )
        keep(rows, found.astype(np.float16))


#: What can be trained on a split.
Network = Classifier | AttentiveProbe


def crops(x: np.ndarray, rows: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random window of each record: (n_records, n_leads, n_samples) and n rows to (n, n_leads, length)."""
    starts = rng.integers(0, x.shape[-1] - length + 1, len(rows))
    return np.lib.stride_tricks.sliding_window_view(x, length, axis=-1)[rows, :, starts]


@torch.inference_mode()
def logits(model: nn.Module, x: np.ndarray, rows: np.ndarray, length: int | None, batch_size: int) -> np.ndarray:
    """Mean of the logits over the fewest windows that cover a record evenly, (len(rows), n_tasks) float32.

    With `length` None the model takes what `x` holds of a record whole.
    """
    n_samples = x.shape[-1] if length is None else x.shape[-1] - length
    starts = [0] if length is None else np.linspace(0, n_samples, -(-x.shape[-1] // length)).round().astype(int)
    parts, device = [], device_of(model)
    for first in range(0, len(rows), batch_size):
        batch = torch.from_numpy(x[rows[first : first + batch_size]]).to(device)
        windows = [batch if length is None else batch[..., start : start + length] for start in starts]
        parts.append(torch.stack([model(window) for window in windows]).mean(dim=0))
    return torch.cat(parts).float().cpu().numpy()


def fit(model: Network, x: np.ndarray, y: np.ndarray, split: Split, recipe: Recipe, checkpoint: Path) -> Arrays:
    """Train on the training records of a split, choose on its validation records, score its test records once.

    Parameters
    ----------
    model : Classifier or AttentiveProbe
        Trained in place.
    x : (n_records, n_leads, n_samples) float32 array
        Model-ready input; may be memory-mapped. For the probe (n_records, t, dim) tokens.
    y : (n_records, n_tasks) bool array
    split : Split
    recipe : Recipe
    checkpoint : Path
        See `cure.training.train`.

    Returns
    -------
    dict of arrays
        `score` (n_test, n_tasks) float32, `threshold` and `setting` (n_tasks,), `epoch`, `loss` and `validation` (one
        per epoch), `rate`, `lowest` (validation loss), `epochs` and `kept` (one per learning rate), `seconds`.
    """
    return _scored(model, x, y, split, recipe, [(recipe.rate, _tuned(model, x, y, split, recipe, checkpoint))], 0)


def choose(
    make: Callable[[], Network],
    rates: Sequence[float],
    x: np.ndarray,
    y: np.ndarray,
    split: Split,
    recipe: Recipe,
    checkpoint: Path,
) -> Arrays:
    """As `fit`, with a new network from `make` for every learning rate; the lowest validation loss decides.

    Checkpoints are named after `checkpoint`, one for each rate.
    """
    runs: list[tuple[float, Run]] = []
    best, at = make(), 0
    for i, rate in enumerate(rates):
        model, file = make(), checkpoint.with_suffix(f".{i}.checkpoint")
        runs.append((rate, _tuned(model, x, y, split, replace(recipe, rate=rate), file)))
        if i == 0 or _lowest(runs[i][1]) < _lowest(runs[at][1]):
            best, at = model, i
    return _scored(best, x, y, split, recipe, runs, at)


def _lowest(run: Run) -> float:
    return float(run.history["validation"].min())


def _tuned(model: Network, x: np.ndarray, y: np.ndarray, split: Split, recipe: Recipe, checkpoint: Path) -> Run:
    target = torch.from_numpy(y.astype(np.float32))

    def step(rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        batch = x[rows] if model.window is None else crops(x, rows, model.window, rng)
        inputs, wanted = share(batch, target[rows])
        return {"loss": bce(model(inputs), wanted)}

    def validate() -> float:
        return float(
            bce(torch.from_numpy(logits(model, x, split.val, model.window, recipe.batch_size)), target[split.val])
        )

    desc = f"{model.title}, {split.name}"
    run = train(model, step, split.train, recipe, checkpoint, validate=validate, scales=model.scales, desc=desc)
    model.eval()
    return run


def _scored(
    model: Network,
    x: np.ndarray,
    y: np.ndarray,
    split: Split,
    recipe: Recipe,
    runs: list[tuple[float, Run]],
    at: int,
) -> Arrays:
    """What is kept of a search over learning rates whose run number `at` left `model`."""
    parts = (logits(model, x, rows, model.window, recipe.batch_size) for rows in (split.val, split.test))
    chosen, score = (1 / (1 + np.exp(-part.astype(np.float64))) for part in parts)
    thresholds = [best_threshold(y[split.val, task], chosen[:, task]) for task in range(y.shape[1])]
    rate, run = runs[at]
    history = {name: run.history[name].to_numpy() for name in ("epoch", "loss", "validation")}
    kept = [1 + int(one.history["validation"].argmin()) for _, one in runs]
    return {
        "score": score.astype(np.float32),
        "threshold": np.array(thresholds, np.float32),
        "setting": np.array([f"rate={rate:g}, epoch={kept[at]}"] * y.shape[1]),
        "seconds": np.float64(sum(one.seconds for _, one in runs)),
        "rate": np.array([one for one, _ in runs]),
        "lowest": np.array([_lowest(one) for _, one in runs]),
        "epochs": np.array([len(one.history) for _, one in runs]),
        "kept": np.array(kept),
        "chosen": np.int64(at),
        **history,
    }


def input_file(spec: InputSpec, cohort: Cohort, scratch: Path) -> Path:
    """Model-ready input of the whole cohort, the first window of each record, in a file that all workers map.

    Raises
    ------
    CureError
        If a record does not fill a window.
    """
    require_whole(spec, cohort, "finetune")
    file = scratch / f"input-{fingerprint(spec.as_dict(), cohort.info, len(cohort))}.npy"
    if not file.exists():
        with atomic(file) as part:
            shape = (len(cohort), len(spec.leads), round(spec.fs * spec.seconds))
            x = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            for rows in np.array_split(np.arange(len(cohort)), -(-len(cohort) // 512)):
                x[rows] = spec.read(cohort, rows)
    return file


def token_file(encoder: Encoder, x: Path) -> Path:
    """Tokens of the whole cohort, computed once for each encoder, in a file that all workers map."""
    file = x.with_name(f"tokens-{encoder.weights_sha256()[:16]}-{x.name}")
    if not file.exists():
        signals = np.load(x, mmap_mode="r")
        with torch.inference_mode():
            shape = encoder(torch.from_numpy(signals[:1].copy())).shape[1:]
        with atomic(file) as part:
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(len(signals), *shape))
            frozen_tokens(encoder, signals, out.__setitem__)
    return file
