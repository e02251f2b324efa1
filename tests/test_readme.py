"""The README says what the tables say, and its commands exist."""

import re

import pandas as pd
import pytest
from conftest import ROOT

from cure import config

README = (ROOT / "README.md").read_text()


def test_results_are_those_of_the_committed_table():
    heads = pd.read_csv(ROOT / "tables/ptbxl-subset/heads.csv", dtype={"seed": str})
    macro = heads[(heads["task"] == "macro") & (heads["metric"] == "auroc") & (heads["seed"] == "mean")]
    macro = macro[macro["pooling"].isin(["mean", "none"])].set_index(["encoder", "head"])
    block = README.split("heads.csv -->")[1].split("<!-- end of results")[0]
    rows = re.findall(r"^\| .*`([\w-]+)`.* \| (\S.*?) \| (\S.*?) \| (\S.*?) \|$", block, flags=re.M)
    assert {row[0] for row in rows} == {"ecg-features", "resnet1d", "vit1d"}
    for encoder, *numbers in rows:
        for head, text in zip(("logistic", "mlp", "xgboost"), numbers, strict=True):
            row = macro.loc[(encoder, head)]
            assert text == f"{row['value']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]", (encoder, head)


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("profile", config.profiles())
def test_every_profile_is_described(profile):
    assert f"| `{profile}` |" in README


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
