"""The site in headless Chromium, at desktop and phone width: no error, no request, nothing wider than the screen."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install your system's chromium package"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-component-update"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_every_page_is_whole_at_any_width(reproduced, browser, width, height, scheme):
    pages = sorted((reproduced / "site" / "tiny").glob("*.html"))
    assert len(pages) >= 7
    for file in pages:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(file.as_uri())
        assert not said, f"{file.name}: {said}"
        assert all(url.startswith(("file:", "data:")) for url in asked), f"{file.name}: {asked}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{file.name} is wider than {width} px"
        for image in page.locator("img").all():
            image.scroll_into_view_if_needed()
        page.wait_for_function("[...document.images].every(image => image.complete)")
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert not broken, f"{file.name}: {broken}"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        page.close()


def test_a_keyboard_reaches_the_content_and_the_tables(reproduced, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((reproduced / "site" / "tiny" / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for region in page.locator("[role=region]").all():
        assert region.get_attribute("tabindex") == "0"
        assert region.get_attribute("aria-label")
    assert page.locator("h1").count() == 1
    page.close()
