"""`python tests/declare.py`: write the modules that each stage depends on into dvc.yaml.

They follow from what its notebook imports: after a module was added, moved or is imported elsewhere. `test_pipeline.py`
compares the two.
"""

import re

from conftest import ROOT
from test_pipeline import closure, code_of


def declared(text: str) -> str:
    """`dvc.yaml` with the `cure/*.py` entries of every stage replaced; all else stays as it is."""
    return "".join(_stage(block) for block in re.split(r"(?m)^(?=  [a-z]+:\n)", text))


def _stage(block: str) -> str:
    name = re.match(r"  ([a-z]+):\n", block)
    if name is None or name[1] == "clean":
        return block
    modules = sorted(closure(code_of(name[1])) | ({"cure/report.py"} if name[1] == "render" else set()))
    lines = block.split("\n")
    at = [i for i, line in enumerate(lines) if re.fullmatch(r"      - cure/.*\.py", line)]
    lines[at[0] : at[-1] + 1] = [f"      - {module}" for module in modules]
    return "\n".join(lines)


if __name__ == "__main__":
    file = ROOT / "dvc.yaml"
    before = file.read_text()
    file.write_text(declared(before))
    print("dvc.yaml is rewritten" if declared(before) != before else "dvc.yaml is as it should be")
