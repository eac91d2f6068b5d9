"""`report.html`: a tuning on one page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..data.files import encodable
from ..errors import in_one_line
from . import pictures
from .plot import DPI, SIZE, png
from .result import Disagreement, Tuned
from .sentence import command_line, python_lines, verdict
from .table import (
    CHOSEN,
    COLUMNS,
    FRONT,
    GIVEN,
    Column,
    boxes_given,
    chosen_for,
    figure,
    marks,
    share,
    short_format,
    whole_images,
)

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing comes from elsewhere, ever
_NAMES = 200  # of photographs that are listed
_HEADINGS = {
    "keep_ratio": "keep_ratio", "fitted": "agreement, fitted", "trained": "agreement, trained",
    "fitted_error": "emb. error, fitted", "trained_error": "emb. error, trained",
}  # fmt: skip

STYLE = f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --faint: #5c5c5c; --line: #d8d8d8; --panel: #f3f5f8;
  --mark: #e3effa; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16181d; --ink: #e8e8e8; --faint: #a8a8a8; --line: #363b45; --panel: #20242c; --mark: #1d3347; }}
}}
* {{ box-sizing: border-box; }}
html {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }}
body {{ max-width: 78rem; margin: 0 auto; padding: clamp(.8rem, 3vw, 1.8rem); }}
h1 {{ font-size: 1.5rem; margin: 0 0 .8rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.4rem 0 .6rem; }}
p {{ max-width: 48rem; margin: .5rem 0; overflow-wrap: anywhere; }}
.verdict {{ font-size: 1.15rem; border-left: 4px solid #0072b2; padding-left: .8rem; }}
pre {{ background: var(--panel); padding: .7rem .9rem; border-radius: 6px; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
p code {{ white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }}
thead th {{ vertical-align: bottom; color: var(--faint); font-weight: 600; }}
tbody th {{ font-weight: 500; }}
th:first-child {{ text-align: left; position: sticky; left: 0; background: var(--paper); padding-left: .4rem; }}
tr.chosen td, tr.chosen th:first-child {{ background: var(--mark); font-weight: 700; }}
tr.front th:first-child {{ box-shadow: inset 3px 0 0 #0072b2; }}
.facts td, .facts th {{ text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }}
.facts tbody th {{ color: var(--faint); font-weight: normal; position: static; min-width: 7rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .88rem; margin: .6rem 0; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0; color: var(--faint); }}
.chart img {{ display: block; width: 100%; min-width: 34rem; max-width: {round(SIZE[0] * DPI)}px; height: auto; }}
.masks {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; break-inside: avoid; }}
figure img {{ display: block; width: auto; height: auto; max-width: 100%; max-height: 26rem; }}
figcaption {{ font-size: .85rem; line-height: 1.4; margin-top: .3rem; overflow-wrap: anywhere; }}
.key {{ display: inline-block; width: 1.3em; height: .8em; border: 1px solid var(--faint); print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }}
.original {{ background: rgb{pictures.ORIGINAL}; }}
.tuned {{ background: rgb{pictures.TUNED}; }}
.prompt {{ background: rgb{pictures.PROMPT}; }}
summary {{ cursor: pointer; }}
ul {{ padding-left: 1.2rem; overflow-wrap: anywhere; font-size: .9rem; }}
@media (max-width: 36rem) {{
  .wide th:first-child {{ white-space: normal; min-width: 7rem; }}
  dl {{ grid-template-columns: 1fr; }}
  dd {{ margin-bottom: .3rem; }}
}}
@media print {{ html {{ font-size: 11px; }} .masks {{ grid-template-columns: repeat(3, 1fr); }} }}
"""


def page(tuned: Tuned) -> str:
    """The whole page, its pictures inside."""
    title = f"sam-bigltl tune: {text(tuned.about.get('checkpoint', 'a model'))}"
    body = [
        f'<p class="verdict">{text(verdict(tuned))}</p>',
        "<p>In Python:</p>",
        _code(python_lines(tuned)),
        *(["<p>On the command line:</p>", _code([command])] if (command := command_line(tuned)) else ()),
        "<h2>Settings</h2>",
        _settings(tuned),
        "<h2>Agreement against time</h2>",
        _chart(tuned),
        *_given(tuned),
        *_stages(tuned.stages),
        *_gallery(tuned.worst),
        "<h2>Photographs</h2>",
        *_photographs(tuned.photographs),
        "<h2>How it was measured</h2>",
        _facts(tuned),
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def text(value: Any) -> str:
    """Any value as HTML's text: names of files may hold any bytes, line breaks and signs that turn the line around."""
    return escape(encodable(in_one_line(str(value))))


def _code(lines: Sequence[str]) -> str:
    return f"<pre><code>{chr(10).join(map(text, lines))}</code></pre>"


def _table(heads: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]], label: str) -> str:
    """A table that scrolls on its own: of each row the class, the head and the cells, all of them HTML."""
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    lines = (
        f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>"
        f'<th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for kind, first, cells in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table></div>"
    )


# ---------------------------------------------------------------- what was measured
def _settings(tuned: Tuned) -> str:
    marked = marks(tuned)
    rows = []
    for row in whole_images(tuned):
        mark = marked[row.setting]
        kind = " ".join(["chosen"] * (CHOSEN in mark) + ["front"] * (FRONT in mark))
        words = f"{text(short_format(row.setting))}, {text(row.setting.ratio)}"
        words += " (chosen)" * (CHOSEN in mark) + f" {FRONT}" * (FRONT in mark)
        rows.append((kind, words, [text(column.cell(row)) for column in COLUMNS]))
    original = [figure(tuned.reference_seconds * 1e3, 1), "1.00x", *["-"] * (len(COLUMNS) - 2)]
    rows.append(("", "original", original))
    heads = ["format, keep_ratio", *(escape(column.heading) for column in COLUMNS)]
    return (
        f"<p>Chosen: {chosen_for(tuned)}. {FRONT} and the blue edge: on the Pareto front, no setting is both faster "
        f"and closer to the original.</p>\n{_table(heads, rows, 'Settings')}\n"
        f"<details><summary>What the columns are</summary>{_explained(COLUMNS)}</details>"
    )


def _explained(columns: Sequence[Column]) -> str:
    lines = "\n".join(f"<dt>{escape(each.heading)}</dt><dd>{escape(each.about)}</dd>" for each in columns)
    return f"<dl>\n{lines}\n</dl>"


def _chart(tuned: Tuned) -> str:
    front = "; ".join(f"{row.setting}: {1e3 * row.seconds:.1f} ms, {share(row.agreement)}" for row in tuned.front())
    words = f"Agreement against encoder time. The Pareto front, the fastest first: {front}. {verdict(tuned)}"
    light, dark = (data("png", png(tuned, dark)) for dark in (False, True))
    return (
        f'<div class="wide chart" tabindex="0" role="region" aria-label="Plot"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" width="{round(SIZE[0] * DPI)}" height="{round(SIZE[1] * DPI)}" alt="{text(words)}">'
        "</picture></div>"
    )


def _given(tuned: Tuned) -> list[str]:
    rows = [
        ("", f"{text(short_format(row.setting))}, {text(row.setting.ratio)}", [text(each.cell(row)) for each in GIVEN])
        for row in boxes_given(tuned)
    ]
    if not rows:
        return []
    heads = ["format, keep_ratio", *(escape(column.heading) for column in GIVEN)]
    about = (
        "<p>With <code>set_image(image, boxes=[box])</code> or <code>--focus</code> each box has an encoding of its "
        "own, whose big tokens are sought in it. Such settings are measured beside the others and never chosen.</p>"
    )
    return ["<h2>Boxes given</h2>", about, _table(heads, rows, "Boxes given")]


def _stages(stages: Sequence[dict[str, Any]]) -> list[str]:
    if not stages:
        return []
    first, *names = list(stages[0])
    heads = [text(_HEADINGS.get(name, name)) for name in (first, *names)]
    rows = [("", text(stage.get(first)), [_value(stage.get(name)) for name in names]) for stage in stages]
    return ["<h2>Before and after training</h2>", _table(heads, rows, "Before and after training")]


def _value(value: Any) -> str:
    return figure(value, 3) if isinstance(value, float) or value is None else text(value)


# ---------------------------------------------------------------- photographs
def _gallery(worst: Sequence[Disagreement]) -> list[str]:
    if not worst:
        return []
    keys = (
        '<p><span class="key original"></span> only in the original&rsquo;s mask &nbsp; '
        '<span class="key tuned"></span> only in the tuned model&rsquo;s &nbsp; <span class="key prompt"></span> the '
        "prompt. Outlines have the same colours, the original&rsquo;s are wider; what both masks have is left as "
        "it is.</p>"
    )
    shown = "\n".join(map(_disagreement, worst))
    return ["<h2>Where the masks differ most</h2>", keys, f'<div class="masks">\n{shown}\n</div>']


def _disagreement(found: Disagreement) -> str:
    content, (width, height) = pictures.jpeg(found)
    name, score = text(found.photograph), f"IoU {share(found.iou)}"
    part = found.tuned.sum() / max(1, found.original.sum())
    return (
        f'<figure><img src="{data("jpeg", content)}" width="{width}" height="{height}" '
        f'alt="Both masks of a {text(found.kind)} over {name}: {score}, the tuned one {part:.2f} times as large">'
        f"<figcaption><strong>{score}</strong>, {text(found.kind)}<br>{name}</figcaption></figure>"
    )


def _photographs(photographs: dict[str, Any]) -> list[str]:
    lines = []
    for kind, words in (("fit", "fitted to"), ("measure", "measured on")):
        names = list(photographs.get(kind, ()))
        if names:
            lines.append(f"<details><summary>{len(names)} {words}</summary>{_names(names)}</details>")
        else:
            lines.append(f"<p>None {words}.</p>")
    if copies := photographs.get("near_copies"):
        lines.append(f"<p>{text(copies)} near copies of others are left out.</p>")
    if skipped := photographs.get("skipped"):
        names = [f"{name}: {reason}" for name, reason in skipped.items()]
        lines.append(f"<details open><summary>{len(names)} could not be used</summary>{_names(names)}</details>")
    return lines


def _names(names: Sequence[str]) -> str:
    items = [f"<li>{text(name)}</li>" for name in names[:_NAMES]]
    items += [f"<li>and {len(names) - _NAMES} more, in tune.json</li>"] * (len(names) > _NAMES)
    return f"<ul>{''.join(items)}</ul>"


def _facts(tuned: Tuned) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in tuned.about.items()
    )
    return (
        "<p>Times are medians of encoder passes in which all settings and the original take turns. The masks of both "
        "models are of the same boxes and points, of objects that the original itself finds.</p>\n"
        f'<table class="facts">\n<tbody>\n{rows}\n</tbody>\n</table>'
    )


def data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
