"""Command line: `cure run STAGE --profile P`, `cure clean`, `cure render --profile P`, `cure repro --profile P`.

`cure verify [--profile P] [--depth D]` checks what is published, `cure doctor` this machine, `cure archive` bundles it.
The published weights: `cure weights list | fetch MODEL | convert FILE [--out FILE] | verify [MODEL]`.
And own records: `cure embed PATH... --model NAME`, `cure predict PATH... --task NAME` (docs/own-ecgs.md).
"""

import argparse
import sys
from pathlib import Path

from cure.errors import CureError
from cure.own import commands as own


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; errors that a user can put right come without a traceback."""
    options = _parser().parse_args(arguments)
    # nbformat imports jsonschema, and that would compile a grammar for addresses here: two seconds of every stage.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    try:
        options.command(options)
    except CureError as error:
        print(f"cure: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ncure: interrupted; run it again: finished stages, shards of embeddings and downloaded files are kept",
            file=sys.stderr,
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cure", description="Reproduce the study, stage by stage.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="execute one stage's notebook")
    run.add_argument("stage")
    run.set_defaults(command=_run)
    clean = commands.add_parser("clean", help="write what stages depend on: stripped notebooks and hashes of code")
    clean.set_defaults(command=_clean)
    render = commands.add_parser("render", help="publish tables, figures, notebooks and the site from finished stages")
    render.set_defaults(command=_render)
    repro = commands.add_parser("repro", help="`dvc repro` of one profile, whatever params.yaml lists")
    repro.set_defaults(command=_repro)
    for each in (run, render, repro):
        each.add_argument("--profile", default="demo", help="a file in profiles/ (default: demo)")
    _add_checks(commands)
    _add_weights(commands.add_parser("weights", help="published weights: list, fetch, convert, verify"))
    own.add(commands)
    return parser


def _add_checks(commands: "argparse._SubParsersAction") -> None:
    verify = commands.add_parser("verify", help="check the artifact, and say which claims hold")
    verify.add_argument("--profile", default="ptbxl-subset", help="default: ptbxl-subset, whose results are in git")
    verify.add_argument(
        "--depth", default="tables", help="tables (seconds, the default), embeddings (minutes) or raw (the whole study)"
    )
    verify.add_argument("--json", type=Path, metavar="FILE", help="also write checks and claims to a JSON file")
    verify.set_defaults(command=_verify)
    doctor = commands.add_parser("doctor", help="this machine, and which profiles can run on it")
    doctor.set_defaults(command=_doctor)
    archive = commands.add_parser("archive", help="bundle everything for a DOI archive, or check such a bundle")
    archive.add_argument("--profile", default="ptbxl-subset", help="default: ptbxl-subset, whose results are in git")
    archive.add_argument("--out", type=Path, metavar="FILE", help="default: cure-<version>-<profile>.tar")
    archive.add_argument("--check", type=Path, metavar="FILE", help="check this bundle instead of making one")
    archive.set_defaults(command=_archive)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    shown = actions.add_parser("list", help="models that run here, their licences, and whether their weights are here")
    shown.set_defaults(command=_weights_list)
    fetch = actions.add_parser("fetch", help="get the published weights of a model, and pin them in weights.lock.yaml")
    fetch.add_argument("model")
    fetch.set_defaults(command=_weights_fetch)
    convert = actions.add_parser("convert", help="copy the tensors of a checkpoint to safetensors; runs nothing in it")
    convert.add_argument("file", type=Path)
    convert.add_argument("--out", type=Path, help="default: beside the file, ending in .safetensors")
    convert.set_defaults(command=_weights_convert)
    verify = actions.add_parser("verify", help="compare weights with weights.lock.yaml")
    verify.add_argument("model", nargs="?", help="default: all that are here")
    verify.set_defaults(command=_weights_verify)


def _run(options: argparse.Namespace) -> None:
    from cure import notebooks

    notebooks.run(options.stage, options.profile)


def _clean(_: argparse.Namespace) -> None:
    from cure import imports, notebooks

    notebooks.clean()
    imports.write()


def _render(options: argparse.Namespace) -> None:
    from cure import report

    report.render(options.profile)


def _repro(options: argparse.Namespace) -> None:
    from cure import repro

    repro.repro(options.profile)


def _verify(options: argparse.Namespace) -> None:
    from cure import verify

    verify.main(options.profile, options.depth, options.json)


def _doctor(_: argparse.Namespace) -> None:
    from cure import doctor

    print(doctor.report())


def _archive(options: argparse.Namespace) -> None:
    from cure import archive

    if options.check:
        archive.main_check(options.check)
    else:
        archive.main_make(options.profile, options.out)


def _weights_list(_: argparse.Namespace) -> None:
    from cure.models import weights

    table = weights.table()
    widths = [max(len(name), int(table[name].str.len().max())) for name in table]
    for row in [list(table), *table.to_numpy().tolist()]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _weights_fetch(options: argparse.Namespace) -> None:
    from cure.models import checkpoints, weights

    file = weights.fetch(options.model)
    print(f"{checkpoints.shown(file)} is here and pinned in {weights.LOCK}")
    if file.suffix != ".safetensors" and checkpoints.foreign(file):
        print(f"It holds more than tensors. Once: `cure weights convert {checkpoints.shown(file)}`")


def _weights_convert(options: argparse.Namespace) -> None:
    from cure.models import checkpoints

    out = options.out or options.file.with_suffix(".safetensors")
    checkpoints.convert(options.file, out)
    print(f"wrote {checkpoints.shown(out)}")


def _weights_verify(options: argparse.Namespace) -> None:
    from cure.models import checkpoints, weights

    names = [options.model] if options.model else weights.present()
    if not names:
        print("No published weights are here: `cure weights list` says what there is.")
    for name in names:
        print(f"{checkpoints.shown(weights.verify(name))}: the one in {weights.LOCK}")


if __name__ == "__main__":
    sys.exit(main())
