"""The README and docs/results.md say what the tables say, and its commands exist."""

import re

import pandas as pd
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from cure import config

README = (ROOT / "README.md").read_text()
RESULTS = README + (ROOT / "docs/results.md").read_text()


def rows_between(start, end):
    """First cells in backticks, and numbers, of a table in the README."""
    block = RESULTS.split(f"{start} -->")[1].split(f"<!-- {end}")[0]
    return [
        (re.findall(r"`([\w-]+)`", line), re.findall(r"\d\.\d{3} \[[^]]+\]", line)) for line in block.splitlines()[3:]
    ]


def shown(row):
    return f"{row['value']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"


def macro(name):
    table = pd.read_csv(ROOT / f"tables/ptbxl-subset/{name}.csv", dtype={"seed": str})
    return table[(table["task"] == "macro") & (table["metric"] == "auroc") & (table["seed"] == "mean")]


def test_results_are_those_of_the_committed_tables():
    heads = macro("heads")
    heads = heads[heads["pooling"].isin(["mean", "none"])].set_index(["encoder", "weights", "head"])
    rows = [row for row in rows_between("heads.csv", "end of results") if row[1]]
    assert {tuple(names) for names, _ in rows} == {
        ("ecg-features",),
        ("leadcnn", "ssl-folds"),
        ("leadcnn", "ssl-simulated"),
        ("leadcnn", "random"),
        ("ked", "random"),
        ("clef-small", "random"),
        ("merl-vit-tiny", "random"),
    }
    for names, numbers in rows:
        key = (*names, "none") if len(names) == 1 else tuple(names)
        assert numbers == [shown(heads.loc[(*key, head)]) for head in ("logistic", "mlp", "xgboost")], names
    tuned = macro("finetune").set_index(["strategy", "encoder", "weights"])
    rows = [row for row in rows_between("finetune.csv", "end of finetune") if row[1]]
    assert len(rows) == 4
    for names, numbers in rows:
        assert numbers == [shown(tuned.loc[tuple(names)])], names


def test_objectives_are_those_of_the_committed_table():
    table = pd.read_csv(ROOT / "tables/ptbxl-subset/pretraining_families.csv")
    table = table[(table["task"] == "macro-super") & (table["part"] == "test")]
    block = RESULTS.split("pretraining_families.csv -->")[1].split("<!-- end of families")[0]
    rows = [line for line in block.splitlines() if "`" in line]
    assert len(rows) == table["objective"].nunique() - 1
    for row in rows:
        name = re.search(r"`([\w+-]+)`", row).group(1)
        mine = table[table["objective"] == name]
        score, gain = (mine[mine["comparator"].isna() == scored].iloc[0] for scored in (True, False))
        assert shown(score) in row
        assert f"{gain['value']:+.3f} [{gain['lo']:+.3f}, {gain['hi']:+.3f}]" in row
        assert ("chosen" in row) == bool(score["chosen"])


def test_differences_are_those_of_the_committed_tables():
    gained = pd.read_csv(ROOT / "tables/ptbxl-subset/pretraining.csv").query("task == 'macro' and head == 'logistic'")
    tuned = pd.read_csv(ROOT / "tables/ptbxl-subset/finetune_vs_linear.csv").query("task == 'macro'")
    few = pd.read_csv(ROOT / "tables/ptbxl-subset/label_efficiency_differences.csv")
    few = few.query("task == 'macro' and strategy == 'frozen' and weights == 'ssl-folds'")
    assert (len(gained), len(tuned), len(few)) == (5, 7, 5)
    rows = [row for table in (gained, tuned, few) for row in table.to_dict("records")]
    for row in rows:
        assert f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]" in RESULTS


def test_gains_of_post_training_are_those_of_the_committed_table():
    table = pd.read_csv(ROOT / "tables/ptbxl-subset/post_training_gains.csv")
    block = RESULTS.split("post_training_gains.csv -->")[1].split("<!-- end of post-training")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if "`" in line]
    assert len(rows) == len(table.drop_duplicates(["strategy", "fraction", "task"]))
    for name, share, group, *cells in rows:
        strategy = re.search(r"`([\w+]+)`", name).group(1)
        mine = table[(table["strategy"] == strategy) & (table["task"] == group)]
        mine = mine[(100 * mine["fraction"]).round() == float(share.removesuffix("%"))].set_index("metric")
        for cell, metric in zip(cells, ("auroc", "auprc"), strict=True):
            row = mine.loc[metric]
            text = f"{row['relative']:+.1%} [{row['relative_lo']:+.1%}, {row['relative_hi']:+.1%}]"
            assert cell == text + (" *" if row["p_holm"] < 0.05 else ""), (name, share, group)


def test_single_trainings_are_those_of_the_committed_predictions():
    rows = pd.read_parquet(ROOT / "results/predictions/ptbxl-subset/posttrain-leadcnn.parquet")
    rows["group"] = rows["task"].astype(str).str.split("/").str[0]
    rows["share"] = (100 * rows["fraction"]).round().astype(int)
    block = RESULTS.split("posttrain-leadcnn.parquet -->")[1].split("<!-- end of seeds")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if "`" in line]
    assert len(lines) == 7
    for name, share, group, *cells in lines:
        mine = rows[(rows["strategy"] == name.strip("`")) & (rows["group"] == group)]
        mine = mine[mine["share"] == int(share.removesuffix("%"))]
        by_task = mine.groupby(["seed", "task"], observed=True)
        auroc = by_task[["y", "score"]].apply(lambda one: roc_auc_score(one["y"], one["score"]))
        auroc = auroc[by_task["y"].sum() >= 10]  # as in every average of the study
        assert cells == [f"{value:.3f}" for value in auroc.groupby("seed").mean()], (name, share, group)


def test_scores_with_fewer_leads_are_those_of_the_committed_table():
    table = pd.read_csv(ROOT / "tables/ptbxl-subset/leads.csv", dtype={"leads": str}, keep_default_na=False)
    table = table[(table["task"] == "macro") & (table["metric"] == "auroc") & (table["strategy"] == "frozen")]
    table = table.astype({"value": float, "lo": float, "hi": float}).set_index(["weights", "pooling", "leads"])
    rows = [row for row in rows_between("leads.csv", "end of leads") if row[1]]
    assert len(rows) == 6
    for names, numbers in rows:
        leads = ["12", "6", "4", "3", "2", "1"][-len(numbers) :]
        assert numbers == [shown(table.loc[(*names, name)]) for name in leads], names


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("profile", config.profiles())
def test_every_profile_is_described(profile):
    assert f"| `{profile}` |" in README


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
