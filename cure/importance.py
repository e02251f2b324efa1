"""Which dimensions of an embedding heads use: SHAP over dimensions, and on how few of them the importance rests.

Contributions are in log-odds, the margin of a head before the sigmoid. Everything that is fitted, ranked or averaged
as a background comes from training records; what is explained are test records.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import pandas as pd
import sklearn
import torch
from scipy.special import expit
from sklearn.neural_network import MLPClassifier
from torch import nn

from cure import embed
from cure.cohorts.base import Cohort
from cure.embed import Representation
from cure.errors import CureError
from cure.heads import Fit, fit_head
from cure.progress import progress
from cure.settings.explain import ExplainConfig
from cure.splits import Split

#: Training records that an MLP's contributions are averaged over.
N_BACKGROUND = 100
#: Largest deviation allowed between a margin and the sum of its contributions, in log-odds.
ADDITIVITY = 1e-3
#: Explained records per pass: each stands beside every background record.
_CHUNK = 8


# --- contributions of one head ---------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """Contributions of dimensions to the margins of a head.

    Attributes
    ----------
    values : (n, dim) float64 array
        In log-odds.
    base : float
        Mean margin of the background, in log-odds.
    margin : (n,) float64 array
        What the head says of each record, in log-odds: `base` plus the sum of its values.
    """

    values: np.ndarray
    base: float
    margin: np.ndarray

    @property
    def importance(self) -> np.ndarray:
        """Mean |SHAP| per dimension, (dim,) float64, in log-odds."""
        return np.abs(self.values).mean(axis=0)


def explain_head(name: str, fit: Fit, train: np.ndarray, x: np.ndarray, seed: int = 0) -> Explanation:
    """Explain what a fitted head says by the dimensions of its input (Lundberg and Lee 2017).

    logistic: exact for independent dimensions, coefficient times the deviation from the training mean. xgboost: exact
    path-dependent tree SHAP (Lundberg et al. 2020), its background the training records counted in the trees. mlp:
    DeepLIFT's rescale rule averaged over `N_BACKGROUND` training records, an approximation (captum's `DeepLiftShap`).

    Parameters
    ----------
    name : {"logistic", "mlp", "xgboost"}
        What `fit_head` was asked for.
    fit : Fit
    train : (n_train, dim) float32 array
        Training records, the background.
    x : (n, dim) float32 array
        Records to explain.
    seed : int
        Draws the background of an MLP.

    Raises
    ------
    CureError
        For an unknown head, or when the contributions do not add up to the head's own output: to its log-odds within
        `ADDITIVITY`, or as probabilities within 1e-4.
    """
    if name not in _EXPLAINERS:
        raise CureError(f"no explainer for head {name!r}: choose from {', '.join(_EXPLAINERS)}")
    one = _EXPLAINERS[name](fit.estimator, train, x, np.random.default_rng(seed))
    check_additivity(name, one, fit.score(x))
    return one


def check_additivity(name: str, one: Explanation, probability: np.ndarray) -> None:
    """Raise a CureError unless contributions add up to margins, and margins are those of the head.

    Parameters
    ----------
    name : str
        Of the head.
    one : Explanation
    probability : (n,) array
        The head's own.
    """
    gap = np.abs(one.values.sum(axis=1) + one.base - one.margin).max()
    off = np.abs(expit(one.margin) - probability).max()
    if not (gap <= ADDITIVITY and off <= 1e-4):
        raise CureError(
            f"SHAP of the {name} head: contributions miss its log-odds by {gap:.2g} (allowed {ADDITIVITY:g}), its "
            f"probabilities by {off:.2g} (allowed 0.0001); the explainer does not fit this head, so leave `{name}` "
            "out of `heads` in section explain of the profile"
        )


def _explain_logistic(estimator: Any, train: np.ndarray, x: np.ndarray, _rng: np.random.Generator) -> Explanation:
    scale, model = estimator[:-1], estimator[-1]
    weight = model.coef_[0].astype(float)
    mean = scale.transform(train).mean(axis=0, dtype=float)
    z = scale.transform(x)
    base = float(weight @ mean + model.intercept_[0])
    return Explanation(weight * (z - mean), base, model.decision_function(z).astype(float))


def _explain_xgboost(estimator: Any, _train: np.ndarray, x: np.ndarray, _rng: np.random.Generator) -> Explanation:
    from xgboost import DMatrix

    # Trees after the best iteration exist in the booster, and the head does not use them.
    used = (0, estimator.best_iteration + 1)
    booster, matrix = estimator.get_booster(), DMatrix(x, nthread=1)
    contributions = booster.predict(matrix, pred_contribs=True, iteration_range=used).astype(float)
    margin = booster.predict(matrix, output_margin=True, iteration_range=used).astype(float)
    return Explanation(contributions[:, :-1], float(contributions[0, -1]), margin)


def _explain_mlp(estimator: Any, train: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> Explanation:
    from captum.attr import DeepLiftShap

    scale, network = estimator[:-1], torch_copy(estimator[-1])
    background = rng.choice(train, min(N_BACKGROUND, len(train)), replace=False)
    reference, z = (torch.from_numpy(scale.transform(part).astype(float)) for part in (background, x))
    with warnings.catch_warnings():
        # captum announces that it puts hooks on the activations, which it removes again.
        warnings.filterwarnings("ignore", "Setting forward, backward hooks")
        explainer = DeepLiftShap(network)
        values = [explainer.attribute(chunk, reference, target=0).detach() for chunk in z.split(_CHUNK)]
    with torch.inference_mode():
        base, margin = float(network(reference).mean()), network(z)[:, 0].numpy()
    return Explanation(torch.cat(values).numpy(), base, margin)


_Explainer = Callable[[Any, np.ndarray, np.ndarray, np.random.Generator], Explanation]
_EXPLAINERS: dict[str, _Explainer] = {"logistic": _explain_logistic, "mlp": _explain_mlp, "xgboost": _explain_xgboost}


def torch_copy(model: MLPClassifier) -> nn.Sequential:
    """Rebuild a binary scikit-learn ReLU network as a torch one: (n, dim) float64 to (n, 1) log-odds."""
    layers: list[nn.Module] = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        linear = nn.utils.skip_init(nn.Linear, *weight.shape, dtype=torch.float64)
        linear.load_state_dict({"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


# --- what is studied -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One representation of a cohort on some tasks.

    Attributes
    ----------
    key : dict
        Columns that name it in every table.
    x : list of (n_records, dim) float32 arrays
        One per split: the encoder as it may be used there.
    y : (n_records, n_tasks) bool array
    tasks : list of str
    splits : list of Split
    record_id : (n_records,) array
    patients : Series
        Patient by record_id.
    """

    key: dict
    x: list[np.ndarray]
    y: np.ndarray
    tasks: list[str]
    splits: list[Split]
    record_id: np.ndarray
    patients: pd.Series

    @classmethod
    def of(
        cls, cohort: Cohort, splits: list[Split], one: Representation, x: list[np.ndarray], tasks: list[str]
    ) -> "Subject":
        """Bring mean-pooled embeddings, one array per split, and binary tasks together.

        Raises
        ------
        CureError
            For a task that is not one of the binary ones.
        """
        labels = cohort.binary()
        if unknown := [task for task in tasks if task not in labels.names]:
            raise CureError(f"unknown tasks {unknown}: choose from {', '.join(labels.names)}")
        key = {"cohort": cohort.name, "encoder": one.encoder, "weights": one.weights, "pooling": "mean"}
        y = labels.y[:, [labels.names.index(task) for task in tasks]]
        patients = cohort.records.set_index("record_id")["patient_id"]
        record_id = cohort.records["record_id"].to_numpy()
        return cls({**key, "seed": one.seed}, x, y, tasks, splits, record_id, patients)

    @classmethod
    def read(cls, config: ExplainConfig, cohort: Cohort, splits: list[Split]) -> "Subject":
        """Read what stage `explain` explains: the first seed of its encoder and weights, as used in each split."""
        one = explained(config)
        if one.per_split:
            x = [embed.read_split(config, one, "mean", cohort, split) for split in splits]
        else:
            x = [embed.read_split(config, one, "mean", cohort, None)] * len(splits)
        return cls.of(cohort, splits, one, x, config.tasks)

    @property
    def dim(self) -> int:
        """Width of the representation."""
        return self.x[0].shape[1]


def explained(config: ExplainConfig) -> Representation:
    """The representation that stage `explain` explains.

    Raises
    ------
    CureError
        If the profile does not extract it.
    """
    made = [one for one in embed.representations(config) if one.encoder != embed.FEATURES]
    for one in made:
        if (one.encoder, one.weights) == (config.encoder, config.weights):
            return one
    there = ", ".join(dict.fromkeys(f"{one.encoder} {one.weights}" for one in made))
    raise CureError(
        f"profiles/{config.profile}.yaml, section {config.stage}: there is no {config.encoder} with weights "
        f"{config.weights}; section embed extracts {there}"
    )


# --- importance ------------------------------------------------------------------------------------


def shap_table(subject: Subject, heads: list[str], n_records: int, seed: int = 0) -> pd.DataFrame:
    """Mean |SHAP| of every dimension under every head, task and split.

    Never averaged over splits: where each split has an encoder of its own, dimension 7 of one is not dimension 7 of
    another.

    Parameters
    ----------
    subject : Subject
    heads : list of str
    n_records : int
        Test records explained per split, drawn as they come: not balanced, so that common records count as they do in
        use.
    seed : int
        Of heads, draws and backgrounds.

    Returns
    -------
    DataFrame
        The subject's key, `head, task, split, dimension, metric, value` (log-odds), `n` (explained records).
    """
    units = [(head, t, s) for head in heads for t in range(len(subject.tasks)) for s in range(len(subject.splits))]
    work = [
        joblib.delayed(_importance)(head, subject.x[s], subject.y[:, t], subject.splits[s], n_records, seed)
        for head, t, s in units
    ]
    frames = []
    for (head, t, s), (value, n) in zip(units, parallel(work, "SHAP"), strict=True):
        what = {"head": head, "task": subject.tasks[t], "split": subject.splits[s].name}
        about = {"dimension": np.arange(len(value)), "metric": "mean_abs_shap", "value": value, "n": n}
        frames.append(pd.DataFrame({**subject.key, **what, **about}))
    return pd.concat(frames, ignore_index=True)


def _importance(
    head: str, x: np.ndarray, y: np.ndarray, split: Split, n_records: int, seed: int
) -> tuple[np.ndarray, int]:
    rows = np.random.default_rng(seed).choice(split.test, min(n_records, len(split.test)), replace=False)
    with unchecked():
        fit = fit_head(head, x, y, split, seed)
        return explain_head(head, fit, x[split.train], x[rows], seed).importance, len(rows)


def concentration_table(shap: pd.DataFrame) -> pd.DataFrame:
    """How few dimensions carry the importance, per head, task and split.

    `effective_dimensions` is exp(entropy) of the shares of the total mean |SHAP|: 1 when one dimension does it all,
    `dim` when all do the same. `dimensions_for_half` is the smallest number that holds half of the total. Both are NaN
    for a head that uses no dimension.

    Returns
    -------
    DataFrame
        Columns of `shap` without `dimension`, and `dim`.
    """
    names = [name for name in shap if name not in ("dimension", "metric", "value", "n")]
    rows = []
    for key, part in shap.groupby(names, sort=False, observed=True):
        base = {**dict(zip(names, key, strict=True)), "n": part["n"].iloc[0], "dim": len(part)}
        effective, half = concentration(part["value"].to_numpy())
        rows += [
            {**base, "metric": "effective_dimensions", "value": effective},
            {**base, "metric": "dimensions_for_half", "value": half},
        ]
    return pd.DataFrame(rows)


def concentration(importance: np.ndarray) -> tuple[float, float]:
    """Effective number of dimensions and number that holds half, of (dim,) non-negative importances."""
    total = importance.sum()
    if total == 0:
        return float("nan"), float("nan")
    share = np.sort(importance / total)[::-1]
    used = share[share > 0]
    # Rounding must not push a half that is met exactly to the next dimension.
    return float(np.exp(-(used * np.log(used)).sum())), float(np.argmax(share.cumsum() >= 0.5 - 1e-9) + 1)


def concentration_view(table: pd.DataFrame) -> pd.DataFrame:
    """Effective number of dimensions, `mean (lowest to highest split)` or of the only split, head by task."""
    chosen = table[table["metric"] == "effective_dimensions"]
    spread = chosen.groupby(["head", "task"], sort=False)["value"].agg(["mean", "min", "max"])
    text = [f"{mean:.0f} ({low:.0f} to {high:.0f})" for mean, low, high in spread.to_numpy()]
    if chosen["split"].nunique() == 1:
        text = [f"{mean:.0f}" for mean in spread["mean"]]
    wide = pd.Series(text, index=spread.index).unstack()
    return wide.loc[chosen["head"].unique(), chosen["task"].unique()].rename_axis(columns=None)


def unchecked() -> Any:
    """Context without scikit-learn's checks, which would cost as much as the many small fits on checked input."""
    return sklearn.config_context(assume_finite=True, skip_parameter_validation=True)


def parallel(work: list, desc: str) -> Iterable[Any]:
    """Results of delayed calls in their order, on every core, behind a progress bar; each call has one thread."""
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        results = joblib.Parallel(n_jobs=joblib.cpu_count(), return_as="generator")(work)
        yield from progress(results, desc=desc, total=len(work), unit="job")
