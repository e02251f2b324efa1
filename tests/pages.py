"""What of a rendered site can be wrong without anyone looking: links, anchors, requests, names for screen readers."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class Page(HTMLParser):
    """What of a page can be wrong without anyone looking at it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.sources, self.ids, self.faults, self.tags = [], [], [], [], []
        self._headers = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if attrs.get("id") else []
        if tag == "a":
            self.links.append(attrs["href"])
        elif attrs.get("href") or attrs.get("src"):
            self.sources.append(attrs.get("href") or attrs["src"])
        if tag == "img" and not attrs.get("alt"):
            self.faults.append(f"no text for {attrs['src'][:60]}")
        if tag == "th" and attrs.get("scope") not in ("col", "row"):
            self.faults.append("a header cell without scope")
        if attrs.get("role") == "region" and not (attrs.get("aria-label") and attrs.get("tabindex") == "0"):
            self.faults.append("a region that has no name or that no keyboard reaches")


def faults(site: Path) -> list[str]:
    """Broken links and anchors, things from the network, and what a screen reader would stumble over."""
    pages = {file.relative_to(site).as_posix(): Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    found = []
    for name, page in pages.items():
        found += [f"{name}: {fault}" for fault in page.faults]
        found += [f"{name}: id {one} twice" for one in {one for one in page.ids if page.ids.count(one) > 1}]
        found += [f"{name}: no <{tag}>" for tag in ("main", "header", "nav", "footer") if tag not in page.tags]
        found += [f"{name}: {page.tags.count('h1')} <h1>"] if page.tags.count("h1") != 1 else []
        for target in page.sources + page.links:
            if target.startswith("data:,") or (target in page.links and target.startswith("https://")):
                continue
            path, _, anchor = target.partition("#")
            file = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name  # noqa: PTH118, PTH120
            if file.startswith("..") or re.match(r"[a-z]+:|//", target) or not (site / file).is_file():
                found.append(f"{name}: {target} is not in the site")
            elif anchor and unquote(anchor) not in pages[file].ids:
                found.append(f"{name}: {target} has no such anchor")
    return found
