"""The pages that a reviewer opens, rendered from the committed study: whole, linked, true to the tables, and small."""

import base64
import csv
import gzip
import html
import io
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from pages import Page, faults
from PIL import Image
from published import PROFILE, project_of
from pydantic import ValidationError

from cure import claims, config, contents, findings, paths, report, verify
from cure.site import answers, browse, items, markup, pictures, pipeline

#: Enough of the study for every kind of page, and little enough for seconds.
STAGES = ["prepare", "embed", "heads", "efficiency"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return project_of(tmp_path_factory.mktemp("published") / "project", STAGES)


@pytest.fixture(scope="module")
def site(project):
    before = Path.cwd()
    os.chdir(project)
    try:
        missing = report.render(PROFILE)
    finally:
        os.chdir(before)
    assert missing == [stage for stage in config.STAGES if stage not in STAGES]
    return project / "site" / PROFILE


def test_links_anchors_headers_and_pictures_are_whole_and_nothing_needs_the_network(site):
    assert faults(site) == []
    for page in site.rglob("*.html"):
        assert "base64," not in page.read_text(), "a picture inside a page"
    style = (site / "style.css").read_text()
    assert "@import" not in style
    assert "url(" not in style
    assert "fetch(" not in (site / "site.js").read_text()


def test_the_checker_sees_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text(
        '<header></header><nav></nav><main><h1 id="x">A</h1><a href="b.html">b</a><a href="#y">y</a><a href="#x">x</a>'
        '<img src="https://example.org/x.png"><table><tr><th>h</th></tr></table></main><footer></footer>'
    )
    said = "\n".join(faults(tmp_path))
    for fault in ("b.html is not in the site", "#y has no such anchor", "x.png is not in the site", "no text for"):
        assert fault in said
    assert "without scope" in said
    assert "#x" not in said


def test_what_has_not_run_is_said_with_its_command_and_linked_nowhere(site):
    page = (site / "index.html").read_text()
    command = f"make repro PROFILE={PROFILE}"
    assert "Not run yet: download, pretrain, ablations" in page
    assert page.count(command) > len(config.STAGES) - len(STAGES)
    assert not (site / "09_explain.html").exists()
    assert "09_explain.html" not in page
    results = (site / "results.html").read_text()
    assert f"Not run: no table &#39;finetune_vs_linear&#39; of stage finetune: `{command}` makes it" in results
    assert 'id="main-table"' in results
    assert "notebook 09_explain (not run)" in (site / "reporting.html").read_text()


def test_with_nothing_run_there_is_nothing_to_render(tmp_path, monkeypatch):
    folder = project_of(tmp_path / "empty", STAGES[:1])
    shutil.rmtree(folder / "data")
    monkeypatch.chdir(folder)
    with pytest.raises(Exception, match=f"no stage of profile {PROFILE} has run: `make repro PROFILE={PROFILE}`"):
        report.render(PROFILE)


def test_rendering_again_gives_the_same_bytes(project, site, tmp_path, monkeypatch):
    before = {file.relative_to(site): file.read_bytes() for file in site.rglob("*") if file.is_file()}
    (project / "results/resources" / PROFILE / "heads.json").write_text(
        (ROOT / "results/resources" / PROFILE / "heads.json").read_text().replace('"wall_s": ', '"wall_s": 1')
    )
    monkeypatch.chdir(project)
    report.render(PROFILE)
    after = {file.relative_to(site): file.read_bytes() for file in site.rglob("*") if file.is_file()}
    assert before.keys() == after.keys()
    changed = {str(name) for name in before if before[name] != after[name]}
    assert changed == {"pipeline.html", "pipeline.svg"}, "times are shown in files that nothing hashes, and only there"
    ignored = (ROOT / ".dvcignore").read_text()
    assert all(f"/site/*/{name}" in ignored for name in changed)


def test_every_table_is_there_byte_for_byte_and_its_first_rows_are_plain_html(project, site):
    files = sorted((project / "tables" / PROFILE).glob("*.csv"))
    names = {file.stem for file in files} - {"resources"}
    assert {page.stem for page in (site / "tables").glob("*.html")} == names
    sizes = []
    for name in names:
        content = (project / "tables" / PROFILE / f"{name}.csv").read_bytes()
        page = (site / "tables" / f"{name}.html").read_text()
        packed = re.search(r'id="packed">([^<]+)<', page)
        assert packed is None or gzip.decompress(base64.b64decode(packed[1])) == content
        beside = site / "tables" / f"{name}.csv"
        assert beside.is_file() or packed
        assert not beside.is_file() or beside.read_bytes() == content
        sizes.append(bool(beside.is_file()))
        rows = list(csv.reader(io.StringIO(content.decode())))
        body = re.search(r'<table id="sheet".*?<tbody>(.*?)</tbody>', page, flags=re.S)[1]
        shown = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
        assert len(shown) == min(browse.SHOWN, len(rows) - 1)
        assert [cell.replace("&#39;", "'").replace("&amp;", "&") for cell in shown[0]] == rows[1]
        index = (site / "index.html").read_text()
        assert f'href="tables/{name}.html"' in index
    assert set(sizes) == {True, False}, "both kinds of tables were tried"


def test_a_table_that_no_list_describes_is_named_after_its_section(project, site):
    described = re.findall(
        r'tables/(\w+)\.html">\w+</a></th><td class="long">([^<]+)</td>', (site / "index.html").read_text()
    )
    assert len(described) > 10
    assert dict(described)["heads"] == contents.TABLES["heads"]
    assert all(len(about) > 10 for _, about in described)
    notebook = nbformat.read(project / "reports" / PROFILE / "05_heads.ipynb", as_version=4)
    from cure.site.executed import Executed

    one = Executed("heads", notebook)
    assert one.section_of(one.cell_of_table("null")) == "What chance can do"
    assert one.cell_of_table("nope") is None
    assert one.section_of(None) == one.title == "Heads: light classifiers on frozen representations"
    assert one.question.startswith("How far do light classifiers")


def test_pictures_are_stored_once_and_without_loss(project, site):
    pngs = {file.stem: file for file in (project / "figures" / PROFILE).glob("*.png")}
    assert {file.stem for file in (site / "figures").iterdir()} == set(pngs), "notebooks brought no second copies"
    for name, png in pngs.items():
        ours, theirs = (np.asarray(Image.open(file).convert("RGBA")) for file in (site / f"figures/{name}.webp", png))
        assert np.array_equal(ours, theirs)
    assert sum(file.stat().st_size for file in (site / "figures").iterdir()) < 0.6 * sum(
        file.stat().st_size for file in pngs.values()
    )


def test_a_picture_that_is_see_through_stays_so(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 4), dtype=np.uint8), "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    gallery = pictures.Gallery(tmp_path)
    picture = gallery.add(buffer.getvalue())
    assert gallery.add(buffer.getvalue(), "other name") is picture
    assert (picture.width, picture.height) == (7, 9)
    assert np.array_equal(np.asarray(Image.open(tmp_path / picture.path)), np.asarray(image))


def test_every_figure_leads_to_its_caption_its_data_and_the_cell_that_drew_it(project, site):
    index = (site / "index.html").read_text()
    for png in (project / "figures" / PROFILE).glob("*.png"):
        figure = re.search(rf'<figure id="figure-{png.stem}">.*?</figure>', index, flags=re.S)[0]
        about = pd.read_json(png.with_suffix(".json"), typ="series")
        assert about["caption"][:25] in html.unescape(figure)
        assert about["table"] is None or f'href="tables/{about["table"]}.html"' in figure
        notebook, cell = re.search(r'href="(\d\d\w?_\w+)\.html#(cell-\d+)"', figure).groups()
        drawn = nbformat.read(project / "reports" / PROFILE / f"{notebook}.ipynb", as_version=4)
        (source,) = [one.source for one in drawn.cells if one.id == cell]
        assert "plots.save(" in source
        assert png.stem in source


def test_answers_hold_the_numbers_of_the_tables_and_name_them(site):
    index = (site / "index.html").read_text()
    folder = ROOT / "tables" / PROFILE
    found = answers.answers(PROFILE, folder)
    assert len(found) >= 8, "the whole study answers every question"
    for one in found:
        assert (folder / f"{one.table}.csv").is_file()
    table = pd.read_csv(folder / "label_efficiency_differences.csv")
    row = table[
        (table["encoder"] == "leadcnn")
        & (table["weights"] == "ssl-folds")
        & (table["strategy"] == "frozen")
        & (table["task"] == "macro")
        & (table["fraction"] == table["fraction"].min())
    ]
    assert len(row) == 2
    for value, lo, hi in row[["value", "lo", "hi"]].to_numpy():
        assert f"{value:+.3f} [{lo:+.3f}, {hi:+.3f}]" in index


@pytest.mark.parametrize(
    ("value", "p_holm", "verdict"),
    [(0.05, 0.01, "is worse than"), (-0.05, 0.01, "is better than"), (-0.05, 0.2, "cannot be told apart from")],
)
def test_an_answer_follows_its_number(tmp_path, value, p_holm, verdict):
    row = {"encoder": "e", "weights": "w", "task": "macro", "metric": "auroc", "comparator": "linear probe"}
    pd.DataFrame([{**row, "value": value, "lo": value - 0.01, "hi": value + 0.01, "p_holm": p_holm}]).to_csv(
        tmp_path / "finetune_vs_linear.csv", index=False
    )
    (one,) = answers.answers("demo", tmp_path)
    assert f"{verdict} the same encoder trained whole" in one.text
    assert f"{value:+.3f} [{value - 0.01:+.3f}, {value + 0.01:+.3f}]" in one.text


def test_the_answer_about_post_training_counts_what_holds_with_the_most_labels(tmp_path):
    key = {"encoder": "e", "strategy": "preview+depth", "comparator": "full", "metric": "auroc"}
    values = {("super", 1.0): (0.04, 0.01), ("all", 1.0): (0.01, 0.3), ("form", 0.1): (0.2, 0.01)}
    rows = [
        {**key, "task": task, "fraction": share, "value": value, "lo": value - 0.02, "hi": value + 0.02, "p_holm": p}
        for (task, share), (value, p) in values.items()
    ]
    pd.DataFrame([*rows, {**rows[0], "strategy": "full+decay", "value": 0.5}]).to_csv(
        tmp_path / "post_training_gains.csv", index=False
    )
    (one,) = answers.answers("demo", tmp_path)
    assert "+0.010 [-0.010, +0.030] (label group all) and +0.040 [+0.020, +0.060] (label group super)" in one.text
    assert "better in 1 of 2 label groups" in one.text


def test_the_answer_about_leads_spans_its_configurations(tmp_path):
    key = {"encoder": "e", "weights": "selection", "pooling": "adaptive", "strategy": "frozen", "against": "alone"}
    values = {"12": (12, 0.2, 0.01), "6": (6, -0.03, 0.01), "II": (1, 0.02, 0.5)}
    rows = [
        {**key, "task": "macro", "metric": "auroc", "leads": leads, "n_leads": n, "value": value, "p_holm": p_holm}
        for leads, (n, value, p_holm) in values.items()
    ]
    pd.DataFrame(rows).assign(lo=lambda t: t["value"] - 0.01, hi=lambda t: t["value"] + 0.01).to_csv(
        tmp_path / "leads_differences.csv", index=False
    )
    (one,) = answers.answers("demo", tmp_path)
    assert "by -0.030 [-0.040, -0.020] (leads: 6) to +0.020 [+0.010, +0.030] (leads: II)" in one.text
    assert "1 of 2 can be told apart" in one.text


def test_claims_about_measured_times_stand_where_nothing_is_hashed(project, site, monkeypatch):
    monkeypatch.chdir(project)
    measured = {claim.id for claim in claims.load() if claim.measured}
    assert measured
    index, page = ((site / name).read_text() for name in ("index.html", "pipeline.html"))
    judged = claims.judged(PROFILE, measured=paths.resources(PROFILE)).set_index("id")
    for name in measured:
        row = re.search(rf'<tr id="claim-{name}">.*?</tr>', page, flags=re.S)[0]
        assert f">{judged['status'][name]}</span>" in row, name
        assert f'id="claim-{name}"' not in index


def test_claims_about_measured_times_are_judged_as_verify_judges_them(project, site, monkeypatch):
    """By what was measured, not NOT RUN; here by made-up numbers in the place of the committed ones."""
    monkeypatch.chdir(project)
    cost = paths.resources(PROFILE) / "leads_cost.csv"
    before = cost.read_bytes() if cost.is_file() else None
    rows = [{"way": "selected", "leads": 1, "peak_mb": 1, "cpu_s": 9}, {"way": "zero-filled", "leads": 12}]
    pd.DataFrame([rows[0], {**rows[1], "peak_mb": 10, "cpu_s": 10}]).assign(gpu_peak_mb=np.nan, gpu_s=np.nan).to_csv(
        cost, index=False
    )
    try:
        report.render(PROFILE)
        page = (project / "site" / PROFILE / "pipeline.html").read_text()
    finally:
        cost.unlink() if before is None else cost.write_bytes(before)
        report.render(PROFILE)
    expected = {"memory": claims.HOLDS, "time": claims.FAILS}
    for kind, status in expected.items():
        row = re.search(rf'<tr id="claim-selection-cpu-{kind}">.*?</tr>', page, flags=re.S)[0]
        assert f">{status}</span>" in row
    assert re.search(rf'<tr id="claim-selection-gpu-time"><td><span[^>]*>{claims.NOT_RUN}<', page)


def test_how_to_check_the_artifact_is_said_for_every_depth(site):
    index = (site / "index.html").read_text()
    said = re.search(r"<p[^>]*>The artifact itself.*?</p>", index, flags=re.S)[0]
    for depth in verify.DEPTHS:
        option = "" if depth == verify.DEPTHS[0] else f" --depth {depth}"
        assert f"<code>cure verify --profile {PROFILE}{option}</code>" in said
    for outcome in ("PASS", "FAIL", "SKIPPED", "seconds", "minutes", "as long as the pipeline takes"):
        assert outcome in said


def test_counting_of_claims_that_are_elsewhere(site, project, monkeypatch):
    monkeypatch.chdir(project)
    index, measured = (site / "index.html").read_text(), [claim for claim in claims.load() if claim.measured]
    assert f"{len(measured)} more are about time and memory" in index


def test_claims_have_the_status_that_verify_gives_them(project, site, monkeypatch):
    monkeypatch.chdir(project)
    hashed = {claim.id for claim in claims.load() if not claim.measured}
    judged = claims.judged(PROFILE)
    judged = judged[judged["id"].isin(hashed)]
    index = (site / "index.html").read_text()
    for one in judged.itertuples():
        row = re.search(rf'<tr id="claim-{one.id}">.*?</tr>', index, flags=re.S)[0]
        assert f">{one.status}</span>" in row
        assert f"<code>{one.command}</code>, {claims.time(one.minutes)}" in row
        assert f"<code>{one.id}</code>" in row
        assert one.rows in html.unescape(row)
    assert {claims.NOT_RUN, claims.HOLDS} <= set(judged["status"])


def test_without_a_file_of_claims_nothing_is_judged(tmp_path, monkeypatch):
    folder = project_of(tmp_path / "project", ["prepare"])
    (folder / "claims.yaml").unlink()
    monkeypatch.chdir(folder)
    report.render(PROFILE)
    assert "Not judged" in (folder / "site" / PROFILE / "index.html").read_text()
    assert faults(folder / "site" / PROFILE) == []


# --- checklists ---------------------------------------------------------------------------------------------


def test_checklists_are_whole():
    tripod, claim = items.checklists()
    assert sorted({int(re.match(r"\d+", one.item)[0]) for one in tripod.items}) == list(range(1, 28))
    assert len(tripod.items) == 52
    assert len({one.item for one in tripod.items}) == 52
    assert len({one.section for one in claim.items}) == 5, "parts 2 and 3 are one in its table"
    for checklist in (tripod, claim):
        assert sum(checklist.counts.values()) == len(checklist.items)


def test_checklists_name_pages_that_a_whole_study_has(site):
    """Anchors are looked up in what was rendered here; notebooks and tables in what all stages make."""
    notebooks = {f"{findings.notebook_name(stage)}.html" for stage in config.STAGES}
    tables = {f"tables/{name}.html" for name in contents.TABLES}
    for checklist in items.checklists():
        for target in {target for one in checklist.items for target in one.where}:
            page, _, anchor = target.partition("#")
            assert page in notebooks | tables or (site / page).is_file(), target
            assert not anchor or anchor in Page((site / page).read_text()).ids, target


def test_an_answer_without_a_place_is_refused():
    with pytest.raises(ValidationError, match="item 1 is answered, so it needs a page"):
        items.Item(item="1", section="s", asks="a", status="answered", answer="yes", where=())


# --- the pipeline as a graph --------------------------------------------------------------------------------

PIPELINE = """
stages:
  first: {cmd: a, outs: [data/a, data/b]}
  second: {cmd: "b ${item.profile}", deps: [data/a/file.csv, code.py], outs: ["data/c/${item.profile}"]}
  third: {cmd: c, deps: [data/c/demo, data/b], outs: [{out: {cache: false}}]}
"""


def test_the_graph_follows_from_what_stages_read_and_write(tmp_path):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    graph = pipeline.stages(tmp_path / "dvc.yaml", "demo")
    assert [(one.name, one.command, one.needs) for one in graph] == [
        ("first", "a", ()),
        ("second", "b demo", ("first",)),
        ("third", "c", ("second", "first")),
    ]
    assert pipeline.levels(graph) == {"first": 0, "second": 1, "third": 2}
    assert pipeline.direct(graph) == [("first", "second"), ("second", "third")], "first to third goes without saying"


def test_the_graph_shows_time_and_memory_and_is_well_formed(tmp_path):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    graph = pipeline.stages(tmp_path / "dvc.yaml", "demo")
    cost = pd.DataFrame({"stage": ["second"], "wall_s": [754.0], "cpu_s": [900.0], "peak_rss_mb": [2345]})
    root = ElementTree.fromstring(pipeline.draw(graph, cost, {"second": "02_second.html"}))
    text = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "13 min · 2.3 GB" in text
    assert text.count("not measured") == 2
    assert [one.get("href") for one in root.iter("{http://www.w3.org/2000/svg}a")] == ["02_second.html"]
    boxes = [one for one in root.iter("{http://www.w3.org/2000/svg}rect") if one.get("class") is None]
    width, height = map(float, root.get("viewBox").split()[2:])
    for box in boxes:
        assert float(box.get("x")) + float(box.get("width")) <= width
        assert float(box.get("y")) + float(box.get("height")) <= height
    assert len({(box.get("x"), box.get("y")) for box in boxes}) == 3


def test_the_pipeline_page_lists_every_stage_of_dvc_yaml(site):
    page = (site / "pipeline.html").read_text()
    graph = pipeline.stages(ROOT / "dvc.yaml", PROFILE)
    for stage in graph:
        assert f'<th scope="row">{stage.name}</th>' in page
        assert stage.command in page
    place = {one.name: i for i, one in enumerate(graph)}
    assert {one.needs for one in graph if one.name == "download"} == {("clean",)}
    assert all(place[other] < place[one.name] for one in graph for other in one.needs)


# --- markup ---------------------------------------------------------------------------------------------------


def test_links_of_prose_lead_to_pages_and_what_is_no_page_becomes_text():
    text = (
        '<a href="../../tables/p/heads.csv">t</a> <a href="../../figures/p/one.svg">f</a> '
        '<a href="05_heads.ipynb">n</a> '
        '<a href="09_explain.ipynb">gone</a> <a href="../README.md">read</a> <a href="https://doi.org/x">d</a>'
    )
    pages = {"tables/heads.html", "index.html", "05_heads.html"}
    assert markup.local(text, "p", pages) == (
        '<a href="tables/heads.html">t</a> <a href="index.html#figure-one">f</a> <a href="05_heads.html">n</a> '
        'gone read <a href="https://doi.org/x">d</a>'
    )


def test_tables_of_notebooks_get_scopes_and_a_box():
    frame = pd.DataFrame({"a": [1.5]}, index=pd.Index(["x"], name="row"))
    text = markup.boxed(markup.scoped(frame.to_html()), "T")
    assert '<th scope="col">a</th>' in text
    assert '<th scope="row">x</th>' in text
    assert text.startswith('<div class="scroll" tabindex="0" role="region" aria-label="T"><table class="data">')
    ours = markup.table(pd.DataFrame({"who": ["a<b"], "n": [3.0], "gap": [None]}), "T & U")
    assert '<th scope="row">a&lt;b</th><td class="number">3</td><td></td>' in ours
    assert "T &amp; U" in ours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_both_schemes():
    """WCAG 2.1 AA: at least 4.5 to 1."""
    style = (ROOT / "cure/templates/style.css").read_text()
    schemes = re.findall(r":root \{([^}]*)\}", style)
    assert len(schemes) == 2
    for scheme in schemes:
        colour = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for ground in ("page", "box"):
            for ink in ("ink", "soft", "link", "good", "bad", "open"):
                light, dark = sorted((luminance(colour[ink]), luminance(colour[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_the_answer_about_scoring_compares_equal_prevalences(tmp_path):
    steps = {"within parts": (0.49, 0.08), "balanced cohort": (0.5, 0.51), "released": (0.49, 0.55)}
    about = {"head": "logistic", "labels": "shuffled", "task": "macro", "sample": "mean"}
    rows = [
        {**about, "protocol": step, "metric": metric, "value": value}
        for step, both in steps.items()
        for metric, value in zip(("auroc", "f1"), both, strict=True)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "protocols.csv", index=False)
    (one,) = answers.answers("demo", tmp_path)
    assert "from 0.510 to 0.550" in one.text and "0.080" not in one.text


def test_an_interval_that_excludes_zero_is_named_where_the_correction_overrules_it(tmp_path):
    row = {"task": "macro", "metric": "auroc", "encoder": "e", "weights": "w", "comparator": "linear probe"}
    for lo, p_holm, said in ((0.002, 1, True), (-0.002, 1, False), (0.002, 0.01, False)):
        table = pd.DataFrame([{**row, "value": 0.01, "lo": lo, "hi": 0.02, "p_holm": p_holm}])
        table.to_csv(tmp_path / "finetune_vs_linear.csv", index=False)
        (one,) = answers.answers("demo", tmp_path)
        assert ("though the interval alone excludes zero" in one.text) == said
