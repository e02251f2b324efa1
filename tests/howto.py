"""Does what the pages in docs/ say, in a copy of the project: `python howto.py quick|whole PAGE...`.

A block whose first line is a comment with a path is a file to write; `diff` edits the file it names; `yaml` replaces
sections of the profile it names; `sh` and `python` are run. `quick` starts no kernel: what needs a stage to have run is
left out, and commands are called in this process.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

_NAMED = re.compile(r"# ([\w./-]+\.(?:py|sbatch))\n")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Code blocks of a page, (language, text) in order; a fence without a language is an error."""
    text = page.read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), f"{page.name}: a fence without a language"
    return found


def needs_a_stage(language: str, text: str) -> bool:
    """Whether a block runs a stage, or reads what one made."""
    return text.startswith("# after stage") or (language == "sh" and ("cure run" in text or "sbatch " in text))


def change(language: str, text: str) -> str | None:
    """Write or edit a file as a block says; returns its path, or None for a block that changes none."""
    if name := _NAMED.match(text):
        file = Path(name[1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text[name.end() :])
    elif language == "diff":
        file = _edited(text)
    elif language == "yaml":
        file = _with_sections(text)
    else:
        return None
    return str(file)


def _edited(text: str) -> Path:
    head, *lines = text.splitlines()
    file = Path(head.removeprefix("--- "))
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " +")
    content = file.read_text()
    assert content.count(old) == 1, f"{file} holds {content.count(old)} times:\n{old}"
    file.write_text(content.replace(old, new))
    return file


def _with_sections(text: str) -> Path:
    import yaml

    file = Path(re.match(r"# (profiles/[\w-]+\.yaml): these sections", text)[1])
    demo = yaml.safe_load(Path("profiles/demo.yaml").read_text())
    file.write_text(yaml.safe_dump(demo | yaml.safe_load(text)))
    return file


def run_here(text: str) -> None:
    """Run commands in this process: `cure`, `python FILE`, `python -m pytest`."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            os.environ.update([words.pop(0).split("=", 1)])
        match words:
            case []:
                pass
            case ["export", one]:
                os.environ.update([one.split("=", 1)])
            case ["cure", *arguments]:
                from cure import cli

                assert cli.main(arguments) == 0, line
            case ["python", "-m", "pytest", *arguments]:
                import pytest

                assert pytest.main(arguments) == 0, line
            case ["python", file, *arguments]:
                before, sys.argv = sys.argv, [file, *arguments]
                sys.path.insert(0, str(Path(file).parent))
                runpy.run_path(file, run_name="__main__")
                sys.argv = before
            case _:
                raise AssertionError(f"no way to run {line!r}")


def quick(pages: list[Path]) -> None:
    """All that takes no stage. Files and modules first, for all pages: a module is imported once."""
    done = {}
    for page in pages:
        for i, (language, text) in enumerate(blocks(page)):
            if _NAMED.match(text) or (language == "diff" and text.startswith("--- cure/")):
                done[page, i] = change(language, text)
    from cure import config

    for page in pages:
        print(f"== {page.stem}", flush=True)
        names: dict = {}
        for i, (language, text) in enumerate(blocks(page)):
            if (page, i) in done:
                continue
            if profile := change(language, text):
                for stage in config.STAGES:
                    config.parameters(stage, Path(profile).stem)
            elif not needs_a_stage(language, text):
                exec(compile(text, page.name, "exec"), names) if language == "python" else run_here(text)


def whole(page: Path) -> None:
    """Everything, in order, commands in a shell."""
    names: dict = {}
    for language, text in blocks(page):
        if change(language, text):
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)


if __name__ == "__main__":
    how, *chosen = sys.argv[1:]
    pages = [Path("docs") / f"{name}.md" for name in chosen]
    if how == "quick":
        quick(pages)
    else:
        whole(*pages)
