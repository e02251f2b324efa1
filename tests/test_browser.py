"""The site in headless Chromium, at desktop and phone width: no error, no request, nothing wider than the screen."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from published import PROFILE, project_of

from cure import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install your system's chromium package"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make env`")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-component-update"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of the whole committed study."""
    folder, before = project_of(tmp_path_factory.mktemp("browsed") / "project"), Path.cwd()
    os.chdir(folder)
    try:
        report.render(PROFILE)
    finally:
        os.chdir(before)
    return folder / "site" / PROFILE


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_every_page_is_whole_at_any_width(site, browser, width, height, scheme):
    # Pages of tables differ in their data only: at desktop width a few of them stand for all.
    pages = sorted(site.glob("*.html")) + sorted((site / "tables").glob("*.html" if width < 1000 else "[hm]*.html"))
    assert len(pages) > 20
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for file in pages:
        page.goto(file.as_uri())
        assert not said, f"{file.name}: {said}"
        assert all(url.startswith(("file:", "data:")) for url in asked), f"{file.name}: {asked}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{file.name} is wider than {width} px"
        page.evaluate("[...document.images].forEach((one) => { one.loading = 'eager'; })")
        page.wait_for_function("[...document.images].every(image => image.complete)")
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert not broken, f"{file.name}: {broken}"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
    page.close()


def test_a_keyboard_reaches_the_content_and_the_tables(site, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    assert page.locator("main").count() == page.locator("h1").count() == 1
    page.close()


def columns(page, name):
    names = page.locator("#sheet thead th").all_text_contents()
    number = names.index(name) + 1
    return page.locator(f"#sheet tbody tr td:nth-child({number})").all_text_contents()


def test_a_large_table_sorts_filters_and_saves_as_the_file_that_it_was(site, browser, tmp_path):
    content = (site.parents[1] / "tables" / PROFILE / "heads.csv").read_bytes()
    table = pd.read_csv(site.parents[1] / "tables" / PROFILE / "heads.csv", dtype=str, keep_default_na=False)
    page = browser.new_page()
    page.goto((site / "tables" / "heads.html").as_uri())
    said = page.locator("#said")
    page.wait_for_function("!document.getElementById('tools').hidden")
    assert said.text_content() == f"40 of {len(table):,} rows shown"
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / "heads.csv")
    assert saved.value.suggested_filename == "heads.csv"
    assert (tmp_path / "heads.csv").read_bytes() == content

    header = page.locator("#sheet thead th", has_text="value")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    numbers = sorted(float(value) for value in table["value"] if value)
    assert [float(value) for value in columns(page, "value")] == numbers[:40]
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in columns(page, "value")] == numbers[::-1][:40]
    assert page.locator("#sheet [aria-sort]").count() == 1

    page.fill("#filter", "logistic macro-super")
    some = table[(table == "logistic").any(axis=1) & table.apply(lambda row: "macro-super" in " ".join(row), axis=1)]
    assert said.text_content() == f"40 of {len(some):,} rows shown ({len(table):,} in all)"
    assert set(columns(page, "task")) == {"macro-super"}
    page.click("#more")
    assert page.locator("#sheet tbody tr").count() == min(240, len(some))
    page.close()


def test_a_small_table_sorts_in_place_and_empty_cells_come_last(site, browser):
    page = browser.new_page()
    page.goto((site / "pipeline.html").as_uri())
    table = page.locator("table", has_text="wall time (s)").first
    table.locator("thead th", has_text="wall time").get_by_role("button").click()
    times = table.locator("tbody tr td:nth-child(3)").all_text_contents()
    known = [float(text) for text in times if text]
    assert known == sorted(known)
    assert times[: len(known)] == [text for text in times if text]
    assert "" in times, "some stages are not measured"
    page.close()
