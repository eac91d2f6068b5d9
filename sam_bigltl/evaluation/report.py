"""`report.html`: an evaluation on one page that needs no other file, to look at, to print and to send on."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..data.coco import Annotation, CocoImage, read_photo
from ..data.files import whole_file
from ..errors import InputError
from .results import InstanceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THUMBNAILS = 20  # of the worst and of the best masks
SIDE = 220  # of a thumbnail's longer side, pixels
SCATTER = 2000  # masks up to which each is a dot; beyond, dots would hide each other

# Rare on photographs, and apart in lightness, too: for colour-blind eyes and grey prints.
PREDICTION, TARGET, CASING = (214, 0, 147), (255, 230, 0), (30, 30, 30)
OPACITY = 0.45

# Okabe and Ito's colours, less yellow, with markers for grey prints.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Column of the summary -> heading, number of decimals (None: as it is).
COLUMNS = {
    "keep_ratio": ("keep ratio", None),
    "prompt": ("prompt", None),
    "clicks": ("clicks", None),
    "all": ("mIoU, %", 1),
    "small": ("small", 1),
    "medium": ("medium", 1),
    "large": ("large", 1),
    "instances": ("instances", None),
    "images": ("images", None),
    "encoder_ms": ("encoder, ms", 1),
    "seconds": ("total, s", 1),
}

STYLE = f"""
html {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }}
body {{ max-width: 66rem; margin: 0 auto; padding: 1.5rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .5rem; }}
p {{ max-width: 50rem; margin: .5rem 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }}
.settings th, .settings td {{ text-align: left; overflow-wrap: anywhere; }}
.settings th {{ font-weight: normal; color: #555; white-space: nowrap; }}
.chart {{ display: block; width: 100%; height: auto; }}
.masks {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({SIDE}px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; break-inside: avoid; }}
figure img {{ display: block; height: {SIDE}px; width: {SIDE}px; object-fit: contain; object-position: left bottom; }}
figcaption {{ font-size: .8rem; line-height: 1.35; margin-top: .25rem; overflow-wrap: anywhere; }}
.key {{ display: inline-block; width: 1.5em; height: .8em; vertical-align: baseline; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }}
.prediction {{ background: rgb{PREDICTION}; opacity: {OPACITY}; }}
.target {{ border: 3px solid rgb{TARGET}; outline: 1px solid rgb{CASING}; box-sizing: border-box; }}
@media print {{
  html {{ font-size: 11px; }}
  body {{ max-width: none; padding: 0; }}
  h2, .keys {{ break-after: avoid; }}
  .masks {{ grid-template-columns: repeat(5, 1fr); gap: .8rem; }}
  figure img {{ width: 100%; height: auto; max-height: 40mm; }}
}}
"""


def check_matplotlib() -> None:
    """Raise InputError if matplotlib is missing: to be called before the evaluation's work, not at its end."""
    _figure(1, 1)


def write_report(
    path: str | Path,
    settings: dict[str, Any],
    summary: Sequence[dict[str, Any]],
    results: Sequence[InstanceResult],
    images: Sequence[CocoImage],
    folder: str | Path,
) -> None:
    """Write an evaluation as one HTML file with all its pictures inside.

    Single masks are those of one setting: the first prompt at its first keep ratio and last number of clicks.

    Args:
        path: of the HTML file; it appears only when it is complete.
        settings: the flags, shown as they are.
        summary: `evaluate`'s, at least one row; where a row has `encoder_ms` (the encoder's median time per image in
            milliseconds at its keep ratio), it is drawn.
        results: of all settings; those drawn need their `counts`.
        images: what `load_coco` returned for this evaluation.
        folder: where the images' files are.

    Raises:
        InputError: matplotlib is missing, a photograph cannot be read or the file cannot be written.
        ValueError: a result that is to be drawn has no `counts`.
    """
    prompt, ratio, clicks = shown = _shown_setting(summary)
    of_ratio: dict[float | str, list[float]] = {}  # the shown prompt's IoUs at every keep ratio
    for result in results:
        if (result.prompt, result.clicks) == (prompt, clicks):
            of_ratio.setdefault(result.keep_ratio, []).append(result.iou)
    masks = [result for result in results if (result.prompt, result.keep_ratio, result.clicks) == shown]
    masks.sort(key=lambda result: result.iou)  # stable: equal IoUs stay in the evaluation's order
    iou, predicted = (np.array([getattr(mask, name) for mask in masks]) for name in ("iou", "predicted_iou"))
    name = f"{_line_name(prompt, clicks)}, keep ratio {ratio}"
    agreement, described = _agreement(iou, predicted)

    body = [
        "<h2>Summary</h2>",
        _summary_table(summary),
        "<p>mIoU is the mean over instances, in percent. By the annotations&rsquo; own area, small is up to "
        "32&sup2; square pixels, medium 32&sup2; to 96&sup2; and large from 96&sup2; on, both ends included. The "
        "encoder&rsquo;s time is the median per image, the total that of encoder and decoder in this row.</p>",
        "<h2>Accuracy against keep ratio and encoder time</h2>",
        _chart(_curves(summary), "mIoU in percent against keep ratio and against encoder time; numbers in the summary"),
        f"<h2>IoU of single masks: {escape(name)}</h2>",
        _chart(_distributions(of_ratio, ratio, iou, predicted), f"IoU histogram; predicted by real IoU. {described}"),
        f"<p>{agreement}</p>",
        *_galleries(masks, name, images, Path(folder)),
        "<h2>Settings</h2>",
        _settings_table(settings),
    ]
    model = settings.get("model") or settings.get("checkpoint") or "a model"
    with whole_file(Path(path)) as stream:
        stream.write(_page(f"Evaluation of {model}", body))


# ---------------------------------------------------------------- text
def _shown_setting(summary: Sequence[dict[str, Any]]) -> tuple[str, float | str, int]:
    first = summary[0]
    kind = first["prompt"], first["keep_ratio"]
    return *kind, [row["clicks"] for row in summary if (row["prompt"], row["keep_ratio"]) == kind][-1]


def _line_name(prompt: str, clicks: int) -> str:
    plural = "click" if clicks == 1 else "clicks"
    if prompt == "box":
        return f"box and {clicks} {plural}" if clicks else "box"
    return f"{clicks} {plural}"


def _page(title: str, body: Sequence[str]) -> str:
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def _summary_table(summary: Sequence[dict[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{heading}</th>' for heading, _ in COLUMNS.values())
    lines = [
        "".join(f"<td>{_cell(row.get(name), decimals)}</td>" for name, (_, decimals) in COLUMNS.items())
        for row in summary
    ]
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _settings_table(settings: dict[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_value(value))}</td></tr>'
        for name, value in settings.items()
    )
    return f'<table class="settings">\n<tbody>\n{rows}\n</tbody>\n</table>'


def _cell(value: Any, decimals: int | None) -> str:
    if value is None:
        return "-"
    return escape(str(value)) if decimals is None else f"{value:.{decimals}f}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    return "-" if value is None else str(value)


def _agreement(iou: np.ndarray, predicted: np.ndarray) -> tuple[str, str]:
    """How well predicted IoU fits: a paragraph's HTML, and its numbers alone as plain text."""
    known = np.isfinite(predicted)
    iou, predicted = iou[known], predicted[known]
    if not len(iou):
        return "No mask of this setting has a predicted IoU.", ""
    varied = len(iou) > 1 and np.ptp(iou) > 0 and np.ptp(predicted) > 0
    correlation = f"{np.corrcoef(iou, predicted)[0, 1]:.3f}" if varied else "not defined"
    difference = 100 * (predicted - iou)
    numbers = f"correlation {correlation}, mean absolute difference {np.abs(difference).mean():.1f} percentage points"
    bias = f"{abs(difference.mean()):.1f} points {'above' if difference.mean() >= 0 else 'below'}"
    return (
        f"Predicted against real IoU of {len(iou)} masks: {numbers}; on average the prediction is {bias} the real IoU."
    ), numbers


# ---------------------------------------------------------------- charts
def _figure(width: float, height: float) -> Figure:
    """An empty figure that has its own Agg canvas: pyplot's global state stays the caller's."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the report draws its curves with matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curves(summary: Sequence[dict[str, Any]]) -> Figure:
    figure = _figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = list(dict.fromkeys((row["prompt"], row["clicks"]) for row in summary))
    for index, (prompt, clicks) in enumerate(kinds):
        rows = [row for row in summary if (row["prompt"], row["clicks"]) == (prompt, clicks) and row["all"] is not None]
        look = {"color": LINES[index % len(LINES)], "marker": MARKERS[index % len(MARKERS)]}
        fixed = [row for row in rows if row["keep_ratio"] != "auto"]
        _line(left, [(row["keep_ratio"], row["all"]) for row in fixed], look, _line_name(prompt, clicks))
        _line(right, [(row["encoder_ms"], row["all"]) for row in fixed if row.get("encoder_ms")], look)
        for row in rows:
            if row["keep_ratio"] == "auto" and row.get("encoder_ms"):
                point = (row["encoder_ms"], row["all"])
                _line(right, [point], {**look, "markersize": 10, "markerfacecolor": "none"})
                right.annotate("auto", point, (8, 6), textcoords="offset points", color=look["color"])
    left.set(xlabel="keep ratio", ylabel="mIoU, %")
    right.set(xlabel="encoder, median milliseconds per image")
    for axes, missing in ((left, "only auto was evaluated"), (right, "encoder time was not measured")):
        axes.grid(alpha=0.3)
        axes.margins(0.08, 0.12)
        if not any(len(line.get_xdata()) for line in axes.lines):
            axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", color="0.4")
            axes.set_xticks([])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _line(axes: Axes, points: Iterable[tuple[float, float]], look: dict[str, Any], label: str | None = None) -> None:
    """Draw (x, y) points as one line; one without points still stands in the legend."""
    points = sorted(points)
    axes.plot([x for x, _ in points], [y for _, y in points], label=label, **look)


def _distributions(
    of_ratio: dict[float | str, list[float]], ratio: float | str, iou: np.ndarray, predicted: np.ndarray
) -> Figure:
    """The histogram of IoU, at the other keep ratios as lines, and predicted against real IoU as dots or squares."""
    figure = _figure(10, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    bins = np.linspace(0, 100, 26)
    left.hist(100 * iou, bins, color="0.75", label=f"keep ratio {ratio}")
    others = [other for other in of_ratio if other != ratio]
    for other, colour in zip(others, LINES):  # more lines than colours could not be told apart
        values = 100 * np.array(of_ratio[other])
        left.hist(values, bins, histtype="step", color=colour, linewidth=1.3, label=f"keep ratio {other}")
    left.set(xlabel="IoU, %", ylabel="masks", xlim=(0, 100))
    left.yaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="upper left", frameon=False)

    known = np.isfinite(predicted)
    x, y = 100 * iou[known], 100 * np.clip(predicted[known], 0, None)
    top = max(100.0, math.ceil(y.max(initial=0)))  # the model's own estimate may exceed 1
    if len(x) <= SCATTER:
        right.scatter(x, y, s=9, alpha=0.5, linewidths=0, color=LINES[0], clip_on=False)
    else:
        counts, _, _ = np.histogram2d(x, y, 60, ((0, 100), (0, top)))
        picture = np.ma.masked_equal(counts.T, 0)
        squares = right.imshow(
            picture, norm="log", cmap="Blues", vmin=0.5, origin="lower", extent=(0, 100, 0, top), aspect="auto"
        )
        figure.colorbar(squares, ax=right, label="masks")
    right.plot((0, 100), (0, 100), color="0.35", linewidth=1, linestyle="--", label="predicted = real")
    right.set(xlabel="real IoU, %", ylabel="predicted IoU, %", xlim=(0, 100), ylim=(0, top))
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def _chart(figure: Figure, text: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=140, metadata={"Software": None})
    return f'<img class="chart" src="{_data("png", stream.getvalue())}" alt="{escape(text)}">'


# ---------------------------------------------------------------- masks
def _galleries(masks: Sequence[InstanceResult], name: str, images: Sequence[CocoImage], folder: Path) -> Iterable[str]:
    """The worst and the best of masks that are sorted by IoU; of a few masks none stands in both."""
    worst = min(THUMBNAILS, (len(masks) + 1) // 2)
    best = min(THUMBNAILS, len(masks) - worst)
    chosen = {"worst": masks[:worst], "best": masks[::-1][:best]}
    wanted = {mask.image_id for group in chosen.values() for mask in group}
    of_id = {image.id: image for image in images if image.id in wanted}
    for which, group in chosen.items():
        if group:
            yield f"<h2>The {len(group)} {which} masks: {escape(name)}</h2>"
            yield (
                '<p class="keys"><span class="key prediction"></span> prediction, filled &ensp; '
                '<span class="key target"></span> ground truth, outline</p>\n<div class="masks">'
            )
            yield from (_gallery_item(mask, of_id[mask.image_id], folder) for mask in group)
            yield "</div>"


def _gallery_item(result: InstanceResult, image: CocoImage, folder: Path) -> str:
    if not result.counts:
        raise ValueError(f"the result of annotation {result.annotation_id} has no counts, which its picture needs")
    annotation = next(entry for entry in image.annotations if entry.id == result.annotation_id)
    prediction = coco_mask.decode({"size": list(image.size), "counts": result.counts}).astype(bool)
    picture = draw_instance(read_photo(folder / image.file_name, image), prediction, annotation)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=85, subsampling=0)  # else thin lines lose their colour
    ids = f"image {escape(str(result.image_id))}, annotation {escape(str(result.annotation_id))}"
    score = f"IoU {100 * result.iou:.1f} %, predicted {100 * result.predicted_iou:.1f} %"
    return (
        f'<figure><img src="{_data("jpeg", stream.getvalue())}" alt="Predicted mask over ground truth, {ids}: {score}">'
        f"<figcaption>{ids}<br>area {result.area:g} px&sup2;<br>{score}</figcaption></figure>"
    )


def draw_instance(photo: np.ndarray, prediction: np.ndarray, annotation: Annotation) -> np.ndarray:
    """The object's surroundings with the prediction filled and the annotation's mask outlined.

    Args:
        photo: uint8 RGB (H, W, 3).
        prediction: boolean (H, W).

    Returns:
        A uint8 RGB picture whose longer side is SIDE pixels.
    """
    target = annotation.mask()
    y0, y1, x0, x1 = _surroundings(target if target.any() else prediction)
    photo, prediction, target = (array[y0:y1, x0:x1] for array in (photo, prediction, target))
    scale = SIDE / max(y1 - y0, x1 - x0)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    picture = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    # Lines are drawn after scaling, so that they are equally wide over small and large objects.
    prediction, target = (
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in (prediction, target)
    )
    inside = prediction > 0
    picture[inside] = np.round((1 - OPACITY) * picture[inside] + OPACITY * np.array(PREDICTION))
    outline, _ = cv2.findContours(target, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outline, -1, CASING, 4, cv2.LINE_AA)
    cv2.drawContours(picture, outline, -1, TARGET, 2, cv2.LINE_AA)
    return picture


def _surroundings(mask: np.ndarray) -> tuple[int, int, int, int]:
    """y0, y1, x0, x1 of a square inside the image, 1.7 times as long as the mask and at least 32 pixels."""
    height, width = mask.shape
    if not mask.any():
        return 0, height, 0, width
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    side = max(round(1.7 * max(w, h)), 32)
    # At the image's edge the square is moved inwards; only in an image too small for it is it cut.
    x0 = max(0, min(x + (w - side) // 2, width - side))
    y0 = max(0, min(y + (h - side) // 2, height - side))
    return y0, min(height, y0 + side), x0, min(width, x0 + side)


# ---------------------------------------------------------------- file
def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
