"""Candidates of every head: estimators fitted on training records, each with the setting that made it.

`cure.heads` takes the candidate with the lowest validation log loss. Two searches: `compact`, a few settings per head
that are cheap and cover the useful range; `paper`, the settings of the released CURE-FM code, as far as it has any:

=============  ==========================================  ========================================================
head           compact                                     paper
=============  ==========================================  ========================================================
logistic       C .001-1                                    C .01-100 by decades
lasso          C .03-1                                     the same with an L1 penalty
elastic-net    C .01-.3, half L1                           the same, half L1 (its ratio is not known)
mlp            64 units, 2 weight decays                   1-3 layers of 64-512, rate 1e-4 to 1e-2
xgboost        depth 3, rate .1                            depth 3-12, rate .01-.3, child weight 1 or 3
forest         100 trees, leaves of 2 or 8                 100-300 trees, depth 10-50, split at 2-10
svm-linear     C .001-.1                                   C .1-10
svm-rbf        C .3-10                                     C .1-10, gamma scale or auto
tree           depth 1-4                                   (none known: as compact)
knn            5-80 neighbours                             (none known: as compact)
=============  ==========================================  ========================================================

All columns are imputed and standardised by training records, except for XGBoost, which needs neither.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

Grid = Literal["compact", "paper"]
Candidate = tuple[Any, str]
Candidates = Iterable[Candidate]


@dataclass(frozen=True)
class Data:
    """What a head may look at: `x` (n, dim) with NaN for gaps and `y` (n,) bool, of training and validation records.

    A candidate is fitted on the training records. Validation records say when to stop, and turn the decision value of
    an SVM into a probability.
    """

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray


#: Inverse L2 strengths of the logistic head.
LOGISTIC_C = (1e-3, 1e-2, 1e-1, 1.0)
#: Inverse strengths in the released code, whatever the penalty.
PAPER_C = (1e-2, 1e-1, 1.0, 10.0, 100.0)
LASSO_C = (0.03, 0.1, 0.3, 1.0)
ELASTIC_NET_C = (0.01, 0.03, 0.1, 0.3)
#: Weight decays tried for the MLP head.
MLP_ALPHA = (1e-2, 1.0)
MLP_RATE, MLP_EPOCHS, MLP_PATIENCE = 3e-3, 40, 5
SVM_C = {"linear": (1e-3, 1e-2, 1e-1), "rbf": (0.3, 1.0, 3.0, 10.0)}
#: What a setting of a forest is called in tables.
_SHORT = {"n_estimators": "trees", "min_samples_leaf": "leaf", "max_depth": "depth", "min_samples_split": "split"}
TREE_DEPTH, TREE_LEAF = (1, 2, 3, 4), 10
NEIGHBOURS = (5, 10, 20, 40, 80)


def scaler() -> Pipeline:
    """Median imputation (features have gaps; columns of nothing but gaps become 0), then standardisation."""
    return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())


def log_loss(estimator: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Mean log loss of `predict_proba`; defined whatever classes `y` holds. A certain error costs 27.6."""
    p = estimator.predict_proba(x)[:, 1].astype(float).clip(1e-12, 1 - 1e-12)
    return float(-np.log(np.where(y, p, 1 - p)).mean())


def candidates(name: str, data: Data, seed: int, grid: Grid = "compact") -> Candidates:
    """Fit the candidates of one head, one after the other.

    Parameters
    ----------
    name : str
        A key of `HEADS`.
    data : Data
        Training records of both classes.
    seed : int
        Of everything random in the head.
    grid : {"compact", "paper"}

    Yields
    ------
    estimator
        With `predict_proba`, finite whatever classes the validation records hold.
    setting : str
    """
    return HEADS[name](data, seed, grid)


# --- linear ---------------------------------------------------------------------------------------------


def _logistic(data: Data, _seed: int, grid: Grid) -> Candidates:
    strengths = LOGISTIC_C if grid == "compact" else PAPER_C
    return _path(data, LogisticRegression(max_iter=200, warm_start=True), strengths)


def _lasso(data: Data, seed: int, grid: Grid) -> Candidates:
    """L1 by coordinate descent, which penalises the intercept too; scaled by 100, the penalty on it is negligible."""
    model = LogisticRegression(l1_ratio=1, solver="liblinear", intercept_scaling=100, random_state=seed)
    return _path(data, model, LASSO_C if grid == "compact" else PAPER_C)


def _elastic_net(data: Data, seed: int, grid: Grid) -> Candidates:
    model = LogisticRegression(l1_ratio=0.5, solver="saga", tol=1e-3, max_iter=100, warm_start=True, random_state=seed)
    return _path(data, model, ELASTIC_NET_C if grid == "compact" else PAPER_C)


def _path(data: Data, model: LogisticRegression, strengths: Sequence[float]) -> Candidates:
    """One model per inverse strength, each started from the last where the solver can."""
    scale = scaler().fit(data.x)
    z = scale.transform(data.x)
    with warnings.catch_warnings():
        # The weakest penalty may stop at the iteration limit; validation judges it as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in strengths:
            model.set_params(C=c).fit(z, data.y)
            yield make_pipeline(scale, copy.deepcopy(model)), f"C={c:g}"


# --- networks -------------------------------------------------------------------------------------------


def _mlp(data: Data, seed: int, grid: Grid) -> Candidates:
    """Adam, stopped when the validation loss no longer falls; the best epoch is kept.

    scikit-learn's own early stopping would hold out records at random, patients split in two.
    """
    scale = scaler().fit(data.x)
    z, z_val = scale.transform(data.x), scale.transform(data.x_val)
    if grid == "compact":
        for alpha in MLP_ALPHA:
            model = MLPClassifier(
                (64,), alpha=alpha, learning_rate_init=MLP_RATE, batch_size=min(128, len(z)), random_state=_order(seed)
            )
            best, epoch = _stopped(model, z, z_val, data, MLP_EPOCHS, MLP_PATIENCE)
            yield make_pipeline(scale, best), f"alpha={alpha:g}, epoch={epoch}"
        return
    for layers, width, rate in product((1, 2, 3), (64, 128, 256, 512), (1e-4, 1e-3, 1e-2)):
        model = MLPClassifier(
            (width,) * layers, learning_rate_init=rate, batch_size=min(64, len(z)), random_state=_order(seed)
        )
        best, epoch = _stopped(model, z, z_val, data, 100, 10)
        yield make_pipeline(scale, best), f"layers={layers}, width={width}, rate={rate:g}, epoch={epoch}"


def _order(seed: int) -> np.random.RandomState:
    """A generator that goes on from epoch to epoch: a number would give every `partial_fit` the same batches."""
    return np.random.RandomState(seed)


def _stopped(
    model: MLPClassifier, z: np.ndarray, z_val: np.ndarray, data: Data, epochs: int, patience: int
) -> tuple[MLPClassifier, int]:
    """Train `model` and return it as it was after its best epoch, with the number of that epoch."""
    best, best_loss, best_epoch = model, np.inf, 0
    for epoch in range(epochs):
        model.partial_fit(z, data.y, classes=[False, True])
        loss = log_loss(model, z_val, data.y_val)
        if loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(model), loss, epoch
        elif epoch - best_epoch >= patience:
            break
    return best, best_epoch + 1


# --- trees ----------------------------------------------------------------------------------------------


def _xgboost(data: Data, seed: int, grid: Grid) -> Candidates:
    """Boosted trees, stopped on validation.

    compact: shallow trees, each of a third of the columns in coarse bins, cheap on wide embeddings. paper: up to 400
    trees, stopped after 20 without gain, which stands for the grid over their number.
    """
    from xgboost import XGBClassifier

    def fitted(**settings: Any) -> Any:
        model = XGBClassifier(subsample=0.8, n_jobs=1, random_state=seed, **settings)
        seen = [(data.x_val, data.y_val.astype(int))]
        return model.fit(data.x, data.y.astype(int), eval_set=seen, verbose=False)

    if grid == "compact":
        small = {"n_estimators": 300, "max_depth": 3, "learning_rate": 0.1, "early_stopping_rounds": 15}
        model = fitted(colsample_bytree=0.3, max_bin=64, **small)
        yield model, f"trees={model.best_iteration + 1}"
        return
    for depth, rate, child in product((3, 6, 8, 10, 12), (0.01, 0.1, 0.3), (1, 3)):
        tried = {"max_depth": depth, "learning_rate": rate, "min_child_weight": child}
        model = fitted(n_estimators=400, colsample_bytree=0.8, early_stopping_rounds=20, **tried)
        yield model, f"depth={depth}, rate={rate:g}, child={child}, trees={model.best_iteration + 1}"


def _forest(data: Data, seed: int, grid: Grid) -> Candidates:
    if grid == "compact":
        settings: list[dict[str, int]] = [{"n_estimators": 100, "min_samples_leaf": leaf} for leaf in (2, 8)]
    else:
        axes = product((100, 200, 300), (10, 20, 30, 40, 50), (2, 5, 10))
        settings = [{"n_estimators": n, "max_depth": d, "min_samples_split": s} for n, d, s in axes]
    scale = scaler().fit(data.x)
    z, prevalence = scale.transform(data.x), float(data.y.mean())
    for setting in settings:
        model = RandomForestClassifier(**setting, n_jobs=1, random_state=seed).fit(z, data.y)
        smooth = Shrunk(make_pipeline(scale, model), prevalence, 1 / (1 + setting["n_estimators"]))
        yield smooth, ", ".join(f"{_SHORT[name]}={value}" for name, value in setting.items())


def _tree(data: Data, seed: int, _grid: Grid) -> Candidates:
    scale = scaler().fit(data.x)
    z, prevalence = scale.transform(data.x), float(data.y.mean())
    for depth in TREE_DEPTH:
        model = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=TREE_LEAF, random_state=seed)
        yield Shrunk(make_pipeline(scale, model.fit(z, data.y)), prevalence, 1 / (1 + TREE_LEAF)), f"depth={depth}"


# --- neighbours and margins -----------------------------------------------------------------------------


def _knn(data: Data, _seed: int, _grid: Grid) -> Candidates:
    scale = scaler().fit(data.x)
    z, prevalence = scale.transform(data.x), float(data.y.mean())
    for k in sorted({min(k, len(z)) for k in NEIGHBOURS}):
        model = KNeighborsClassifier(k, algorithm="brute", n_jobs=1).fit(z, data.y)
        yield Shrunk(make_pipeline(scale, model), prevalence, 1 / (1 + k)), f"k={k}"


def _svm_linear(data: Data, _seed: int, grid: Grid) -> Candidates:
    strengths = SVM_C["linear"] if grid == "compact" else (0.1, 1.0, 10.0)
    return _svm(data, [{"kernel": "linear", "C": c} for c in strengths])


def _svm_rbf(data: Data, _seed: int, grid: Grid) -> Candidates:
    axes = product(SVM_C["rbf"], ("scale",)) if grid == "compact" else product((0.1, 1.0, 10.0), ("scale", "auto"))
    return _svm(data, [{"kernel": "rbf", "C": c, "gamma": gamma} for c, gamma in axes])


def _svm(data: Data, settings: list[dict[str, Any]]) -> Candidates:
    """Support vector machines with probabilities from a logistic curve through the decision value.

    The curve is fitted on the validation records (see `platt`): on training records the margins of an SVM are those of
    what it has seen, and would make it far too sure; scikit-learn's own cross-validation (`probability=True`) splits
    patients in two. Its two numbers are the same for every record, so ranks are those of the SVM.
    """
    scale = scaler().fit(data.x)
    z, z_val = scale.transform(data.x), scale.transform(data.x_val)
    for setting in settings:
        model = SVC(**setting, cache_size=500).fit(z, data.y)
        both = data.y_val.any() and not data.y_val.all()
        # Validation records of one class cannot say how steep the curve is; training records can, if too steep.
        margin, y = (model.decision_function(z_val), data.y_val) if both else (model.decision_function(z), data.y)
        text = ", ".join(f"{name}={value}" for name, value in setting.items() if name != "kernel")
        yield Platt(make_pipeline(scale, model), *platt(margin, y)), text


def platt(margin: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the logistic curve that turns margins into probabilities (Platt 1999).

    Targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1 and 0, as Platt has them: the curve stays finite where
    margins separate the classes. The slope is kept positive, so a record never ranks below one with a smaller margin.

    Parameters
    ----------
    margin : (n,) array
    y : (n,) bool array
        Of both classes.
    """
    n_pos = int(y.sum())
    target = np.where(y, (n_pos + 1) / (n_pos + 2), 1 / (len(y) - n_pos + 2))
    # In units of the margins' spread: the bound on the slope and the optimiser's steps then fit any SVM.
    spread = float(margin.std()) or 1.0

    def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
        t = ab[0] * margin / spread + ab[1]
        off = expit(t) - target
        return float((np.logaddexp(0, t) - target * t).mean()), np.array([off @ margin / spread, off.sum()]) / len(y)

    start = np.array([1.0, np.log((n_pos + 1) / (len(y) - n_pos + 1))])
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(1e-3, None), (None, None)]).x
    return float(slope / spread), float(intercept)


@dataclass(frozen=True)
class Platt:
    """A margin classifier with `predict_proba`: a logistic curve through its decision value."""

    model: Any
    slope: float
    intercept: float

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of both classes, (n, 2) float64."""
        p = expit(self.slope * self.model.decision_function(x) + self.intercept)
        return np.column_stack([1 - p, p])


@dataclass(frozen=True)
class Shrunk:
    """Vote shares pulled towards the training prevalence by `weight`: that of one more voter which says just that.

    A share of 0 or 1 is no probability. One positive among records whose neighbours are all negative would make the log
    loss of a whole validation part infinite. Ranks do not change.
    """

    model: Any
    prevalence: float
    weight: float

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of both classes, (n, 2) float64."""
        p = (1 - self.weight) * self.model.predict_proba(x)[:, 1] + self.weight * self.prevalence
        return np.column_stack([1 - p, p])


#: Head -> its candidates; the order is that of error messages.
HEADS: dict[str, Callable[[Data, int, Grid], Candidates]] = {
    "logistic": _logistic,
    "lasso": _lasso,
    "elastic-net": _elastic_net,
    "mlp": _mlp,
    "xgboost": _xgboost,
    "forest": _forest,
    "svm-linear": _svm_linear,
    "svm-rbf": _svm_rbf,
    "tree": _tree,
    "knn": _knn,
}
