"""COCO-format JSON as people's tools write it: every spelling gives the figures of the clean one, or is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluation_toy import HEIGHT, TARGETS, WIDTH, arguments, compressed, main, toy
from PIL import Image
from training_toy import edit, write_shapes

from sam_bigltl import InputError
from sam_bigltl.data.coco import CocoImage, check_image_files, load_coco, read_coco, read_photo
from sam_bigltl.data.crops import main as crops_main
from sam_bigltl.data.sources import open_source
from sam_bigltl.evaluation.detections import Truth, average_precision, load_detections
from sam_bigltl.predict.segment_folder import load_prompts
from sam_bigltl.training.data import MaskBatches, SampleConfig

Change = Callable[[dict[str, Any]], Any]


def figures(data: SimpleNamespace, content: dict[str, Any], *flags: str) -> list[dict[str, str]]:
    """What the command writes of each instance."""
    data.write(content)
    main(arguments(data, "--restart", "--no-report", *flags))
    with (data.out / "instances.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def whole() -> dict[str, Any]:
    """The toy set with nothing that may be missing left out."""
    content = toy()
    content["annotations"][-1] |= {"iscrowd": 0, "category_id": 1, "segmentation": [[1, 1, 2, 1, 2, 2, 1, 2]]}
    return content


def changed(change: Change) -> dict[str, Any]:
    content = whole()
    change(content)
    return content


def each(part: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda content: [change(entry) for entry in content[part]]


def batches(path: Path, **more: Any) -> MaskBatches:
    return MaskBatches([path], path.parent / "images", SampleConfig(128, 128), 2, 0, 4, **more)


# ---------------------------------------------------------------- crowds
@pytest.mark.parametrize(("object_", "crowd"), [(0, 1), ("0", "1"), (False, True), (0.0, 1.0), (None, 1)])
@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_crowds_in_every_spelling(
    object_: Any, crowd: Any, protocol: str, data: SimpleNamespace, stub_model: SimpleNamespace,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    content = changed(each("annotations", lambda entry: entry.update(iscrowd=crowd if entry["id"] == 2 else object_)))
    flags = ["--protocol", protocol, "--mask-select", "argmax", "--min-area", "1"]
    found = figures(data, content, *flags, "--refine", "0", "--prompts", "box")
    assert {row["annotation_id"] for row in found} == ({"1", "2", "3", "4", "7"} if protocol == "A" else set("1347"))
    *_, said = capsys.readouterr().out.splitlines()
    assert (
        said
        == {
            "A": "annotations: 5 used, 1 left out (1 with area < 1)",
            "B": "annotations: 4 used, 2 left out (1 marked as crowd, 1 with area < 1)",
            "C": "annotations: 4 used, 2 left out (1 marked as crowd, 1 with area < 1)",
        }[protocol]
    )
    report = json.loads((data.out / "results.json").read_text())
    assert report["annotations"]["used"] == report["summary"][0]["instances"]


def test_a_missing_iscrowd_is_none(data: SimpleNamespace) -> None:
    data.write(changed(each("annotations", lambda entry: entry.pop("iscrowd"))))
    assert not any(annotation.iscrowd for image in load_coco(data.json) for annotation in image.annotations)


@pytest.mark.parametrize("value", [2, -1, 0.5, "2", "yes", "true", "", [], [1], {}, float("nan")])
def test_other_crowds_are_refused(value: Any, data: SimpleNamespace) -> None:
    data.write(changed(lambda content: content["annotations"][1].update(iscrowd=value)))
    for crowds in (True, False):
        with pytest.raises(InputError, match="annotation 3 has 'iscrowd' .*: write 0 or 1$"):
            load_coco(data.json, crowds=crowds)


def test_what_is_left_out_is_said(
    data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    empty = compressed(np.zeros((HEIGHT, WIDTH), bool))
    content = changed(lambda content: content["annotations"][0].update(segmentation=empty))
    figures(data, content, "--protocol", "C")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "annotations: 3 used, 3 left out (1 marked as crowd, 1 with area < 1, 1 without a pixel)"
    )
    figures(data, toy(), "--limit", "1")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "annotations: 2 used, 4 left out (1 with area < 1, 3 of images beyond --limit)"
    )
    (data.images / "30.png").write_text("no image")
    with pytest.raises(SystemExit):
        figures(data, toy())
    assert capsys.readouterr().out.splitlines()[-1] == (
        "annotations: 2 used, 4 left out (1 with area < 1, 3 of images that cannot be read)"
    )


def test_average_precision_with_crowds_as_text(
    data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    content, results = whole(), data.out.parent / "results.json"
    data.write(content)
    rows = [
        {"image_id": entry["image_id"], "category_id": 1, "bbox": entry["bbox"], "score": 0.1 * entry["id"],
         "segmentation": compressed(TARGETS[entry["id"]])}
        for entry in content["annotations"] if entry["id"] in TARGETS
    ]  # fmt: skip
    results.write_text(json.dumps(rows))
    expected = average_precision(data.json, results)
    data.write(changed(each("annotations", lambda entry: entry.update(iscrowd=str(entry["iscrowd"])))))
    truth = Truth(data.json)
    assert expected["AP"] > 50 and truth.average_precision(results) == truth.average_precision(results) == expected
    assert str(truth) == "AP: 5 annotations to find; 1 marked as crowd, in which masks count neither way"
    main(arguments(data, "--prompts", "detector", "--detections", str(results), "--no-report"))
    assert capsys.readouterr().out.splitlines()[-1] == str(truth)


def test_training_and_distillation(tmp_path: Path) -> None:
    path = write_shapes(tmp_path)
    for entry in (spelled := json.loads(path.read_text()))["annotations"]:
        entry["iscrowd"] = "0" if entry["id"] % 3 else "1"
    count, crowds = len(spelled["annotations"]), sum(entry["iscrowd"] == "1" for entry in spelled["annotations"])
    path.write_text(json.dumps(spelled))
    said = f"annotations: {count - crowds} used, {crowds} left out ({crowds} marked as crowd)"
    assert str(batches(path).usage) == said
    source = open_source(str(path), tmp_path / "images")
    assert str(source.usage) == said
    assert sum(len(photo.masks) for key in source.units() for photo in source.unit(key)) == count - crowds


def crops(data: SimpleNamespace, content: dict[str, Any], *flags: str) -> list[str]:
    data.write(content)
    shutil.rmtree(data.out, ignore_errors=True)
    options = ["--annotations", str(data.json), "--images", str(data.images), "--output", str(data.out)]
    crops_main([*options, "--side", "8", "--smallest", "3", *flags])
    return sorted(path.relative_to(data.out).as_posix() for path in data.out.rglob("*.jpg"))


def test_object_crops(data: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    clean = crops(data, whole())
    said = "annotations: 4 used, 2 left out (1 marked as crowd, 1 narrower than 3 pixels)"
    assert capsys.readouterr().out.splitlines()[-1] == said and len(clean) == 4
    spelled = changed(each("annotations", lambda entry: entry.update(
        iscrowd=str(entry["iscrowd"]), image_id=str(entry["image_id"]), id=float(entry["id"]), category_id=1.0
    )))  # fmt: skip
    assert crops(data, spelled) == clean
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert len(crops(data, whole(), "--most", "1")) == 1
    assert "3 beyond --most" in capsys.readouterr().out
    for change, word in (
        (lambda content: content["annotations"][1].update(iscrowd="no"), "annotation 3 has 'iscrowd' 'no'"),
        (lambda content: content["annotations"][1].update(id="7"), "annotation id 7 appears twice"),
        (lambda content: content["images"][0].update(file_name="../30.png"), "leads out of the folder"),
        (lambda content: content["categories"][0].update(name=".."), "can be the name of a folder"),
        (lambda content: content["images"][0].update(height=9, width=9), "but the annotations say 9 x 9"),
    ):
        with pytest.raises(SystemExit):
            crops(data, changed(change))
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


# ---------------------------------------------------------------- encodings
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(encoding: str, data: SimpleNamespace, stub_model: SimpleNamespace, tmp_path: Path) -> None:
    (data.images / "30.png").rename(data.images / "dreißig.png")
    content = changed(lambda content: content["images"][0].update(file_name="dreißig.png"))
    expected = figures(data, content)
    data.json.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    main(arguments(data, "--restart", "--no-report"))
    with (data.out / "instances.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == expected

    for name, content in (("d", [{"image_id": 30, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]),
                          ("p", {"ä.jpg": [{"box": [1, 2, 3, 4]}]})):  # fmt: skip
        (tmp_path / f"{name}.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert len(load_detections(tmp_path / "d.json", load_coco(data.json))[0][30]) == 1
    assert list(load_prompts(tmp_path / "p.json")) == ["ä.jpg"]
    for name in ("results.json", "instances.csv"):
        text = (data.out / name).read_text()
        (data.out / name).write_bytes(text.encode(encoding if name == "results.json" else "utf-8-sig"))
    main(["--compare", str(data.out / "results.json"), str(data.out / "results.json")])


# ---------------------------------------------------------------- ids, sizes and what is missing
def as_floats(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry.update({key: float(entry[key]) for key in ("id", "image_id", "category_id")})
        if isinstance(entry["segmentation"], dict):
            rle = entry["segmentation"]
            rle["size"] = [float(side) for side in rle["size"]]
            rle["counts"] = rle["counts"] if isinstance(rle["counts"], str) else [float(run) for run in rle["counts"]]
    for entry in content["images"]:
        entry.update({key: float(entry[key]) for key in ("id", "height", "width")})
    content["categories"][0]["id"] = 1.0


SPELLINGS: dict[str, Change] = {
    "floats": as_floats,
    "text for a number": each("annotations", lambda entry: entry.update(image_id=str(entry["image_id"]))),
    "a number for text": each("images", lambda entry: entry.update(id=str(entry["id"]))),
    "no sizes": each("images", lambda entry: [entry.pop(key) for key in ("height", "width")]),
    "null sizes": each("images", lambda entry: entry.update(height=None)),
    "backslashes": lambda content: content["images"][0].update(file_name=r"a\b\30.png"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spellings_give_the_same_figures(case: str, data: SimpleNamespace, stub_model: SimpleNamespace) -> None:
    def by_id(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return sorted(rows, key=lambda row: row["annotation_id"])  # text comes in another order

    expected = figures(data, toy())
    (data.images / "a" / "b").mkdir(parents=True)
    shutil.copy(data.images / "30.png", data.images / "a" / "b")
    assert by_id(figures(data, changed(SPELLINGS[case]))) == by_id(expected)


def test_detections_with_other_spellings_of_ids(data: SimpleNamespace, tmp_path: Path) -> None:
    rows = [
        {"image_id": 30, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1, "segmentation": compressed(TARGETS[1])}
    ]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    data.write(whole())
    expected = list(load_detections(tmp_path / "r.json", load_coco(data.json))[0])
    precision = average_precision(data.json, tmp_path / "r.json")
    for spell in (str, float):
        rows[0].update(image_id=spell(30), category_id=spell(1))
        (tmp_path / "r.json").write_text(json.dumps(rows))
        found, unknown = load_detections(tmp_path / "r.json", load_coco(data.json))
        assert list(found) == expected and unknown == 0 and found[30][0].image_id == 30
        assert average_precision(data.json, tmp_path / "r.json") == precision


def test_missing_areas_are_those_of_the_masks(data: SimpleNamespace) -> None:
    for change in (lambda entry: entry.pop("area"), lambda entry: entry.update(area=None)):
        data.write(changed(each("annotations", change)))
        images, _ = read_coco(data.json)
        found = {annotation.id: annotation.area for image in images for annotation in image.annotations}
        assert {number: found[number] for number in TARGETS} == {n: mask.sum() for n, mask in TARGETS.items()}
    with pytest.raises(InputError, match="nothing is left to use .annotations: 0 used, 6 left out .6 with area < 1000"):
        load_coco(data.json, min_area=1000)


def test_training_needs_neither_areas_nor_sizes(tmp_path: Path) -> None:
    path = write_shapes(tmp_path)
    expected = batches(path)[2]

    def drop(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            del entry["area"], entry["iscrowd"]
        for entry in content["images"]:
            del entry["height"], entry["width"]

    found = batches(edit(path, drop))[2]
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert open_source(str(path), tmp_path / "images").usage == batches(path).usage


def test_sizes_come_from_the_folder_alone(data: SimpleNamespace) -> None:
    data.write(changed(SPELLINGS["no sizes"]))
    with pytest.raises(InputError, match="image 30 has no 'height' and 'width'; add them"):
        load_coco(data.json)
    assert {image.size for image in load_coco(data.json, folder=data.images)} == {(HEIGHT, WIDTH)}
    (data.images / "30.png").write_text("no image")
    with pytest.raises(InputError, match="30.png is not an image"):
        load_coco(data.json, folder=data.images)


@pytest.mark.parametrize("twin", [3, 3.0, "3"])
def test_duplicate_annotation_ids_are_refused_when_loaded(twin: Any, data: SimpleNamespace) -> None:
    """Also of another image, and of one that is left out: tools that index by id would lose one."""
    for index in (2, 3, 5):
        data.write(changed(lambda content, index=index: content["annotations"][index].update(id=twin)))
        with pytest.raises(InputError, match="annotation id 3 appears twice; give every annotation an id of its own"):
            load_coco(data.json, crowds=False)


def test_ids_with_half_a_surrogate_pair(data: SimpleNamespace, tmp_path: Path) -> None:
    for part, word in (
        ("images", "an image has no integer"),
        ("annotations", "an annotation of image .* has no integer"),
    ):
        data.write(changed(lambda content, part=part: content[part][1].update(id="\ud800")))
        with pytest.raises(InputError, match=word):
            load_coco(data.json)
    data.write(toy())
    for key in ("image_id", "category_id"):
        row = {"image_id": 30, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1} | {key: "\udfff"}
        (tmp_path / "d.json").write_text(json.dumps([row]))
        with pytest.raises(InputError, match=f"no integer or string '{key}'"):
            load_detections(tmp_path / "d.json", load_coco(data.json))


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    "name", ["../30.png", "a/../../30.png", "/etc/30.png", r"..\30.png", r"a\..\..\30.png", r"\etc\30.png", "a/.."]
)
def test_names_do_not_lead_out_of_the_folder(name: str, data: SimpleNamespace) -> None:
    shutil.copy(data.images / "30.png", data.images.parent)
    data.write(changed(lambda content: content["images"][0].update(file_name=name)))
    with pytest.raises(InputError, match="image 30 has the 'file_name' .* leads out of the folder"):
        load_coco(data.json)
    (data.images.parent / "prompts.json").write_text(json.dumps({name: [{"box": [1, 2, 3, 4]}]}))
    with pytest.raises(InputError, match="is no file of the folder"):
        load_prompts(data.images.parent / "prompts.json", data.images)


def test_backslashes_only_where_there_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b.jpg", r"a\c.jpg", "a/c.jpg"):
        (tmp_path / name).touch()
    prompts = {r"a\b.jpg": [{"box": [1, 2, 3, 4]}], r"a\c.jpg": [{"box": [1, 2, 3, 4]}]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    assert list(load_prompts(tmp_path / "prompts.json", tmp_path)) == ["a/b.jpg", r"a\c.jpg"]
    (tmp_path / "prompts.json").write_text(json.dumps({"a/b.jpg": prompts[r"a\b.jpg"]} | prompts))
    with pytest.raises(InputError, match="a/b.jpg twice, with / and with"):
        load_prompts(tmp_path / "prompts.json", tmp_path)
    content = whole()
    for image, name in zip(content["images"], (r"a\b.jpg", r"a\c.jpg", "a/c.jpg")):
        image["file_name"] = name
    (tmp_path / "a.json").write_text(json.dumps(content))
    images = load_coco(tmp_path / "a.json", min_area=0, empty_images=True)
    check_image_files(images, tmp_path)
    assert {image.file_name for image in images} == {"a/b.jpg", r"a\c.jpg", "a/c.jpg"}


# ---------------------------------------------------------------- orientation
def lie_down(path: Path) -> None:
    """Give the file an EXIF orientation that turns its pixels, which stay as they are."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def test_orientation_against_raw_sizes(
    data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    expected = figures(data, toy())
    lie_down(data.images / "30.png")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        figures(data, toy())
    assert capsys.readouterr().err.endswith(
        "30.png is 24 x 32 pixels, but the annotations say 32 x 24, the size of its pixels before its EXIF orientation "
        "turns them: give --ignore-exif\n"
    )
    assert figures(data, toy(), "--ignore-exif") == expected
    assert figures(data, changed(SPELLINGS["no sizes"]), "--ignore-exif") == expected

    upright = CocoImage(30, "30.png", (WIDTH, HEIGHT))
    assert read_photo(data.images / "30.png", upright).shape == (WIDTH, HEIGHT, 3)
    upright.ignore_exif = True
    with pytest.raises(InputError, match="turned as its EXIF orientation says: leave out --ignore-exif$"):
        read_photo(data.images / "30.png", upright)


def test_orientation_in_training_and_crops(
    tmp_path: Path, data: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    path = write_shapes(tmp_path / "set")
    expected = batches(path)[1]
    for image in (path.parent / "images").iterdir():
        lie_down(image)
    with pytest.raises(InputError, match="give --ignore-exif$"):
        batches(path)[1]
    found = batches(path, ignore_exif=True)[1]
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    for ignore, masks in ((False, 0), (True, len(batches(path).images))):
        source = open_source(str(path), path.parent / "images", ignore_exif=ignore)
        photos = [photo for key in source.units() for photo in source.unit(key)]
        assert sum(hasattr(photo, "masks") for photo in photos) == masks

    clean = crops(data, whole())
    lie_down(data.images / "30.png")
    with pytest.raises(SystemExit):
        crops(data, whole())
    assert capsys.readouterr().err.endswith("give --ignore-exif\n")
    assert crops(data, whole(), "--ignore-exif") == clean
