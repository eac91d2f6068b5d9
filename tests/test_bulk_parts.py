"""The parts of bulk segmentation that need no cluster: shards, prompts in columns and files, the folder of results."""
# ruff: noqa: E402 - what needs an optional package is imported after the check for it

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import picture

pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from sam_bigltl.bulk.folder import Folder
from sam_bigltl.bulk.inputs import FILES, PARQUET, TAR, digest, find_shards
from sam_bigltl.bulk.prompt_files import check_names, read_prompts
from sam_bigltl.bulk.prompts import of_columns, of_json
from sam_bigltl.cli import main
from sam_bigltl.errors import InputError
from sam_bigltl.predict.longest_side import resized
from sam_bigltl.predict.prompt import Prompt
from sam_bigltl.predict.resize import ResizeLongestSideFloat32


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_is_counted_off_in_the_order_of_its_names(tmp_path):
    folder = touched(tmp_path, "b/2.png", "a.JPG", "b/1.jpeg", "c.txt", ".hidden/d.jpg", "b/.e.jpg")
    shards = find_shards(str(folder), 2)
    assert [(shard.name, shard.kind, shard.keys) for shard in shards] == [
        ("00000", FILES, ("a.JPG", "b/1.jpeg")), ("00001", FILES, ("b/2.png",))
    ]  # fmt: skip
    assert all(Path(place).exists() for shard in shards for place in shard.addresses)
    assert digest(shards) == digest(find_shards(f"{folder}/", 2)) != digest(find_shards(str(folder), 3))


@pytest.mark.parametrize(("ending", "kind"), [("tar", TAR), ("tar.gz", TAR), ("parquet", PARQUET)])
def test_files_that_hold_photographs_are_shards(tmp_path, ending, kind):
    folder = touched(tmp_path / "in", *(f"{number}.{ending}" for number in range(12)))
    found = find_shards(str(folder))
    assert len(found) == 12 and {shard.kind for shard in found} == {kind}
    some = find_shards(str(folder / ("{3..5}." + ending)))
    assert [shard.keys for shard in some] == [(f"{number}.{ending}",) for number in range(3, 6)]
    assert len(find_shards(str(folder / f"7.{ending}"))) == 1


def test_what_is_no_input_is_one_line(tmp_path):
    folder = touched(tmp_path / "mixed", "a.jpg", "b.tar")
    (tmp_path / "empty").mkdir()
    strange = tmp_path / "strange.txt"
    strange.write_text("c.jpg\nnothing://b/a.jpg\n")
    twice = tmp_path / "twice.txt"
    twice.write_text("a.jpg\nb.jpg\na.jpg\n")
    for source, words in (
        (folder, "1 photographs and 1 tar files: give a folder of one kind"),
        (tmp_path / "empty", "has neither photographs nor"),
        (twice, "names a.jpg twice"),
        (tmp_path / "missing.txt", "no such list"),
        (tmp_path / "missing", "is neither a folder nor"),
        (tmp_path / "sa_{0..3.tar", "braces that do not close"),
        (tmp_path / "sa_{0..3}.tar", "no such file"),
        ("nothing://bucket/photos", "cannot be opened"),
        (strange, "nothing://b/a.jpg cannot be opened"),
    ):
        with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
            find_shards(str(source))
        assert "\n" not in str(error.value)


def test_prompts_in_columns():
    found = of_columns([[1, 2, 30, 40], [5, 5, 4, 9]], [[7, 8], [[1, 2], [3, 4]]], [1, [1, 0]])
    assert [each.prompt for each in found if isinstance(each.prompt, Prompt)] == [
        Prompt((1, 2, 30, 40)), Prompt(None, ((7, 8),), (1,)), Prompt(None, ((1, 2), (3, 4)), (1, 0))
    ]  # fmt: skip
    assert "has no area" in str(found[1].prompt)
    assert of_columns() == of_columns(None, []) == []
    for wrong in ([["a", 1, 2, 3]], [[1, 2, 3]], [None], "box", [[float("nan")] * 4], 7):
        assert all(isinstance(each.prompt, InputError) for each in of_columns(wrong)), wrong
    assert "2 points have 1 labels" in str(of_columns(None, [[1, 2], [3, 4]], [1])[0].prompt)


def test_prompts_beside_photographs_in_a_tar():
    """SA-1B's form: https://github.com/facebookresearch/segment-anything#dataset"""
    annotations = [{"id": 4, "bbox": [10, 20, 5, 6], "point_coords": [[12, 22]], "area": 30}]
    assert [each.prompt for each in of_json({"image": {}, "annotations": annotations})] == [Prompt((10, 20, 15, 26))]
    assert [each.prompt for each in of_json({"boxes": [[1, 2, 3, 4]]})] == [Prompt((1, 2, 3, 4))]
    assert of_json([1]) == of_json({}) == of_json("a") == []


def test_files_of_prompts(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    results = [{"image_id": 2, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.9}]
    annotations = [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]
    annotations += [{"id": 6, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1}]
    contents = {
        "results.json": results, "images.json": {"images": images},
        "instances.json": {"images": images, "annotations": annotations},
        "named.json": {"/data/a.jpg": [{"box": [1, 2, 4, 6]}]},
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    table = pyarrow.table({"file_name": ["a.jpg", "a.jpg"], "boxes": [[[1.0, 2, 4, 6]], [[2.0, 2, 4, 6]]]})
    parquet.write_table(table, tmp_path / "prompts.parquet")
    box = Prompt((1, 2, 4, 6))
    (one,) = read_prompts(tmp_path / "results.json", tmp_path / "images.json")["b.jpg"]
    assert one.prompt == box and one.category == 18
    (one,) = read_prompts(tmp_path / "instances.json")["a.jpg"]  # without the crowd
    assert one.prompt == box and one.category == 3
    assert [each.prompt for each in read_prompts(tmp_path / "named.json")["/data/a.jpg"]] == [box]
    assert read_prompts(tmp_path / "prompts.parquet")["a.jpg"][0].prompt == box
    with pytest.raises(InputError, match="give the JSON that names its images with --annotations"):
        read_prompts(tmp_path / "results.json")
    with pytest.raises(InputError, match="names none of the photographs"):
        check_names(read_prompts(tmp_path / "named.json"), ["a.jpg"], "named.json")
    assert check_names(read_prompts(tmp_path / "prompts.parquet"), ["a.jpg", "c.jpg"], "prompts.parquet") == 0


def test_readers_load_no_torch():
    code = "import sys, sam_bigltl.bulk.reading; print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("size", [(480, 640), (37, 1), (1, 999), (640, 640), (300, 451)])
def test_the_resize_is_segment_anythings(size):
    image = picture(*size)
    assert (resized(image, 96) == ResizeLongestSideFloat32(96).apply_image(image)).all()


def test_a_folder_beside_another_is_not_inside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(touched(tmp_path / "in", "a.jpg"))
    assert Folder("../out").path("x") == str(tmp_path / "out" / "x")
    assert [Path(place).exists() for place in find_shards(".")[0].addresses] == [True]


def test_a_folder_keeps_its_settings(tmp_path):
    folder = Folder(str(tmp_path / "out"))
    folder.keep_settings({"keep_ratio": (1.0, 0.5), "model": "a"})
    folder.keep_settings({"keep_ratio": [1.0, 0.5], "model": "a"})
    with pytest.raises(InputError, match='model was "a" and is "b"'):
        folder.keep_settings({"keep_ratio": [1.0, 0.5], "model": "b"})
    (tmp_path / "out" / "settings.json").write_text("[]")
    with pytest.raises(InputError, match="is not of `sam-bigltl bulk`"):
        folder.keep_settings({})


def test_files_appear_whole_or_not_at_all(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a/b.bin", b"1")
    (tmp_path / "a" / "partial-b-xyz").mkdir()
    assert folder.names("a") == ["b.bin", "partial-b-xyz"] and folder.read("a/b.bin") == b"1"
    folder.clean("a")
    assert folder.names("a") == ["b.bin"] and folder.names("none") == [] and folder.read("none") is None
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to do"),
        (["--prompts", "columns", "--everything"], "give one of the two"),
        (["--embeddings", "--annotations", "a.json"], "give them with --prompts"),
        (["--embeddings", "--batch-size", "17"], "1 to 16 photographs, not 17"),
        (["--embeddings", "--actors", "0"], "--actors is at least 1"),
        (["--embeddings", "--device", "cuda:1"], "cuda:1"),
        (["--embeddings", "--keep-ratio", "2"], "--keep-ratio '2'"),
        (["--embeddings", "--checkpoint", "none.pth"], "none.pth"),
        (["--prompts", "none.json"], "none.json"),
        (["--embeddings", "--output", "in/out"], "is inside"),
        (["--embeddings", "--output", "in"], "is inside"),
        (["--embeddings", "--output", "file"], "is a file"),
        (["--embeddings", "--coco", "--output", "memory://out"], "--coco writes one file on this machine"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, monkeypatch, options, words):
    folder = touched(tmp_path / "in", "a.jpg")
    monkeypatch.chdir(touched(tmp_path, "file"))
    with pytest.raises(SystemExit) as end:
        main(["bulk", str(folder), "--output", "out", "--device", "cpu", *options])
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1, said


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = touched(tmp_path / "in", "a.jpg")
    options = ["--output", str(tmp_path / "out"), "--device", "cpu", "--embeddings"]
    with pytest.raises(SystemExit) as end:
        main(["bulk", str(folder), *options, "--address", f"127.0.0.1:{port}"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"no Ray at 127.0.0.1:{port}" in said and "Traceback" not in said
