"""Command line: `cure run STAGE --profile P`, `cure clean`, `cure render --profile P`, `cure repro --profile P`."""

import argparse
import sys

from cure.errors import CureError


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; errors that a user can put right come without a traceback."""
    options = _parser().parse_args(arguments)
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
    clean = commands.add_parser("clean", help="write the stripped notebooks that stages depend on")
    clean.set_defaults(command=_clean)
    render = commands.add_parser("render", help="publish tables, figures, notebooks and the site from finished stages")
    render.set_defaults(command=_render)
    repro = commands.add_parser("repro", help="`dvc repro` of one profile, whatever params.yaml lists")
    repro.set_defaults(command=_repro)
    for each in (run, render, repro):
        each.add_argument("--profile", default="demo", help="a file in profiles/ (default: demo)")
    return parser


def _run(options: argparse.Namespace) -> None:
    from cure import notebooks

    notebooks.run(options.stage, options.profile)


def _clean(_: argparse.Namespace) -> None:
    from cure import notebooks

    notebooks.clean()


def _render(options: argparse.Namespace) -> None:
    from cure import report

    report.render(options.profile)


def _repro(options: argparse.Namespace) -> None:
    from cure import repro

    repro.repro(options.profile)


if __name__ == "__main__":
    sys.exit(main())
