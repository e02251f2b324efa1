"""What a finished project shows: every stage has run (the notebooks' smoke test) and the pages are whole."""

import json
import re

import nbformat
import pandas as pd
import pytest
from conftest import TINY
from pages import faults

from cure import config, findings, report
from cure.errors import CureError


@pytest.fixture
def site(finished):
    return finished / "site" / "tiny"


def test_every_notebook_ran_without_an_error_and_left_no_trace_of_this_run(finished):
    for stage in config.STAGES:
        file = finished / "reports" / "tiny" / f"{findings.notebook_name(stage)}.ipynb"
        notebook = nbformat.read(file, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert outputs
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        text = file.read_text()
        assert str(finished) not in text, "a machine's path"
        assert not re.search(r"\bat 0x[0-9a-f]{6,}", text), "a memory address"


def test_pages_have_working_links_and_need_no_network(site):
    assert faults(site) == []
    pages = {page.name for page in site.glob("*.html")}
    assert {f"{findings.notebook_name(stage)}.html" for stage in config.STAGES} < pages
    assert "Not run" not in (site / "results.html").read_text()
    assert "(not " not in (site / "reporting.html").read_text(), "items that no page answers"
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    assert size < 10e6, f"{size / 1e6:.1f} MB"


def test_numbers_on_the_first_page_are_those_of_the_tables(finished, site):
    page = (site / "index.html").read_text()
    heads = pd.read_csv(finished / "tables" / "tiny" / "heads.csv")
    macro = heads[(heads["seed"].astype(str) == "mean") & (heads["task"] == "macro") & (heads["metric"] == "auroc")]
    features = macro[(macro["encoder"] == "ecg-features") & (macro["head"] == "logistic")].iloc[0]
    assert f"{features['value']:.3f} [{features['lo']:.3f}, {features['hi']:.3f}]" in page
    cohort = pd.read_csv(finished / "tables" / "tiny" / "cohort.csv")
    patients = cohort[(cohort["part"] == "all") & (cohort["variable"] == "patients")]["value"].item()
    assert f"{TINY['download']['n_records']} records of {patients:.0f} patients" in page
    assert TINY["summary"] in page


def test_every_table_and_figure_is_published_listed_and_described(finished, site):
    made = {file.name for file in (finished / "data/stages/tiny").glob("*/tables/*.csv")}
    assert {file.name for file in (finished / "tables/tiny").glob("*.csv")} == made | {"resources.csv"}
    page = (site / "index.html").read_text()
    for name in made:
        assert f'href="tables/{name.removesuffix(".csv")}.html"' in page
    for figure in (finished / "figures/tiny").glob("*.png"):
        assert f'src="figures/{figure.stem}.webp"' in page
        about = json.loads(figure.with_suffix(".json").read_text())
        assert len(about["caption"]) > 40
        assert about["table"] is None or f"{about['table']}.csv" in made
        assert figure.with_suffix(".svg").is_file()


def test_predictions_rebuild_the_published_scores(finished):
    from sklearn.metrics import roc_auc_score

    folder = finished / "results" / "predictions" / "tiny"
    predicted = pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("binary-*.parquet"))])
    heads = pd.read_csv(finished / "tables/tiny/heads.csv", dtype={"seed": str})
    chosen = heads[(heads["metric"] == "auroc") & (heads["task"] == "MI") & (heads["seed"] != "mean")]
    assert len(chosen) >= 5
    for row in chosen.itertuples():
        mine = predicted[
            (predicted["encoder"] == row.encoder)
            & (predicted["weights"] == row.weights)
            & (predicted["head"] == row.head)
            & (predicted["pooling"] == row.pooling)
            & (predicted["seed"] == int(row.seed))
            & (predicted["task"] == "MI")
        ]
        assert row.value == pytest.approx(roc_auc_score(mine["y"], mine["score"]), abs=1e-5)


def test_times_are_shown_and_kept_out_of_what_dvc_hashes(finished, site):
    cost = pd.read_csv(finished / "tables/tiny/resources.csv")
    assert cost["stage"].tolist() == list(config.STAGES)
    assert (cost["wall_s"] > 0).all()
    assert (cost["peak_rss_mb"] > 50).all()
    assert "resources.csv" in (finished / ".dvcignore").read_text()
    assert not (site / "tables" / "resources.csv").exists()
    assert f"{cost['wall_s'].iloc[0]:g}" in (site / "pipeline.html").read_text()


def test_rendering_what_has_not_run_says_what_to_do(project):
    with pytest.raises(CureError, match="no stage of profile tiny has run: `make repro PROFILE=tiny`"):
        report.render("tiny")
