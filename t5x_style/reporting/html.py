"""The parts of a self-contained HTML page: the frame, a figure with a caption, a table."""

import html
from collections.abc import Sequence

from t5x_style.files import MARK

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
          gap: 1.2rem; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e4e4e4; text-align: left;
         vertical-align: top; }
td.number, th.number { text-align: right; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
.note { color: #555; }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A page that needs no other file. `sections` are HTML; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{MARK}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def captioned(title: str, svg: str) -> str:
    """An SVG under its title, which is also its label for screen readers."""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    return f"<figure><figcaption>{html.escape(title)}</figcaption>\n{labelled}</figure>"


def html_table(headers: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """A table of texts, with numbers flush right and a dash for None."""

    def cell(tag: str, text: str | None) -> str:
        text = "-" if text is None else text
        kind = ' class="number"' if tag == "td" and text[:1].isdigit() else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", header) for header in headers)
    body = "\n".join("<tr>" + "".join(cell("td", text) for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'
