"""HTML of tables and prose: header cells with a scope, scrolling boxes, and links that lead to pages of the site."""

import html
import numbers
import re

import pandas as pd
from nbconvert.filters import markdown2html

_NOTEBOOK = r"(\d\d[a-z]?_[a-z]+)\.ipynb"


def table(data: pd.DataFrame, label: str, row_headers: int = 1) -> str:
    """A table that sorts in the browser, inside a box of its own that scrolls.

    Parameters
    ----------
    data : DataFrame
        Its index is not shown.
    label : str
        What the table is, for a screen reader.
    row_headers : int
        So many leading columns name their row.
    """
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in data.columns)
    rows = []
    for values in data.itertuples(index=False):
        cells = [f'<th scope="row">{_text(value)}</th>' for value in values[:row_headers]]
        cells += [f"<td{_side(value)}>{_text(value)}</td>" for value in values[row_headers:]]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return box(
        f'<table class="data" data-sort><caption class="unseen">{html.escape(label)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>",
        label,
    )


def _text(value: object) -> str:
    if value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value))):
        return ""
    is_whole = isinstance(value, float) and value.is_integer()
    return f"{value:.0f}" if is_whole else html.escape(str(value))


def _side(value: object) -> str:
    return ' class="number"' if isinstance(value, numbers.Number) else ""


def box(inner: str, label: str) -> str:
    """A region that scrolls sideways by itself and that a keyboard reaches."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">{inner}</div>'


def markdown(text: str, profile: str, pages: set[str], label: str = "Table") -> str:
    """Prose of the report as HTML; see `local` for its links."""
    return local(boxed(scoped(markdown2html(text)), label), profile, pages)


def scoped(text: str) -> str:
    """Give header cells of tables that others wrote their scope, and drop their looks."""
    text = re.sub(r"<style scoped[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r'<table border="\d+" class="dataframe">', '<table class="data">', text)
    text = re.sub(r' style="text-align: ?\w+;?"', "", text)

    def sides(match: re.Match) -> str:
        # A column's name that is empty labels nothing.
        head = re.sub(r"<th>\s*</th>", "<td></td>", match[0])
        return re.sub(r"<th(?=[ >])(?![^>]*scope)", '<th scope="col"', head)

    text = re.sub(r"<thead>.*?</thead>", sides, text, flags=re.S)
    return re.sub(r"<th(?=[ >])(?![^>]*scope)", '<th scope="row"', text)


def boxed(text: str, label: str) -> str:
    """Put every table into a scrolling box."""
    return re.sub(r"<table.*?</table>", lambda match: box(match[0], label), text, flags=re.S)


def local(text: str, profile: str, pages: set[str]) -> str:
    """Point links to published files and notebooks at their pages; what is no page of the site becomes plain text.

    Parameters
    ----------
    text : str
        HTML of a page in the site's top folder.
    profile : str
        A profile's name.
    pages : set of str
        Paths of the pages that the site has, relative to its folder.
    """
    where = rf"\.\./\.\./{{}}/{re.escape(profile)}/([\w.+-]+?)\.(?:{{}})"
    text = re.sub(f'href="{where.format("tables", "csv")}"', r'href="tables/\1.html"', text)
    text = re.sub(f'href="{where.format("figures", "svg|png")}"', r'href="index.html#figure-\1"', text)
    text = re.sub(f'href="{_NOTEBOOK}(#[^"]*)?"', r'href="\1.html\2"', text)

    def kept(match: re.Match) -> str:
        target = match[1].partition("#")[0]
        outside = match[1].startswith(("https:", "http:", "mailto:", "#"))
        return match[0] if outside or target in pages else match[2]

    return re.sub(r'<a href="([^"]*)"[^>]*>(.*?)</a>', kept, text, flags=re.S)
