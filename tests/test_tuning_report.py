"""What `tune` leaves: table, sentence, plot, page and tune.json say what was measured, whatever the names are."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import picture
from matplotlib import pyplot
from matplotlib.text import Text
from PIL import Image
from pycocotools import mask as coco_mask
from tuning_toy import HOSTILE, disagreement, row, tuned

from sam_bigltl import InputError, save_sam
from sam_bigltl.cli import segment
from sam_bigltl.cli.commands import main
from sam_bigltl.data.files import encodable
from sam_bigltl.errors import ArgumentParser, in_one_line
from sam_bigltl.tuning import page, pictures, plot
from sam_bigltl.tuning.report import as_json, check_matplotlib, sentence, table, write_report
from sam_bigltl.tuning.result import Row
from sam_bigltl.tuning.sentence import shell_word
from sam_bigltl.tuning.settings import Setting

BOTH = [tuned(), tuned(target=1.0, setting=Setting(keep_ratio=0.75), reached=False)]


def cells(text: str) -> dict[tuple[str, str], list[str]]:
    """The lines of the table by format and keep_ratio: the mark, and the cells behind."""
    found = {}
    for line in text.split("\n\n")[0].splitlines()[1:]:
        mark, rest = line[:2].strip(), re.split(r"  +", line[3:].strip())
        if len(rest) > 3:
            found[rest[0], rest[1]] = [mark, *rest[2:]]
    return found


# ---------------------------------------------------------------- the table
@pytest.mark.parametrize("found", BOTH, ids=["reached", "not reached"])
def test_table(found):
    text = table(found)
    lines = cells(text)
    whole = [each for each in found.rows if not each.setting.focus]
    assert len(lines) == len(whole) + 1  # and the original
    for each in whole:
        form = each.setting.dtype + " C++" * each.setting.native
        ratio = each.setting.keep_ratio if isinstance(each.setting.keep_ratio, str) else f"{each.setting.keep_ratio:g}"
        mark, ms, faster, agreement, worst, above, small, medium, large, box, point, _, error, drift = lines[
            form, ratio
        ]
        beaten = [other for other in whole if other.seconds <= each.seconds and other.agreement >= each.agreement
                  and (other.seconds, other.agreement) != (each.seconds, each.agreement)]  # fmt: skip
        assert ("*" in mark) == (not beaten) and (">" in mark) == (each.setting == found.setting)
        assert (ms, faster) == (f"{1e3 * each.seconds:.1f}", f"{each.speedup:.2f}x")
        shares = (agreement, worst, above, small, medium, box, point)
        exact = (each.agreement, each.worst, each.above_90, each.by_size["small"], each.by_size["medium"],
                 each.by_prompt["box"], each.by_prompt["point"])  # fmt: skip
        assert np.allclose(np.array(shares, float), exact, atol=1.001e-3) and large == "-"
        assert float(error) == pytest.approx(each.embedding_error, abs=1e-4)
        assert float(drift) == pytest.approx(each.score_drift, abs=1e-3)
    assert lines["original", "-"][1:3] == ["400.0", "1.00x"]
    given = text.split("\n\n")[1]
    assert "--focus" in given and given.count("int8 C++") == 2
    assert all(f"{each.agreement - 5e-4:.3f}"[:4] in given for each in found.rows if each.setting.focus)


def test_what_misses_the_target_does_not_look_as_if_it_met_it():
    near = [row(Setting(), 0.2, 0.94996)]
    found = tuned(rows=near, setting=Setting(), reached=False)
    assert "0.950" not in table(found) + sentence(found) and "0.949" in table(found)
    assert "0.950" in table(tuned(rows=[row(Setting(), 0.2, 0.95)], setting=Setting(), reached=True))


def test_front_of_equals():
    """Of settings of one agreement the fastest is on it, of one time the closest, and each only once."""
    settings = [Setting("float32", keep_ratio=ratio) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    figures = [(0.2, 0.9), (0.1, 0.8), (0.2, 0.95), (0.3, 0.95), (0.1, 0.7)]
    found = tuned(rows=[row(s, *each) for s, each in zip(settings, figures)], setting=settings[2])
    assert [each.setting.keep_ratio for each in found.front()] == [0.2, 0.3]
    marked = {ratio: mark for (_, ratio), (mark, *_) in cells(table(found)).items()}
    assert marked == {"0.1": "", "0.2": "*", "0.3": ">*", "0.4": "", "0.5": "", "-": ""}


# ---------------------------------------------------------------- the sentence
def test_sentence():
    chosen = BOTH[0].row
    first = sentence(BOTH[0]).splitlines()[0]
    assert first.startswith(
        f"The fastest of 42 settings with a mean agreement of at least 0.95 is {chosen.setting.format}, keep_ratio"
    )
    assert f"{1e3 * chosen.seconds:.1f} ms" in first and f"{chosen.speedup:.1f} times as fast" in first
    assert "agree with the original's to 0.9" in first and "320 prompts on 4 photographs" in first
    first = sentence(BOTH[1]).splitlines()[0]
    assert first.startswith("None of 42 settings has a mean agreement of 1; the most faithful is float32, keep_ratio 0")
    assert "SamPredictor(tuned.sam)" in sentence(BOTH[0]) and "sam-bigltl segment" not in sentence(BOTH[0])


PATHS = ["model.safetensors", "a b/it's \"mine\" $HOME `x`.safetensors", "-x/model.safetensors",
         "caf\udce9\n.safetensors", "caf\u00e9 \U0001f408/m.safetensors", "back\\slash.safetensors"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_lines_that_use_it(path, tmp_path, monkeypatch):
    """They are run: Python's by Python, the command's words by the real parser."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = tuned(path=Path(path))
    Path(path).parent.mkdir(exist_ok=True)
    save_sam(found.sam, path, setting=Setting("bfloat16", keep_ratio=0.5))
    lines = [line.strip() for line in sentence(found).splitlines()]
    code = lines[lines.index("In Python:") + 1 : lines.index("On the command line:")]
    names: dict = {}
    exec("\n".join(code), names)
    assert names["predictor"].model.image_encoder.keep_ratio == 0.5
    command = lines[-1]
    assert command.isprintable() and command.startswith("sam-bigltl segment PHOTO --box x0,y0,x1,y1 --checkpoint ")
    if "$'" not in command:
        words = shlex.split(command)
        parser = ArgumentParser()
        segment.add_arguments(parser)
        args = parser.parse_args(words[2:])
        assert Path(args.checkpoint) == Path(path) and args.tuned
        Image.fromarray(picture()).save("PHOTO.png")
        words[2], words[4] = "PHOTO.png", "5,5,40,30"
        main([*words[1:], "--out", "out"])
        assert Path("out/PHOTO_masks.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_words_of_a_shell(path):
    done = subprocess.run(["bash", "-c", f"printf %s {shell_word(Path(path))}"], capture_output=True, check=True)
    assert Path(os.fsdecode(done.stdout)) == Path(path)


def test_lines_for_another_device(monkeypatch):
    found = tuned(path=Path("model.safetensors"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sentence(found).endswith("--tuned --device cpu") and ".to(" not in sentence(found)
    found.sam = found.sam.to("meta")  # a device that is no CPU
    assert "tuned=True).to('meta'))" in sentence(found)


# ---------------------------------------------------------------- the plot
@pytest.mark.parametrize("found", [*BOTH, tuned(rows=[row(Setting(), 0.4, 0.9)], setting=Setting())],
                         ids=["reached", "not reached", "one"])  # fmt: skip
def test_plot(found, tmp_path):
    before = pyplot.get_fignums()
    plot.plot(found, tmp_path / "new" / "tune.png")
    assert Image.open(tmp_path / "new" / "tune.png").size[0] >= 1000 and pyplot.get_fignums() == before
    axes = plot.draw(found).axes[0]
    lines = {tuple(line.get_ydata()) for line in axes.lines}
    assert tuple(each.agreement for each in found.front()) in lines and (found.target, found.target) in lines
    points = np.concatenate([group.get_offsets() for group in axes.collections])
    for each in [each for each in found.rows if not each.setting.focus]:
        assert (np.abs(points - (1e3 * each.seconds, each.agreement)).sum(axis=1) < 1e-9).any()
    assert (np.abs(points - (400, 1.0)).sum(axis=1) < 1e-9).any()


@pytest.mark.parametrize("spread", [1.0, 0.2, 0.02])
def test_labels_do_not_overlap(spread):
    """However close the settings lie; the chosen one has one, and those of the Pareto front where there is room."""
    found = tuned()
    close = [replace(each, seconds=0.1 + spread * (each.seconds - 0.1), agreement=1 - spread * (1 - each.agreement))
             for each in found.rows]  # fmt: skip
    found = tuned(rows=close, setting=found.setting)
    figure = plot.draw(found)
    axes = figure.axes[0]
    figure.canvas.draw()
    texts = [text for text in axes.texts if not text.get_text().startswith("target")]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead there
    for index, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[index + 1 :])
    bold = [text.get_text() for text in texts if text.get_fontweight() == "bold"]
    if spread > 0.1:
        assert sorted(bold) == sorted(each.setting.ratio for each in found.front())
    assert found.setting.ratio in bold


def test_without_matplotlib(monkeypatch, tmp_path):
    check_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (check_matplotlib, lambda: write_report(BOTH[0], tmp_path)):
        with pytest.raises(InputError, match="pip install matplotlib"):
            call()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- tune.json
def test_json_round_trip(tmp_path):
    odd = replace(BOTH[0].rows[0], embedding_error=float("nan"), score_drift=np.float32(0.5))
    found = tuned(rows=[odd, *BOTH[0].rows[1:]], path=Path("a/b.safetensors"))
    found.about |= {"memory": np.int64(3), "where": Path("x"), "most": float("inf"), "sizes": (1, 2)}
    write_report(found, tmp_path)
    text = (tmp_path / "tune.json").read_text(encoding="utf-8")

    def refuse(word):
        raise AssertionError(word)

    content = json.loads(text, parse_constant=refuse)  # NaN and Infinity
    assert content["version"] == 1 and content["target"] == 0.95 and content["reached"] is True
    assert Setting.from_json(content["setting"]) == found.setting and content["model"] == "a/b.safetensors"
    assert content["photographs"] == found.photographs and content["stages"] == found.stages
    assert content["about"]["memory"] == 3 and content["about"]["most"] is None and content["about"]["sizes"] == [1, 2]
    front = {each.setting for each in found.front()}
    for given, each in zip(content["rows"], found.rows, strict=True):
        assert given.pop("front") == (each.setting in front) and given.pop("chosen") == (each.setting == found.setting)
        again = Row(**{**given, "setting": Setting.from_json(given["setting"])})
        if each is odd:
            assert again.embedding_error is None and again.score_drift == 0.5
        else:
            assert again == each
    for given, each in zip(content["worst"], found.worst, strict=True):
        assert (given["photograph"], given["kind"], tuple(given["prompt"])) == (each.photograph, each.kind, each.prompt)
        for name in ("original", "tuned"):
            assert np.array_equal(coco_mask.decode(given[name]), getattr(each, name))
    assert json.dumps(as_json(found), indent=2) + "\n" == text


# ---------------------------------------------------------------- the page
class Page(HTMLParser):
    """A page's tags, pictures, texts, and everything that could lead elsewhere."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("tuned") / "new"
    found = tuned(path=Path("my out/<m>.safetensors"))
    assert write_report(found, folder) == folder / "report.html"
    return folder, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_page_needs_nothing_else(written):
    folder, parsed = written
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "tune.json", "tune.png"]
    assert not parsed.open and parsed.of("html") == [{"lang": "en"}]
    for _, attrs in parsed.tags:
        for name in ("src", "srcset", "href", "data"):
            assert attrs.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attrs)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "object", "base"}
    content = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in content and "prefers-color-scheme: dark" in content and "url(" not in content
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.of("meta")
    for image in parsed.of("img"):
        kind, _, data = image["src"].partition(";base64,")
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == f"data:image/{opened.format.lower()}" and image["alt"]
        assert opened.size == (int(image["width"]), int(image["height"]))


def test_page_says_what_was_measured(written):
    _, parsed = written
    found = tuned(path=Path("my out/<m>.safetensors"))
    words = " ".join(" ".join(parsed.words).split())
    assert " ".join(sentence(found).splitlines()[0].split()) in words
    assert "load_sam('my out/<m>.safetensors', tuned=True)" in words
    assert "--checkpoint 'my out/<m>.safetensors' --tuned" in words
    lines = {line[0]: line[1:] for line in parsed.rows}
    for each in [each for each in found.rows if not each.setting.focus]:
        name = each.setting.dtype + " C++" * each.setting.native + f", {each.setting.ratio}"
        name += " (chosen)" * (each.setting == found.setting) + " *" * (each in found.front())
        assert lines[name][0] == f"{1e3 * each.seconds:.1f}" and abs(float(lines[name][2]) - each.agreement) < 1.001e-3
    assert ["0.5", "0.910", "0.940", "0.200", "0.100"] in parsed.rows  # before and after training
    assert lines["machine"] == ["some processor"] and lines["checkpoint"] == ["runs/<mine>.safetensors"]
    assert "<b>half.png: it is cut short & broken" in words and "2 could not be used" in words
    for found_one in found.worst:
        assert f"IoU {found_one.iou - 5e-4:.3f}" in words


def test_names_of_all_kinds(written):
    _, parsed = written
    for name in HOSTILE:
        shown = encodable(in_one_line(name))
        assert any(shown in word for word in parsed.words) and any(shown in image["alt"] for image in parsed.of("img"))


def test_page_without_worst_and_training():
    found = tuned(worst=[], stages=[], photographs={"fit": [], "measure": ["a.jpg"], "skipped": {}})
    found.rows = [each for each in found.rows if not each.setting.focus]
    parsed = Page(page.page(found))
    words = " ".join(parsed.words)
    for absent in ("Before and after", "differ most", "Boxes given", "could not be used", "On the command line"):
        assert absent not in words
    assert "None fitted to." in words and "1 measured on" in words


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_facts", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(BOTH[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tune.png"]
    with pytest.raises(InputError, match="cannot write"):
        write_report(BOTH[0], Path(__file__))


# ---------------------------------------------------------------- disagreements
@pytest.mark.parametrize("kind", ["box", "point"])
def test_what_one_mask_has_alone_is_filled(kind):
    found = disagreement("a.jpg", kind, 3, (90, 140))
    grey = replace(found, pixels=np.full((90, 140, 3), 128, np.uint8))
    y0, _, x0, x1 = pictures.region(grey)
    drawn = pictures.draw(grey).astype(int)
    scale = drawn.shape[1] / (x1 - x0)
    assert max(drawn.shape) <= pictures.SIDE

    def colour_inside(mask: np.ndarray) -> np.ndarray:
        """At the pixel that is farthest from the edge of a region."""
        far = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        y, x = np.unravel_index(far.argmax(), far.shape)
        return drawn[round((y - y0 + 0.5) * scale), round((x - x0 + 0.5) * scale)]

    blend = {name: 0.4 * 128 + 0.6 * np.array(colour) for name, colour in
             (("original", pictures.ORIGINAL), ("tuned", pictures.TUNED))}  # fmt: skip
    assert np.abs(colour_inside(found.original & ~found.tuned) - blend["original"]).max() <= 1
    assert np.abs(colour_inside(found.tuned & ~found.original) - blend["tuned"]).max() <= 1
    assert np.abs(colour_inside(~found.tuned & ~found.original) - 128).max() <= 1


def test_pictures_of_odd_masks():
    """Empty and full ones, prompts at the edge, tiny and large photographs."""
    for size in ((1, 1), (3, 900), (1500, 1200)):
        for original in (np.zeros(size, bool), np.ones(size, bool)):
            for kind, prompt in (("point", (size[1] - 1.0, 0.0)), ("box", (-2.0, 0.0, size[1] + 1.0, size[0]))):
                pixels = np.zeros((*size, 3), np.uint8)
                content, (width, height) = pictures.jpeg(
                    replace(disagreement("a", kind, 0), pixels=pixels, prompt=prompt, original=original,
                            tuned=np.zeros(size, bool))
                )  # fmt: skip
                assert Image.open(io.BytesIO(content)).size == (width, height) and max(width, height) <= pictures.SIDE
