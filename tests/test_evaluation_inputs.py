"""The evaluation's answer to bad input: exit code 2 and one line that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluation_toy import HEIGHT, WIDTH, arguments, compressed, main, script, toy, uncompressed
from PIL import Image


def annotation_without(*keys: str) -> dict[str, Any]:
    content = toy()
    for key in keys:
        del content["annotations"][1][key]  # id 3
    return content


def changed(part: str, **values: Any) -> dict[str, Any]:
    """The toy set with one annotation (id 3) or image (id 4) changed."""
    content = toy()
    content[part][1].update(values)
    return content


BAD_JSON = {
    "not JSON": ("{'images': ", "not valid JSON"),
    "not text": ("\x00\x01", "not valid JSON"),
    "a list": ([{"image_id": 1}], "not COCO format"),
    "no annotations key": ({"images": toy()["images"]}, "'annotations'"),
    "annotations of numbers": ({"images": toy()["images"], "annotations": [1]}, "'annotations'"),
    "no images": ({**toy(), "images": []}, "no images"),
    "no annotations": ({**toy(), "annotations": []}, "no annotations"),
    "tiny areas": ({**toy(), "annotations": [{"id": 1, "image_id": 4, "area": 0.2}]}, "no annotation with an area"),
    "image twice": ({**toy(), "images": toy()["images"] * 2}, "image id 30 appears twice"),
    "image of an odd size": (changed("images", height=24.5), "image 4 has no positive integer 'height'"),
    "image of no size": (changed("images", height=0), "image 4 has no positive integer 'height'"),
    "image without name": (changed("images", file_name=None), "image 4 has no 'file_name'"),
    "image without id": (changed("images", id=None), "no integer or string 'id'"),
    "annotation without id": (annotation_without("id"), "no integer or string 'id'"),
    "area of words": (changed("annotations", area="12"), "annotation 3 has an 'area' that is no number"),
    "no segmentation": (annotation_without("segmentation"), "annotation 3 has no segmentation"),
    "empty segmentation": (changed("annotations", segmentation=[]), "annotation 3 has no segmentation"),
    "one point": (changed("annotations", segmentation=[[1, 2]]), "annotation 3 has no segmentation"),
    "odd polygon": (changed("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 3 has a polygon"),
    "far polygon": (changed("annotations", segmentation=[[1, 2, 3, 1e300, 5, 6]]), "annotation 3 has a polygon"),
    "unknown image": (changed("annotations", image_id=77), "annotation 3 belongs to image 77"),
    "unhashable image": (changed("annotations", image_id=[4]), "annotation 3 belongs to image [4]"),
    "no box": (annotation_without("bbox"), "annotation 3 has no 'bbox'"),
    "short box": (changed("annotations", bbox=[1, 2, 3]), "annotation 3 has a 'bbox' that is not four numbers"),
    "flat box": (changed("annotations", bbox=[1, 2, 3, 0]), "annotation 3 has a 'bbox' [1, 2, 3, 0]"),
    "outside box": (changed("annotations", bbox=[90, 2, 3, 4]), "annotation 3 has a 'bbox' [90, 2, 3, 4]"),
    "size differs": (changed("annotations", segmentation=uncompressed(np.eye(6) > 0)), "of size [6, 6]"),
    "compressed size differs": (changed("annotations", segmentation=compressed(np.eye(6) > 0)), "of size [6, 6]"),
    "counts too few": (changed("annotations", segmentation={"size": [24, 32], "counts": [3, 4]}), "annotation 3"),
    "counts negative": (changed("annotations", segmentation={"size": [24, 32], "counts": [800, -32]}), "annotation 3"),
    "string cut": (changed("annotations", segmentation={"size": [24, 32], "counts": "0" * 50}), "annotation 3"),
    "string open": (changed("annotations", segmentation={"size": [24, 32], "counts": "hh`"}), "annotation 3"),
    "string wrong": (changed("annotations", segmentation={"size": [24, 32], "counts": "\x01é"}), "annotation 3"),
    "no counts": (changed("annotations", segmentation={"size": [24, 32]}), "annotation 3"),
}


def assert_one_line(capture: pytest.CaptureFixture, message: str) -> None:
    output = capture.readouterr()
    assert output.out == ""
    assert output.err.startswith("coco_miou.py: error: ") and output.err.count("\n") == 1, output.err
    assert message in output.err and "Traceback" not in output.err, output.err


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_annotations_end_in_one_line(
    case: str, data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    content, message = BAD_JSON[case]
    data.write(content)
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, "--prompts", "box"))
    assert stop.value.code == 2
    assert_one_line(capsys, message)
    assert not (data.out / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--annotations", "nowhere.json"], "nowhere.json does not exist"),
        (["--annotations", "."], "cannot be read"),
        (["--images", "nowhere"], "image folder nowhere does not exist"),
        (["--images", "."], "2 of 2 image files are missing in ., the first is 4.png"),
        (["--keep-ratio", "0"], "--keep-ratio 0 is neither"),
        (["--keep-ratio", "0.5", "1.01"], "--keep-ratio 1.01 is neither"),
        (["--keep-ratio", "nan"], "--keep-ratio nan is neither"),
        (["--keep-ratio", "half"], "--keep-ratio half is neither"),
        (["--clicks", "1", "0"], "--clicks 0 is not a whole number"),
        (["--clicks", "1.5"], "--clicks 1.5 is not a whole number"),
        (["--clicks", "20000"], "--clicks 20000 is too many points"),
        (["--refine", "20000"], "--refine 20000 is too many points"),
        (["--limit", "0"], "--limit 0 is not a whole number"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--output", str(Path(__file__))], "cannot be a folder"),
    ],
)
def test_bad_flags_end_in_one_line(
    flags: list[str], message: str, data: SimpleNamespace, stub_model: SimpleNamespace,
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, *flags))
    assert stop.value.code == 2
    assert_one_line(capsys, message)


def test_bad_images_end_in_one_line(
    data: SimpleNamespace, stub_model: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    (data.images / "30.png").write_text("not an image")
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, "--no-report"))
    output = capsys.readouterr()
    assert stop.value.code == 2 and output.err.count("\n") == 1
    assert "1 of 2 images could not be read" in output.err and "30.png" in output.err
    report = json.loads((data.out / "results.json").read_text())  # what could be read is not lost
    assert list(report["unreadable"]) == ["30"] and (
        report["summary"][0]["images"],
        report["summary"][0]["instances"],
    ) == (1, 2)

    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(data.images / "30.png")
    with pytest.raises(SystemExit):
        main(arguments(data, "--restart"))
    assert f"30.png is {WIDTH} x {HEIGHT + 1} pixels" in capsys.readouterr().err

    (data.images / "30.png").unlink()
    with pytest.raises(SystemExit):
        main(arguments(data))
    assert_one_line(capsys, "1 of 2 image files are missing")

    stub_model.is_dense = True
    main(arguments(data, "--limit", "1", "--restart"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(arguments(data, "--limit", "1", "--keep-ratio", "0.5"))
    assert_one_line(capsys, "dense")


def test_boxes_are_needed_only_for_box_prompts(data: SimpleNamespace, stub_model: SimpleNamespace) -> None:
    data.write(annotation_without("bbox"))
    main(arguments(data, "--prompts", "point", "--clicks", "1"))
    assert json.loads((data.out / "results.json").read_text())["summary"][0]["instances"] == 5


def test_script_ends_bad_input_in_one_line(data: SimpleNamespace) -> None:
    done = script(*arguments(data, "--annotations", "nowhere.json"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "coco_miou.py: error: annotations file nowhere.json does not exist; check --annotations\n"


def test_missing_checkpoint_ends_in_one_line(data: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(data))
    assert stop.value.code == 2
    assert_one_line(capsys, "none.safetensors")
