"""What fewer leads save: arithmetic and activations, counted; time and memory, measured.

Counted numbers are the same on every machine and stand in tables. Time and memory are measured after the Self-DANA
paper (Monachino et al. 2025), whose tools are not known: training epochs after warming up, each configuration in
processes of its own, relative to twelve zero-filled leads on the same encoder. They differ from run to run, so nothing
that is hashed holds them.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.flop_counter import FlopCounterMode

from cure import lead_study, lead_training, models, paths, resources
from cure.adapt import Classifier
from cure.cohorts.base import Cohort
from cure.errors import CureError
from cure.lead_training import WINDOW_S
from cure.leads import configuration
from cure.models import leadgrid
from cure.models.base import one_thread, seeded
from cure.models.leadgrid import Pooling
from cure.paths import atomic
from cure.settings.leads import LeadsConfig
from cure.splits import Split
from cure.tasks import Labels

#: What the paper reports for fewer leads, per cent: maxima of memory, averages of time; lead sets were not published.
PAPER = {"peak_mb": -69.3, "gpu_peak_mb": -34.4, "cpu_s": -17.0, "gpu_s": -24.0}
#: Encoders that mix twelve leads in their first layer, for comparison.
MIXING = ("resnet1d_wang", "resnet1d")
#: The one whose scores are compared, pre-trained as the other was.
TWIN = lead_training.MIXING
SELECTED, ZEROS, MIXED = "selected", "zero-filled", "mixes leads"
_POOLING: dict[str, Pooling] = {SELECTED: "adaptive", ZEROS: "fixed"}
#: Records of a training step whose cost is counted.
_BATCH = 16
#: `M_MMAP_THRESHOLD` of glibc's malloc.h. Once it is set it no longer grows by itself.
_MMAP_THRESHOLD = -3


def activation_bytes(work: nn.Module, *inputs: object) -> int:
    """Bytes that one forward pass keeps for the backward pass; parameters and buffers do not count.

    Each storage counts once, however many operations keep it.
    """
    own = {one.untyped_storage().data_ptr() for one in [*work.parameters(), *work.buffers()]}
    kept: dict[int, int] = {}

    def keep(one: Tensor) -> Tensor:
        storage = one.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        result = work(*inputs)
    del result
    return sum(kept.values())


def counted(config: LeadsConfig, n_tasks: int = 10) -> pd.DataFrame:
    """Arithmetic and activations of one 5 s window in a training step, by configuration, and of lead-mixing encoders.

    Returns
    -------
    DataFrame
        `encoder, way, leads, n_leads, metric, value`: `parameters`, `mflop` (forward pass; a multiplication with its
        addition counts as two) and `activation_kb` (kept for the backward pass, by record of a batch of 16).
    """
    table = []
    for name in config.configurations:
        for way, pooling in _POOLING.items():
            about = {"encoder": lead_study.ENCODER, "way": way, "leads": name, "n_leads": len(configuration(name))}
            found = count(pooling, configuration(name), n_tasks)
            table += [{**about, "metric": metric, "value": value} for metric, value in found.items()]
    for encoder in MIXING:
        about = {"encoder": encoder, "way": MIXED, "leads": "12", "n_leads": 12}
        found = _counted(Classifier(models.load(encoder), "mean", n_tasks, WINDOW_S), 12)
        table += [{**about, "metric": metric, "value": value} for metric, value in found.items()]
    return pd.DataFrame(table)


def count(pooling: Pooling, leads: list[int], n_tasks: int = 10) -> dict[str, float]:
    """The same for one configuration: value by metric."""
    network = lead_study.classifier(leadgrid.load(pooling=pooling), leads, n_tasks)
    return _counted(network, 12 if pooling == "fixed" else len(leads))


def _counted(network: Classifier, n_rows: int) -> dict[str, float]:
    assert network.window is not None
    with seeded(0):
        x = torch.randn(_BATCH, n_rows, network.window)
    network.train()
    kept = activation_bytes(network, x)
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    parameters = sum(p.numel() for p in network.parameters())
    mflop = counter.get_total_flops() / _BATCH / 1e6
    return {"parameters": parameters, "mflop": mflop, "activation_kb": kept / _BATCH / 1e3}


def counted_view(table: pd.DataFrame) -> pd.DataFrame:
    """The counted costs as a paper prints them, with the change against twelve zero-filled leads."""
    wide = table.pivot_table(index=["encoder", "way", "leads"], columns="metric", values="value", sort=False)
    base = wide.loc[(lead_study.ENCODER, ZEROS, "12")]
    view = pd.DataFrame(index=wide.index.map(", ".join))
    view["parameters"] = [f"{value:,.0f}" for value in wide["parameters"]]
    for name, title in (("mflop", "MFLOP per window"), ("activation_kb", "activations, kB per window")):
        change = 100 * (wide[name] / base[name] - 1)
        view[title] = [f"{a:,.1f} ({b:+.0f} %)" for a, b in zip(wide[name], change, strict=True)]
    return view.rename_axis(None)


def savings(table: pd.DataFrame) -> str:
    """What the fewest leads save against twelve zero-filled, on the same encoder, in words; counted, not measured."""
    own = table[table["encoder"] == lead_study.ENCODER]
    base = own[(own["way"] == ZEROS) & (own["leads"].astype(str) == "12")].set_index("metric")["value"]
    least = own[(own["way"] == SELECTED) & (own["n_leads"] == own["n_leads"].min())].set_index("metric")["value"]
    change = 100 * (least / base - 1)
    few = own["n_leads"].min()
    return (
        f"Counted for one training step with {few} lead{'s' if few > 1 else ''} instead of twelve zero-filled ones, "
        f"same encoder: activations {change['activation_kb']:+.0f} %, arithmetic {change['mflop']:+.0f} %."
    )


def measure(config: LeadsConfig, cohort: Cohort, split: Split, tasks: Labels) -> None:
    """Write `leads_cost.csv`: seconds of an epoch and peak memory by configuration. Nothing of it is ever hashed.

    Supervised training on 5 s crops of the first training records, one thread, each configuration in fresh processes:
    mean processor and wall seconds of the measured epochs after one to warm up, and in another the resident memory,
    sampled every 2 ms, that an epoch needs above libraries, data and weights: activations, gradients, the optimiser's
    averages, scratch. Where there is a GPU, seconds there, and the most that torch allocated, weights included.
    """
    rows = split.train[: config.cost_records]
    length = round(WINDOW_S * leadgrid.LeadGrid.input_spec.fs)
    x, y = leadgrid.LeadGrid.input_spec.read(cohort, rows)[..., :length], tasks.y[rows].astype(np.float32)
    runs = [("12", ZEROS), *((name, SELECTED) for name in config.configurations), ("12", MIXED)]
    table = []
    for name, way in runs:
        leads = configuration(name)
        encoder = TWIN if way == MIXED else lead_study.ENCODER
        row = {"encoder": encoder, "way": way, "leads": name, "n_leads": len(leads), "n": len(rows)}
        row |= in_fresh_process(partial(_seconds, way, leads, x, y, config.cost_epochs, config.batch_size))
        row |= in_fresh_process(partial(_memory, way, leads, x, y, config.batch_size))
        if torch.cuda.is_available():
            row |= in_fresh_process(partial(_on_gpu, way, leads, x, y, config.cost_epochs, config.batch_size))
        table.append(row)
    machine = resources.machine()
    wide = pd.DataFrame(table)
    if "gpu_s" not in wide:
        wide = wide.assign(gpu_s=np.nan, gpu_peak_mb=np.nan)
    with atomic(config.measured("leads_cost")) as part:
        wide.round(3).assign(cpu=machine["cpu"], cores=machine["cores"]).to_csv(part, index=False, lineterminator="\n")


def in_fresh_process(work: partial) -> dict[str, float]:
    """Run in a process that has imported this module and done nothing else: one that worked before keeps memory."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work).result()


def _trainer(way: str, leads: list[int], x: np.ndarray, y: np.ndarray, device: str) -> Callable[[int, int], None]:
    """Trains for an epoch, given how many of the records, and how many of them a step."""
    model = models.load(TWIN) if way == MIXED else leadgrid.load(pooling=_POOLING[way])
    given, wanted = torch.from_numpy(lead_study.given(model, x, leads)), torch.from_numpy(y)
    network = lead_study.classifier(model, leads, y.shape[1]).train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def epoch(n: int, batch_size: int) -> None:
        for i in range(0, n - batch_size + 1, batch_size):
            optimizer.zero_grad(set_to_none=True)
            some, target = given[i : i + batch_size].to(device), wanted[i : i + batch_size].to(device)
            bce(network(some), target).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch


def _seconds(
    way: str, leads: list[int], x: np.ndarray, y: np.ndarray, n_epochs: int, batch_size: int, device: str = "cpu"
) -> dict[str, float]:
    """Mean of an epoch, after one to warm up."""
    epoch = _trainer(way, leads, x, y, device)
    with one_thread():
        epoch(len(x), batch_size)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(n_epochs):
            epoch(len(x), batch_size)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"cpu_s": cpu / n_epochs, "wall_s": wall / n_epochs}


def _memory(way: str, leads: list[int], x: np.ndarray, y: np.ndarray, batch_size: int) -> dict[str, float]:
    """Peak of a first epoch; a step of another network, on two records, has made the libraries ready before."""
    _large_arrays_apart()
    with one_thread():
        _trainer(way, leads, x, y, "cpu")(2, 2)
        epoch = _trainer(way, leads, x, y, "cpu")
        with _Peak() as peak:
            epoch(len(x), batch_size)
    return {"peak_mb": peak.above_mb}


def _large_arrays_apart() -> None:
    """Give each large array pages of its own and return them with it, where the C library can (glibc).

    A heap keeps holes where arrays were, more from step to step: what it holds says little about what is needed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**17)


def _on_gpu(way: str, leads: list[int], x: np.ndarray, y: np.ndarray, n_epochs: int, batch_size: int) -> dict:
    """Wall seconds of an epoch, and the peak of what torch allocated."""
    seconds = _seconds(way, leads, x, y, n_epochs, batch_size, "cuda")["wall_s"]
    return {"gpu_s": seconds, "gpu_peak_mb": torch.cuda.max_memory_allocated() / 1e6}


class _Peak:
    """Resident memory above that at the start, sampled in a thread."""

    def __enter__(self) -> "_Peak":
        self._process, self._done = psutil.Process(os.getpid()), threading.Event()
        self._start = self._highest = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, self._process.memory_info().rss)

    @property
    def above_mb(self) -> float:
        """Megabytes."""
        return (self._highest - self._start) / 1e6


def cost_table(profile: str) -> pd.DataFrame:
    """What `measure` of the profile's pipeline run wrote, beside the paper: change against twelve zero-filled leads.

    Returns
    -------
    DataFrame
        The measured columns, and for each of `PAPER` one named `<column>_change`, per cent; the last row holds the
        paper's. NaN where there was no GPU.

    Raises
    ------
    CureError
        If stage `leads` of the profile has not run.
    """
    file = paths.resources(profile) / "leads_cost.csv"
    if not file.is_file():
        raise CureError(f"no measured costs of profile {profile}: `make repro PROFILE={profile}` measures them")
    return with_changes(pd.read_csv(file, dtype={"leads": str}))


def with_changes(table: pd.DataFrame) -> pd.DataFrame:
    """Add the changes against twelve zero-filled leads, and the paper's row."""
    base = table[(table["leads"] == "12") & (table["way"] == ZEROS)].iloc[0]
    for name in PAPER:
        table[f"{name}_change"] = 100 * (table[name] / base[name] - 1)
    paper = {f"{name}_change": value for name, value in PAPER.items()}
    row = pd.DataFrame([{"encoder": "Self-DANA (paper)", "way": "fewer leads", "leads": "not given", **paper}])
    return pd.concat([table, row], ignore_index=True)
