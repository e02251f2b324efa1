"""Options of `cure embed` and `cure predict`."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cure.errors import CureError

if TYPE_CHECKING:
    from cure.kept import Card
    from cure.own.embed import How
    from cure.own.find import Item
    from cure.own.record import Given
    from cure.own.stream import Summary

_SHOWN = 5


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to the command line; what they need is imported when they run."""
    embed = commands.add_parser("embed", help="embed your own ECGs: docs/own-ecgs.md")
    embed.add_argument("--model", required=True, help="an encoder: `cure weights list` shows the published ones")
    embed.add_argument("--weights", help="random, hub, a file, or a name of the profile's; default: hub if published")
    embed.add_argument("--pooling", default="mean", choices=["mean", "max", "min", "last", "own"])
    embed.add_argument("--out", type=Path, default=Path("emb.parquet"), help="default: emb.parquet")
    embed.set_defaults(command=_embed)
    predict = commands.add_parser("predict", help="a kept head on your own ECGs; not for clinical use")
    predict.add_argument("--task", required=True, help="a task that the profile kept heads of")
    predict.add_argument("--representation", help="default: the profile's own encoder")
    predict.add_argument("--head", choices=["logistic", "xgboost"], help="default: logistic")
    predict.add_argument("--out", type=Path, default=Path("predictions.csv"), help="or .parquet")
    predict.set_defaults(command=_predict)
    for parser in (embed, predict):
        _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, folders, or names of WFDB records")
    parser.add_argument("--profile", default="demo", help="whose weights and heads (default: demo)")
    said = parser.add_argument_group("what files do not say themselves (CSV and NumPy)")
    said.add_argument("--rate", type=float, help="sampling rate, Hz")
    said.add_argument("--unit", choices=["V", "mV", "uV", "nV", "adc"], help="adc: counts of a converter, see --gain")
    said.add_argument("--gain", type=float, help="counts per mV")
    said.add_argument("--leads", help="names of the channels in order, such as I,II,V1; - for one that is no lead")
    said.add_argument("--format", action="append", choices=["wfdb", "csv", "edf", "dicom", "numpy"], help="only these")
    said.add_argument("--max-seconds", type=float, default=60.0, help="longer records are cut (default: 60)")
    run = parser.add_argument_group("how it runs")
    run.add_argument("--restart", action="store_true", help="throw away the output, or the parts, of an earlier run")
    run.add_argument("--batch", type=int, default=32, help="windows per forward pass (default: 32)")
    run.add_argument("--workers", type=int, help="processes that read records (default: one per core)")
    run.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def _embed(options: argparse.Namespace) -> None:
    from cure.own.embed import embed

    items, given, how = _items(options), _given(options), _how(options)
    chosen = {"model": options.model, "weights": options.weights, "profile": options.profile}
    began = time.perf_counter()
    summary = embed(items, given, options.out, pooling=options.pooling, how=how, **chosen)
    _report(summary, options.out, time.perf_counter() - began)


def _predict(options: argparse.Namespace) -> None:
    from cure.own.predict import NOTE, find_head, predict

    given, how = _given(options), _how(options)
    representation, one = find_head(options.task, options.profile, options.head, options.representation)
    card = one.card
    print(f"{card.task} ({card.title}): {card.head} head on {representation}, fitted on {card.cohort_title}")
    print(f"{_auroc(card)} on its {card.val.n} validation records")
    items = _items(options)
    began = time.perf_counter()
    summary = predict(items, given, options.out, representation=representation, one=one, how=how)
    print(" ".join(card.notes) if NOTE in card.notes else " ".join([NOTE, *card.notes]))
    _report(summary, options.out, time.perf_counter() - began)


def _auroc(card: "Card") -> str:
    """AUROC of a kept head, with its interval where there is one; one class among validation records leaves none."""
    one = next(score for score in card.scores if score.metric == "auroc")
    if one.value is None:
        return "AUROC not defined"
    return f"AUROC {one.value:.3f}" + ("" if one.lo is None else f" [{one.lo:.3f}, {one.hi:.3f}]")


def _items(options: argparse.Namespace) -> "list[Item]":
    """Records below the paths; a path that leads to none is one that failed, as long as another leads to some.

    Raises
    ------
    CureError
        If there is no record at all: says why of the first paths.
    """
    from cure.own.find import find
    from cure.own.stream import Lost

    # What an earlier run wrote into the folder that is searched is no record.
    written = {options.out.resolve(), options.out.with_name(f"{options.out.name}.parts").resolve()}
    items: list[Item] = []
    for path in options.paths:
        if path.resolve() in written:
            continue
        try:
            items += find([path])
        except CureError as error:
            items.append(Lost(path, "unknown", reason=str(error)))
    wanted = set(options.format or ())
    good = [item for item in items if not isinstance(item, Lost) and item.path.resolve() not in written]
    good = [item for item in good if not wanted or item.format in wanted]
    if not good:
        reasons = [item.reason for item in items if isinstance(item, Lost)]
        more = f"; and {len(reasons) - _SHOWN:,} more" if len(reasons) > _SHOWN else ""
        kinds = f"of format {' or '.join(sorted(wanted))} " if wanted else ""
        none = f"no record {kinds}at {', '.join(map(str, options.paths[:_SHOWN]))}"
        raise CureError("; ".join(reasons[:_SHOWN]) + more if reasons else none)
    # A JSON file beside a record says what the record does not: `ecgs/*` names both.
    beside = {item.path.with_suffix(".json") for item in items if not isinstance(item, Lost)}
    kept = set(good) | {item for item in items if isinstance(item, Lost) and item.path not in beside}
    return [item for item in dict.fromkeys(items) if item in kept]


def _given(options: argparse.Namespace) -> "Given":
    from cure.own.names import lead_of
    from cure.own.record import LEAST_SECONDS, Given
    from cure.signals import LEADS

    leads = tuple(name.strip() for name in options.leads.split(",")) if options.leads else None
    for name in leads or ():
        if name != "-" and lead_of(name) is None:
            raise CureError(f"--leads: {name!r} is no standard lead ({', '.join(LEADS)}; - for another channel)")
    for name in ("rate", "gain"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise CureError(f"--{name} {value:g}: a positive number")
    if options.gain is not None and options.unit not in (None, "adc"):
        raise CureError(f"--gain is for --unit adc, not for {options.unit}")
    if options.max_seconds < LEAST_SECONDS:
        raise CureError(f"--max-seconds {options.max_seconds:g}: {LEAST_SECONDS:g} at least")
    return Given(options.rate, options.unit, options.gain, leads, options.max_seconds)


def _how(options: argparse.Namespace) -> "How":
    import joblib
    import torch

    from cure.own.embed import How

    if options.device == "cuda" and not torch.cuda.is_available():
        raise CureError("--device cuda, but torch sees no GPU here: leave it out")
    if options.batch < 1:
        raise CureError(f"--batch {options.batch}: 1 at least")
    if options.workers is not None and options.workers < 0:
        raise CureError(f"--workers {options.workers}: 0 at least")
    cores = joblib.cpu_count()
    workers = cores if options.workers is None else options.workers
    return How(options.batch, 1 if options.device == "cuda" else cores, workers, options.device, options.restart)


def _report(summary: "Summary", out: Path, seconds: float) -> None:
    """Say what came of it; a run without any result is an error."""
    n, failed = summary.n, summary.failed
    flags = ", ".join(f"{name} {count}" for name, count in sorted(summary.flags.items())) or "none"
    print(f"{out}: {n - len(failed):,} of {n:,} records in {seconds:.1f} s; quality flags: {flags}")
    first = [f"  {name}: {reason}" for name, reason in list(failed.items())[:_SHOWN]]
    if failed:
        more = f"\n  and {len(failed) - _SHOWN:,} more, in column error" if len(failed) > _SHOWN else ""
        print(f"{len(failed):,} without a result:\n" + "\n".join(first) + more)
    if len(failed) == n:
        raise CureError(f"none of the {n:,} records could be used: {out} says why in column error")
