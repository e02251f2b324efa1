"""Checks of the artifact: that its files hang together, and that this machine runs what they were made with.

Three depths. `tables`: what is shipped, in seconds: hashes, pins, tables from predictions, figures from tables.
`embeddings`: intervals on all bootstrap draws, logistic heads fitted anew on the embeddings, the models against
reference outputs; minutes. `raw`: the whole pipeline in a clone of its own; as long as the study took.

A check that fails is an error of the artifact. A claim that does not hold (`cure.claims`) is a finding.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import joblib
import pandas as pd

from cure import claims, config, integrity, paths, recompute, redraw
from cure.errors import CureError
from cure.integrity import FAIL, PASS, SKIPPED, Check, some
from cure.progress import TERMINAL, progress

Depth = Literal["tables", "embeddings", "raw"]
DEPTHS: tuple[Depth, ...] = ("tables", "embeddings", "raw")
#: Kind, stage, then name, rows, problem and reason for skipping of each table or figure, and seconds.
Made = tuple[str, str, list[tuple[str, int, str, str]], float]
#: Fewest and most columns of the claims in a terminal, whatever its own width.
_NARROW, _WIDE = 60, 110
#: Of heads fitted anew: how far a score may lie from the published one, the share of scores that must not lie further
#: off, and how far the AUROC of a task and a macro AUROC may move. The solver stops within its tolerance of the
#: optimum; under a weak penalty where it stops follows the rounding of sums, which differs between processors (in
#: double precision too).
SCORES, SHARE, MOVED, MACRO_MOVED = 1e-3, 0.95, 0.01, 0.002


def verify(profile: str, depth: Depth = "tables") -> Iterator[Check]:
    """Run the checks of one profile, down to a depth; cheap ones first.

    Yields
    ------
    Check
        `status` is PASS, FAIL or SKIPPED; `detail` says what was compared, what differs, or what is missing and the
        command that makes it.

    Raises
    ------
    CureError
        For an unknown profile or depth.
    """
    config.load(profile)
    if depth not in DEPTHS:
        raise CureError(f"unknown depth '{depth}': choose one of {', '.join(DEPTHS)}")
    at = DEPTHS.index(depth)
    yield from _timed("claims.yaml", lambda: _claims(profile))
    yield from _timed("pins", integrity.pins)
    yield from integrity.hashes(profile)
    yield from _timed("kept heads", lambda: integrity.kept_heads(profile))
    yield from replayed(profile, whole=at > 0)
    for name, look, needed in (
        ("heads from embeddings", lambda: refitted(profile), 1),
        ("models against references", references, 1),
        ("pipeline from raw records", lambda: rerun(profile), 2),
    ):
        if at >= needed:
            yield from _timed(name, look)
        else:
            yield Check(name, SKIPPED, f"`cure verify --profile {profile} --depth {DEPTHS[needed]}` does it")


def main(profile: str, depth: str = "tables", out: Path | None = None) -> None:
    """Print checks and claims, and write them to a JSON file where one is named.

    Raises
    ------
    CureError
        If a check failed.
    """
    start, checks = time.perf_counter(), []
    for check in verify(profile, depth):  # type: ignore[arg-type]
        print(report([check]), flush=True)
        checks.append(check)
    failed = [check.name for check in checks if check.status == FAIL]
    table = None if "claims.yaml" in failed else claims.judged(profile, measured=paths.resources(profile))
    if table is not None:
        print(f"\nClaims, from the tables of {profile}: {judged_report(table)}")
    if out is not None:
        rows = [] if table is None else json.loads(table.to_json(orient="records"))
        found = {"profile": profile, "depth": depth, "checks": [check._asdict() for check in checks], "claims": rows}
        with paths.atomic(out) as part:
            part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    counts = ", ".join(
        f"{sum(check.status == status for check in checks)} {status}" for status in (PASS, FAIL, SKIPPED)
    )
    print(f"\n{counts}, in {time.perf_counter() - start:.0f} s")
    if failed:
        raise CureError(f"{len(failed)} of {len(checks)} checks failed: {some(failed)}")


def report(checks: list[Check]) -> str:
    """The checks as a terminal shows them."""
    return "\n".join(f"{check.status:<7}  {check.name:<34}  {check.detail}" for check in checks)


def judged_report(table: pd.DataFrame) -> str:
    """Claims as a terminal shows them: how many of each status, then each with its statement, reason and command."""
    lines = [", ".join(f"{(table['status'] == status).sum()} {status}" for status in claims.STATUSES)]
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROW), _WIDE)
    for row in table.itertuples():
        lines.append(f"{row.status:<13}  {row.id}")
        lines += _wrapped(str(row.statement), width) + _wrapped(f"why: {row.reason}", width)
        lines.append(f"    {row.command}  ({claims.time(float(row.minutes))})")  # unbroken, to be copied
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * 4
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _timed(name: str, look: Callable[[], tuple[str, str]]) -> Iterator[Check]:
    start = time.perf_counter()
    status, detail = look()
    yield Check(name, status, detail, round(time.perf_counter() - start, 1))


def _claims(profile: str) -> tuple[str, str]:
    try:
        table = claims.judged(profile, measured=paths.resources(profile))
    except CureError as error:
        return FAIL, str(error)
    return PASS, f"{len(table)} claims are well formed, and find their rows or say why not"


# --- tables and figures -----------------------------------------------------------------------------------------------


def replayed(profile: str, root: Path | None = None, *, whole: bool = False) -> Iterator[Check]:
    """Make tables and figures again, a stage per job, on all cores.

    Parameters
    ----------
    profile : str
    root : Path, optional
        Holds `tables/`, `figures/` and `results/predictions/` of the profile; by default the project.
    whole : bool
        Intervals and tests too, where the cohort's store is here.
    """
    root = root or paths.root()
    stages = [
        name for name, number in config.STAGES.items() if (paths.root() / f"notebooks/{number}_{name}.ipynb").is_file()
    ]
    if not any((root / "results" / "predictions" / profile).glob("*.parquet")):
        yield Check("tables and figures", SKIPPED, f"no predictions of {profile}: `cure repro --profile {profile}`")
        return
    if whole and not (paths.cohort(profile, config.load(profile).cohort.name) / "cohort.json").is_file():
        yield Check(
            "intervals", SKIPPED, f"patients are not known here: `cure repro --profile {profile}` prepares them"
        )
        whole = False
    both = [(kind, stage) for kind in ("tables", "figures") for stage in stages]
    numbers = "values, counts, intervals and tests follow" if whole else "values and counts follow"
    shown: set[str] = set()
    made: set[str] = set()
    work = [(kind, profile, stage, root, whole) for kind, stage in both]
    for kind, stage, found, seconds in progress(_each(work), desc="follows", total=len(work), unit="stage"):
        wrong = [f"{name}: {problem}" for name, _, problem, _ in found if problem]
        missing = {name: why for name, _, problem, why in found if why and not problem}
        good = [rows for _, rows, problem, why in found if not problem and not why]
        name = f"{kind} of {stage}"
        if kind == "figures":
            shown |= {one for one, *_ in found}
        else:  # a result may be about several tables
            made |= {name for several, *_ in found for name in several.split(", ")}
        if wrong:
            yield Check(name, FAIL, some(wrong), seconds)
        elif good and kind == "tables":
            yield Check(name, PASS, f"{len(good)} from predictions, {sum(good):,} rows: {numbers}", seconds)
        elif good:
            yield Check(name, PASS, f"{len(good)} from tables, pixel by pixel", seconds)
        if missing:
            yield Check(name, SKIPPED, f"{some(list(missing))}: {next(iter(missing.values()))}")
    pictures = sorted(file.stem for file in (root / "figures" / profile).glob("*.png"))
    tables = sorted(file.stem for file in (root / "tables" / profile).glob("*.csv"))
    if left := [name for name in tables if name not in made]:
        said = "not made again, since they do not follow from predictions alone"
        yield Check("other tables", SKIPPED, f"{len(left)} of {len(tables)} tables {said}: {', '.join(left)}")
    if left := [name for name in pictures if name not in shown]:
        yield Check("other figures", SKIPPED, f"{some(left)}: drawn from records or models, not from tables alone")


def _each(work: list[tuple[str, str, str, Path, bool]]) -> Iterator[Made]:
    """`_made` of each, in order: on one core here, on several in processes of their own."""
    cores = min(joblib.cpu_count(), len(work))
    if cores < 2:
        yield from (_made(*one) for one in work)
        return
    # Started afresh, not forked: torch and its threads do not survive a fork.
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        yield from (done.result() for done in [pool.submit(_made, *one) for one in work])


def _made(kind: str, profile: str, stage: str, root: Path, whole: bool) -> Made:
    """Name, rows, problem and reason for skipping of every table or figure of a stage, and seconds."""
    start, terminal = time.perf_counter(), os.environ.get(TERMINAL)
    os.environ[TERMINAL] = ""  # bars of several processes would write over each other
    try:
        if kind == "tables":
            folders = root / "tables" / profile, root / "results" / "predictions" / profile
            results = recompute.check(recompute.Published(profile, *folders), [stage], whole=whole)
            found = [(one.table, one.rows, one.problem, one.skipped) for one in results]
        else:
            found = [(one.figure, 0, one.problem, one.skipped) for one in redraw.check(profile, [stage], root=root)]
    finally:
        if terminal is None:
            del os.environ[TERMINAL]
        else:
            os.environ[TERMINAL] = terminal
    return kind, stage, found, round(time.perf_counter() - start, 1)


# --- deeper -----------------------------------------------------------------------------------------------------------


def refitted(profile: str) -> tuple[str, str]:
    """Fit logistic heads on the embeddings that are here, and compare their test scores with the published ones."""
    from cure import predictions
    from cure.cohorts.base import Cohort
    from cure.settings.heads import HeadsConfig
    from cure.splits import make_splits

    settings = config.parameters("heads", profile)
    narrow = {"heads": ["logistic"], "pooled_heads": [], "poolings": ["mean"], "crossed": [], "crossed_heads": []}
    study = config.check(HeadsConfig, **{**settings, **narrow, "concatenate": []})
    again = f"`cure repro --profile {profile}` makes them"
    if not study.embeddings_folder.is_dir() or not (study.cohort_folder / "cohort.json").is_file():
        return SKIPPED, f"the embeddings of {profile} are not here: {again}"
    cohort = Cohort.open(study.cohort_folder)
    try:
        made = predictions.binary(study, cohort, make_splits(cohort.records, study.cohort.split))
        old = recompute.Published(profile).predicted("binary")
    except (CureError, ValueError) as error:
        return FAIL, str(error)
    keys = ["encoder", "weights", "pooling", "head", "seed", "task", "record_id"]
    named = dict.fromkeys([*keys[:4], "task"], str)
    old, made = old[[*keys, "score"]].astype(named), made[[*keys, "y", "score"]].astype(named)
    both = made.merge(old, on=keys, how="left", suffixes=("", "_published"), validate="one_to_one")
    if lost := int(both["score_published"].isna().sum()):
        return FAIL, f"{lost} of {len(both)} scores are not among the published predictions"
    return alike(both)


def alike(both: pd.DataFrame) -> tuple[str, str]:
    """Whether scores of heads fitted anew are the published ones but for rounding, and how far they lie off.

    Parameters
    ----------
    both : DataFrame
        `encoder, weights, seed, task, y, score, score_published`, one row per record and head.
    """
    from sklearn.metrics import roc_auc_score

    gap = (both["score"] - both["score_published"]).abs()
    near, one = float((gap <= SCORES).mean()), ["encoder", "weights", "seed"]

    def change(rows: pd.DataFrame) -> float:
        if rows["y"].nunique() < 2:
            return float("nan")
        new, old = (roc_auc_score(rows["y"], rows[name]) for name in ("score", "score_published"))
        return float(new - old)

    by_task = both.groupby([*one, "task"])[["y", "score", "score_published"]].apply(change).dropna()
    moved, macro = by_task.abs().max(), by_task.groupby(one).mean().abs().max()
    n = both[one].drop_duplicates().shape[0]
    said = (
        f"{len(both):,} scores of logistic heads on {n} representations: {near:.1%} within {SCORES:g} of the published "
        f"ones, largest difference {gap.max():.1g}; no AUROC moves by more than {moved:.1g}, no macro AUROC by more "
        f"than {macro:.1g}"
    )
    return (PASS if near >= SHARE and moved <= MOVED and macro <= MACRO_MOVED else FAIL), said


def references() -> tuple[str, str]:
    """Run the tests that compare models with outputs of the original code, where those are at hand."""
    root = paths.root()
    folder = Path(os.environ.get("CURE_GOLDEN_DIR", root.parent / "shared" / "golden"))
    files = sorted((root / "tests").glob("test_golden_*.py"))
    if not folder.is_dir():
        return SKIPPED, "no reference outputs here: set CURE_GOLDEN_DIR to their folder"
    if not files:
        return SKIPPED, "tests/test_golden_*.py are not here: `git checkout tests`"
    command = [sys.executable, "-m", "pytest", "-q", *map(str, files)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    return (FAIL if done.returncode else PASS), last


def rerun(profile: str) -> tuple[str, str]:
    """Run the pipeline in a clone of the committed state, and compare its `dvc.lock` with this one."""
    root = paths.root()
    if not (root / ".git").exists():
        return SKIPPED, "this is no git clone: run `cure repro` in a copy and compare its dvc.lock"
    before = integrity.locked(profile)
    if not before:
        return SKIPPED, f"dvc.lock has no profile {profile}"
    scratch = paths.scratch(profile, "verify")
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)  # noqa: S607
        environment = {**os.environ, "PYTHONPATH": str(clone)}
        command = [sys.executable, "-m", "cure.cli", "repro", "--profile", profile]
        done = subprocess.run(command, cwd=clone, env=environment, check=False)
        if done.returncode:
            return FAIL, "the pipeline stopped; the reason is above"
        after = integrity.locked(profile, clone)
        if before == after:
            return PASS, f"{len(after)} outputs have the same bytes as here"
        wrong = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        text = f"{len(wrong)} of {len(before)} outputs have other bytes ({some(wrong)})"
        apart = _apart(root / "tables" / profile, clone / "tables" / profile)
    if apart:
        return FAIL, f"{text}, and numbers differ: {some(apart)}"
    return PASS, f"{text}, as on another processor; all tables agree to {recompute.TOLERANCE:g}"


def _apart(old: Path, new: Path) -> list[str]:
    found = []
    for file in sorted(new.glob("*.csv")):
        if file.name == "resources.csv":  # measured
            continue
        if not (old / file.name).is_file():
            found.append(f"{file.name} is new")
        elif said := recompute.difference(
            *(pd.read_csv(folder / file.name, low_memory=False) for folder in (old, new))
        ):
            found.append(f"{file.stem}: {said}")
    return found
