"""The report page: complete, self-contained, and what stands on it is what was measured."""

from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib import pyplot
from pycocotools import mask as coco_mask

from sam_bigltl import InputError
from sam_bigltl.data.coco import Annotation, CocoImage
from sam_bigltl.evaluation import report
from sam_bigltl.evaluation.metrics import mask_iou, summarize
from sam_bigltl.evaluation.report import SIDE, THUMBNAILS, check_matplotlib, draw_instance, write_report
from sam_bigltl.evaluation.results import InstanceResult

HEIGHT, WIDTH = 60, 80


class Page(HTMLParser):
    """A page's pictures, headings, captions, table cells and everything that could lead elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.texts: dict[str, list[str]] = {"h1": [], "h2": [], "figcaption": [], "td": [], "p": [], "style": []}
        self.tags: list[str] = []
        self.links: list[str] = []
        self.place: list[str] = []
        self.open: str | None = None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "srcset", "data")]
        if tag == "img":
            self.images.append({**dict(attrs), "heading": self.texts["h2"][-1]})
        if tag in self.texts:
            self.texts[tag].append("")
            self.open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.open:
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open][-1] += data

    def thumbnails(self, which: str) -> list[dict[str, str]]:
        return [image for image in self.images if which in image["heading"]]


def decode(image: dict[str, str]) -> np.ndarray:
    kind, _, content = image["src"].partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


RATIOS, SETTINGS = (1.0, 0.5, "auto"), (("box", 0), ("box", 2), ("point", 1))
SHOWN = (1.0, "box", 2)  # the first prompt at its first keep ratio and last clicks


def toy(folder: Path, count: int) -> dict[str, Any]:
    """The arguments of `write_report` for `count` instances on three photographs.

    Only masks among the worst or best 20 of the setting shown have `counts`: decoding another would raise.
    """
    rng = np.random.default_rng(0)
    images, targets = [], {}
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        images.append(CocoImage(number, f"{number}.png", (HEIGHT, WIDTH)))
    for number in range(count):
        x, y, width, height = rng.integers((0, 0, 8, 8), (40, 30, 40, 30))
        targets[number] = rectangle(x, y, width, height)
        area = float(targets[number].sum())
        image = images[number % 3]
        image.annotations.append(Annotation(number, area, None, encode(targets[number]), image.size))
    results = []
    for ratio in RATIOS:
        for prompt, clicks in SETTINGS:
            for image in images:
                for annotation in image.annotations:
                    target = targets[annotation.id]
                    prediction = np.roll(target, rng.integers(0, 9), axis=1)
                    iou = mask_iou(prediction, target)
                    counts = encode(prediction)["counts"] if (ratio, prompt, clicks) == SHOWN else ""
                    guess = float(0.5 * iou + 0.3 + rng.normal(0, 0.05))
                    results.append(
                        InstanceResult(
                            image.id, annotation.id, annotation.area, ratio, prompt, clicks, iou, guess, counts
                        )
                    )
    summary = []
    for ratio in RATIOS:
        for prompt, clicks in SETTINGS:
            rows = [row for row in results if (row.keep_ratio, row.prompt, row.clicks) == (ratio, prompt, clicks)]
            summary.append(
                {
                    "keep_ratio": ratio, "prompt": prompt, "clicks": clicks,
                    **summarize([row.iou for row in rows], [row.area for row in rows]),
                    "instances": len(rows), "images": 3, "seconds": 12.345,
                    "encoder_ms": {1.0: 80.04, 0.5: 50.0, "auto": 61.0}[ratio],
                }
            )  # fmt: skip
    settings = {
        "model": "<b>.safetensors", "keep_ratio": list(RATIOS), "limit": None,
        "note": "<script>alert('1')</script> & \"more\"", "protocol": {"name": "A", "crowds": True},
    }  # fmt: skip
    return {"settings": settings, "summary": summary, "results": results, "images": images, "folder": folder}


def shown(results: list[InstanceResult]) -> list[InstanceResult]:
    rows = [row for row in results if (row.keep_ratio, row.prompt, row.clicks) == SHOWN]
    return sorted(rows, key=lambda row: row.iou)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("report")
    arguments = toy(folder, 7)
    figures = pyplot.get_fignums()
    write_report(folder / "report.html", **arguments)
    assert pyplot.get_fignums() == figures  # pyplot's state stays the caller's
    return arguments, folder / "report.html"


def test_page_needs_nothing_else(written: tuple[dict[str, Any], Path]) -> None:
    page = Page(written[1])
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", written[1].read_text(encoding="utf-8"))
    assert "http" not in text
    assert "url(" not in page.texts["style"][0] and "@import" not in page.texts["style"][0]
    assert [path.name for path in written[1].parent.glob("partial-*")] == []


def test_pictures_decode_and_are_described(written: tuple[dict[str, Any], Path]) -> None:
    page = Page(written[1])
    charts = [image for image in page.images if image.get("class") == "chart"]
    assert len(charts) == 2 and len(page.images) == 2 + 7
    for image in page.images:
        picture = decode(image)
        assert len(image["alt"]) > 20
        if image not in charts:
            assert max(picture.shape[:2]) == SIDE
    assert len(page.texts["figcaption"]) == 7


def test_worst_and_best_masks(written: tuple[dict[str, Any], Path]) -> None:
    arguments, path = written
    page, rows = Page(path), shown(arguments["results"])
    assert "The 4 worst masks: box and 2 clicks, keep ratio 1.0" in page.texts["h2"]
    assert "The 3 best masks: box and 2 clicks, keep ratio 1.0" in page.texts["h2"]
    assert len(page.thumbnails("worst")) == 4 and len(page.thumbnails("best")) == 3
    for caption, row in zip(page.texts["figcaption"], rows[:4] + rows[:3:-1], strict=True):
        assert f"image {row.image_id}, annotation {row.annotation_id}" in caption
        assert f"area {row.area:g} px²" in caption
        assert f"IoU {100 * row.iou:.1f} %, predicted {100 * row.predicted_iou:.1f} %" in caption
    assert f"IoU {100 * min(row.iou for row in rows):.1f} %" in page.texts["figcaption"][0]
    assert f"IoU {100 * max(row.iou for row in rows):.1f} %" in page.texts["figcaption"][4]


def test_at_most_twenty_each_and_only_those_are_decoded(tmp_path: Path) -> None:
    arguments = toy(tmp_path, 45)
    rows = shown(arguments["results"])
    between = {row.annotation_id for row in rows[THUMBNAILS:-THUMBNAILS]}
    kept = [replace(row, counts="") if row.annotation_id in between else row for row in arguments["results"]]
    write_report(tmp_path / "report.html", **{**arguments, "results": kept})
    page = Page(tmp_path / "report.html")
    assert len(page.thumbnails("20 worst")) == len(page.thumbnails("20 best")) == 20
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_masks_to_be_drawn_need_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_chart", lambda *_: "")  # only for speed
    arguments = toy(tmp_path, 2)
    arguments["results"] = [replace(row, counts="") for row in arguments["results"]]
    with pytest.raises(ValueError, match="no counts"):
        write_report(tmp_path / "report.html", **arguments)
    assert not list(tmp_path.glob("report*"))


def test_tables(written: tuple[dict[str, Any], Path]) -> None:
    arguments, path = written
    page = Page(path)
    assert page.texts["h1"] == ["Evaluation of <b>.safetensors"] and "b" not in page.tags
    for value in ("<script>alert('1')</script> & \"more\"", "1.0, 0.5, auto", '{"name": "A", "crowds": true}'):
        assert value in page.texts["td"]
    rows = [page.texts["td"][start : start + 11] for start in range(0, 9 * 11, 11)]
    for row, expected in zip(rows, arguments["summary"], strict=True):
        assert row[:3] == [str(expected[key]) for key in ("keep_ratio", "prompt", "clicks")]
        percentages = [expected[key] for key in ("all", "small", "medium", "large")]
        assert row[3:7] == ["-" if value is None else f"{value:.1f}" for value in percentages]
        assert row[7:] == ["7", "3", f"{expected['encoder_ms']:.1f}", "12.3"]


def test_agreement_of_predicted_iou(written: tuple[dict[str, Any], Path]) -> None:
    arguments, path = written
    rows = shown(arguments["results"])
    real, guess = np.array([(100 * row.iou, 100 * row.predicted_iou) for row in rows]).T
    x, y = real - real.mean(), guess - guess.mean()
    correlation = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    text = " ".join(Page(path).texts["p"])
    assert f"of 7 masks: correlation {correlation:.3f}, mean absolute difference {abs(guess - real).mean():.1f}" in text
    above = (guess - real).mean()
    assert f"is {abs(above):.1f} points {'above' if above >= 0 else 'below'} the real IoU" in text


def test_curves_have_a_line_per_prompt_and_auto_only_against_time(tmp_path: Path) -> None:
    left, right = report._curves(toy(tmp_path, 5)["summary"]).axes
    assert [line.get_label() for line in left.lines] == ["box", "box and 2 clicks", "1 click"]
    assert all(list(line.get_xdata()) == [0.5, 1.0] for line in left.lines)
    drawn = [list(line.get_xdata()) for line in right.lines]
    assert drawn.count([50.0, 80.04]) == 3 and drawn.count([61.0]) == 3 and len(drawn) == 6
    assert [text.get_text() for text in right.texts] == ["auto"] * 3 and not left.texts


def test_little_to_draw(tmp_path: Path) -> None:
    """One instance, auto alone, no encoder times, a predicted IoU that is not finite, an empty mask, string ids."""
    arguments = toy(tmp_path, 1)
    summary = [{**row, "encoder_ms": None} for row in arguments["summary"] if row["keep_ratio"] == "auto"][:1]
    del summary[0]["encoder_ms"]
    old = arguments["images"][0].annotations[0]
    image = CocoImage("<i>", "0.png", (HEIGHT, WIDTH))
    image.annotations.append(Annotation("<a>", 2.0, None, encode(np.zeros((HEIGHT, WIDTH), bool)), old.size))
    empty = encode(np.zeros((HEIGHT, WIDTH), bool))["counts"]
    results = [InstanceResult("<i>", "<a>", 2.0, "auto", "box", 0, 0.0, float("nan"), empty)]
    path = tmp_path / "report.html"
    write_report(path, arguments["settings"], summary, results, [image], tmp_path)
    page = Page(path)
    assert "The 1 worst masks: box, keep ratio auto" in page.texts["h2"] and not page.thumbnails("best")
    assert "image <i>, annotation <a>" in page.texts["figcaption"][0] and "i" not in page.tags
    assert "No mask of this setting has a predicted IoU." in page.texts["p"]
    assert all(decode(image).size for image in page.images)


def test_drawing_shows_both_masks_in_their_colours() -> None:
    photo = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    target, prediction = rectangle(30, 20, 20, 20), rectangle(40, 20, 20, 20)
    annotation = Annotation(1, 400.0, None, encode(target), (HEIGHT, WIDTH))
    picture = draw_instance(photo, prediction, annotation)
    assert picture.shape == (SIDE, SIDE, 3) and (photo == 128).all()
    scale, x0, y0 = SIDE / 34, 23, 13  # 1.7 times the object's 20 pixels, around it

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(picture[round((y - y0) * scale), round((x - x0) * scale)].tolist())

    tint = tuple(np.round(0.55 * 128 + 0.45 * np.array(report.PREDICTION)).astype(int).tolist())
    assert at(35, 30) == (128, 128, 128)  # only in the target
    assert at(45, 30) == at(54, 30) == tint  # in both, only in the prediction
    assert at(25, 15) == (128, 128, 128)
    yellow = np.argwhere((picture == report.TARGET).all(axis=2))
    (top, left), (bottom, right) = yellow.min(axis=0) / scale, yellow.max(axis=0) / scale
    edges = np.array([left + x0, right + x0, top + y0, bottom + y0])
    assert np.abs(edges - (30, 50, 20, 40)).max() < 0.4  # image pixels


def test_crop_stays_in_the_image_and_is_square_where_it_can() -> None:
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for mask, shape in (
        (rectangle(0, 0, 5, 5), (SIDE, SIDE)),
        (rectangle(75, 55, 5, 5), (SIDE, SIDE)),
        (rectangle(0, 0, WIDTH, HEIGHT), (round(SIDE * HEIGHT / WIDTH), SIDE)),
    ):
        annotation = Annotation(1, 25.0, None, encode(mask), mask.shape)
        assert draw_instance(photo, mask, annotation).shape[:2] == shape


def test_matplotlib_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=re.escape("pip install matplotlib")) as error:
        check_matplotlib()
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="matplotlib"):
        write_report(tmp_path / "report.html", **toy(tmp_path, 2))
    assert not (tmp_path / "report.html").exists()


def test_file_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_chart", lambda *_: "")  # only for speed
    with pytest.raises(InputError, match="cannot write") as error:
        write_report(Path(__file__) / "report.html", **toy(tmp_path, 2))
    assert "\n" not in str(error.value)
