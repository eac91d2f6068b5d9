"""`sam-bigltl bulk` on Ray: the masks of the predictor from any input, whatever is spread, killed or broken."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam
from PIL import Image
from pycocotools import mask as coco_mask

from sam_bigltl import SamAutomaticMaskGenerator, SamPredictor, load_sam
from sam_bigltl.cli import main
from sam_bigltl.convert import save_sam
from sam_bigltl.data.images import read_image

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COUNT = 40  # photographs: three chunks, or shards of them
SETTING = ("--dtype", "float32", "--native", "--keep-ratio", "0.5", "--device", "cpu")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, of two cores each, to which this process is connected."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = dict(num_cpus=2, object_store_memory=150 * 2**20, include_dashboard=False)
    found = Cluster(initialize_head=True, head_node_args=node)
    found.add_node(num_cpus=2, object_store_memory=150 * 2**20)
    ray.init(address=found.address, log_to_driver=False)
    yield found.address
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_sam(dense_sam(dense_config(little_dim=8)), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for seed in range(COUNT):
        image = Image.fromarray(picture(40 + seed, 90 - seed, seed=seed))
        image.save(folder / ("sub" if seed % 5 == 0 else "") / f"{seed:02d}.{'jpg' if seed % 2 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def prompts(photos) -> dict[str, list[dict]]:
    """One to three boxes, or points, for each photograph but one."""
    found = {}
    for number, name in enumerate(names(photos)):
        boxes = [{"box": [3 + i, 2, 30 + i, 35]} for i in range(1 + number % 3)]
        points = [{"point_coords": [[10, 12], [30, 5]], "point_labels": [1, 0]}] * (number % 4 == 0)
        found[name] = boxes + points
    del found[names(photos)[7]]
    return found


@pytest.fixture
def bulk(cluster, checkpoint, tmp_path, capsys, monkeypatch):
    """Run the command in this process; returns the exit code, what it printed, and the folder of the results."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Ray's handlers have the stream of the first test

    def run(source: object, *options: object, out: str = "out", actors: int | None = 1) -> tuple[int, str, Path]:
        fixed = ["--output", tmp_path / out, "--checkpoint", checkpoint, "--address", cluster, *SETTING]
        fixed += ["--actors", actors] if actors else []
        capsys.readouterr()
        try:
            main(["bulk", *map(str, [source, *fixed, *options])])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return code, found.out + found.err, tmp_path / out

    return run


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("masks-*")) for row in parquet.read_table(path).to_pylist()]


def errors(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "errors.csv", newline="") as file:
        return [(row["name"], row["reason"]) for row in csv.DictReader(file)]


def written(prompts: object, tmp_path: Path, name: str = "prompts.json") -> Path:
    (tmp_path / name).write_text(json.dumps(prompts))
    return tmp_path / name


def decoded(mask: dict, row: dict) -> np.ndarray:
    return coco_mask.decode({"size": [row["height"], row["width"]], "counts": mask["counts"]}).astype(bool)


@pytest.fixture
def predictor(checkpoint):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the decoder's last bits depend on it
    sam = load_sam(checkpoint)
    sam.image_encoder.compute_in("float32", True)
    sam.image_encoder.keep_ratio = 0.5
    yield SamPredictor(sam)
    torch.set_num_threads(threads)


def masks_one_by_one(predictor: SamPredictor, image: np.ndarray, asked: list[dict]) -> list[tuple[np.ndarray, float]]:
    """The best mask of each prompt, boxes in one call and points in another, as SAM's own interface has them."""
    predictor.set_image(image)
    size = image.shape[:2]
    found: list = [None] * len(asked)
    boxes = [i for i, prompt in enumerate(asked) if "box" in prompt]
    points = [i for i, prompt in enumerate(asked) if "box" not in prompt]
    transform = predictor.transform
    calls = []
    if boxes:
        corners = torch.as_tensor(transform.apply_boxes(np.array([asked[i]["box"] for i in boxes], float), size))
        calls.append((boxes, (None, None, corners)))
    if points:
        coords = transform.apply_coords(np.array([asked[i]["point_coords"] for i in points], float), size)
        labels = torch.tensor([asked[i]["point_labels"] for i in points])
        calls.append((points, (torch.as_tensor(coords), labels)))
    for indices, given in calls:
        masks, scores, _ = predictor.predict_torch(*given)
        for index, mask, score in zip(indices, masks.numpy(), scores.numpy()):
            found[index] = (mask[score.argmax()], float(score.max()))
    return found


def test_masks_are_those_of_the_predictor_however_the_work_is_spread(bulk, photos, prompts, predictor, tmp_path):
    asked = written(prompts, tmp_path)
    code, said, out = bulk(photos, "--prompts", asked, "--shard-size", 20, "--coco", actors=None)
    assert code == 0 and f"{COUNT} photographs" in said
    assert contents(out).keys() == {
        "settings.json",
        "errors.csv",
        "annotations.json",
        "masks-00000.parquet",
        "masks-00001.parquet",
    }
    found = rows(out)
    assert [row["key"] for row in found] == names(photos)
    for row in found:
        image = read_image(photos / row["key"])
        expected = masks_one_by_one(predictor, image, prompts.get(row["key"], []))
        assert (row["height"], row["width"]) == image.shape[:2] and len(row["masks"]) == len(expected)
        for number, (mask, (own, score)) in enumerate(zip(row["masks"], expected)):
            assert (decoded(mask, row) == own).all() and mask["predicted_iou"] == np.float32(score)
            assert mask["prompt"] == number and mask["area"] == own.sum()
    _, _, other = bulk(
        photos, "--prompts", asked, "--shard-size", 20, "--coco", "--batch-size", 7, "--threads", 2, out="other",
    )  # fmt: skip
    assert contents(other) == contents(out)


def test_coco_json_is_read_by_pycocotools(bulk, photos, prompts, tmp_path):
    from pycocotools.coco import COCO

    _, _, out = bulk(photos, "--prompts", written(prompts, tmp_path), "--coco")
    coco = COCO(out / "annotations.json")
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == names(photos)
    for row, image in zip(rows(out), images):
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(row["masks"])
        for annotation, mask in zip(annotations, row["masks"]):
            assert (coco.annToMask(annotation) == decoded(mask, row)).all()


def made_list(photos: Path, folder: Path, asked: dict) -> Path:
    (folder / "list.txt").write_text("\n".join(str(photos / name) for name in names(photos)))
    return folder / "list.txt"


def made_tars(photos: Path, folder: Path, asked: dict) -> Path:
    """Two tars, the prompts beside the photographs."""
    for number in range(2):
        with tarfile.open(folder / f"shard_{number}.tar", "w") as tar:
            for name in names(photos)[number * 20 : number * 20 + 20]:
                flat = name.replace("/", "_")
                tar.add(photos / name, flat)
                boxes = [prompt["box"] for prompt in asked.get(name, []) if "box" in prompt]
                content = json.dumps({"boxes": boxes}).encode()
                info = tarfile.TarInfo(flat.rpartition(".")[0] + ".json")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder / "shard_{0..1}.tar"


def made_parquet(photos: Path, folder: Path, asked: dict) -> Path:
    """As Hugging Face's datasets write images, with a column of boxes."""
    table = pyarrow.Table.from_pylist([
        {
            "image": {"bytes": (photos / name).read_bytes(), "path": name},
            "boxes": [list(map(float, prompt["box"])) for prompt in asked.get(name, []) if "box" in prompt],
        }
        for name in names(photos)
    ])  # fmt: skip
    parquet.write_table(table, folder / "photos.parquet", row_group_size=9)
    return folder / "photos.parquet"


@pytest.mark.parametrize("make", [made_tars, made_parquet])
def test_prompts_that_come_with_the_photographs(bulk, photos, prompts, make, tmp_path):
    boxes = {name: [each for each in asked if "box" in each] for name, asked in prompts.items()}
    _, _, expected = bulk(photos, "--prompts", written(boxes, tmp_path), out="folder")
    code, said, out = bulk(make(photos, tmp_path, boxes), "--prompts", "columns")
    assert code == 0, said
    assert [(row["sha256"], row["masks"]) for row in rows(out)] == [
        (row["sha256"], row["masks"]) for row in rows(expected)
    ]


def test_a_list_and_an_address(bulk, photos, prompts, tmp_path):
    """Of file:// and of paths; the prompts are named as the list names the photographs."""
    _, _, expected = bulk(photos, "--prompts", written(prompts, tmp_path), out="folder")
    asked = {str(photos / name): each for name, each in prompts.items()}
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(asked)],
        "annotations": [],
    }
    results = [
        {"image_id": i, "category_id": 3, "score": 0.5, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, each in enumerate(asked.values()) for prompt in each if "box" in prompt
        for x0, y0, x1, y1 in [prompt["box"]]
    ]  # fmt: skip
    options = [
        "--prompts",
        written(results, tmp_path, "results.json"),
        "--annotations",
        written(coco, tmp_path, "c.json"),
    ]
    code, said, out = bulk(made_list(photos, tmp_path, {}), *options)
    assert code == 0, said
    for row, own in zip(rows(out), rows(expected)):
        boxes = [mask for mask in own["masks"] if "box" in prompts[own["key"]][mask["prompt"]]]
        assert row["sha256"] == own["sha256"]
        assert [mask["counts"] for mask in row["masks"]] == [mask["counts"] for mask in boxes]
        assert all(mask["category_id"] == 3 for mask in row["masks"])
    code, said, remote = bulk(f"file://{photos}", "--prompts", written(prompts, tmp_path), out="remote")
    assert code == 0 and rows(remote) == rows(expected), said


def test_everything_mode_is_the_generators(bulk, photos, predictor, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in names(photos)[:3]:
        (few / Path(name).name).write_bytes((photos / name).read_bytes())
    code, said, out = bulk(
        few, "--everything", "--points-per-side", 4, "--pred-iou-thresh", 0, "--stability-score-thresh", 0
    )
    assert code == 0, said
    generator = SamAutomaticMaskGenerator(
        predictor.model, 4, pred_iou_thresh=0.0, stability_score_thresh=0.0, output_mode="binary_mask"
    )
    for row in rows(out):
        expected = generator.generate(read_image(few / row["key"]))
        assert len(row["masks"]) == len(expected)
        for mask, record in zip(row["masks"], expected):
            assert (decoded(mask, row) == record["segmentation"]).all()
            assert mask["stability"] == np.float32(record["stability_score"])


def test_embeddings_are_read_by_their_names(bulk, photos, predictor):
    code, said, out = bulk(photos, "--embeddings", "--batch-size", 4)
    assert code == 0, said
    for row in (rows(out)[0], rows(out)[-1]):
        image = read_image(photos / row["key"])
        predictor.set_image(image)
        features, expected = predictor.features, predictor.predict(box=np.array([3, 3, 30, 30]))
        predictor.load_embedding(out / row["embedding"], row["key"])
        assert torch.equal(predictor.features, features)
        assert all((a == b).all() for a, b in zip(predictor.predict(box=np.array([3, 3, 30, 30])), expected))
    with pytest.raises(ValueError, match="holds 16 photographs"):
        predictor.load_embedding(out / rows(out)[0]["embedding"])


def test_what_is_broken_is_named_and_the_rest_done(bulk, photos, tmp_path):
    """A photograph cut off, one of 0 bytes, one that is missing, and prompts that no photograph can be asked."""
    good = names(photos)[:4]
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((photos / names(photos)[1]).read_bytes()[:300])
    (tmp_path / "empty.png").touch()
    listed = [*(str(photos / name) for name in good), "cut.jpg", "empty.png", "missing.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    asked = {name: [{"box": [1, 1, 30, 30]}] for name in listed}
    asked[listed[0]].append({"box": [900, 900, 950, 950]})
    code, said, out = bulk(tmp_path / "list.txt", "--prompts", written(asked, tmp_path))
    assert code == 1
    assert [(row["key"], len(row["masks"])) for row in rows(out)] == [(name, 1) for name in listed[:4]]
    found = dict(errors(out))
    assert found.keys() == {listed[0], "cut.jpg", "empty.png", "missing.jpg"}
    assert "prompt 1: box 900" in found[listed[0]] and "0 bytes" in found["empty.png"]
    assert all(name in said for name in found) and "Traceback" not in said
    cut.write_bytes((photos / good[1]).read_bytes())  # it is mended, and asked for again
    code, said, out = bulk(tmp_path / "list.txt", "--prompts", tmp_path / "prompts.json", "--retry-errors")
    assert code == 1 and "cut.jpg" not in dict(errors(out)) and "cut.jpg" in [row["key"] for row in rows(out)]


def test_a_broken_shard_gives_what_is_whole(bulk, photos, tmp_path):
    made_tars(photos, tmp_path, {})
    whole = (tmp_path / "shard_0.tar").read_bytes()
    (tmp_path / "shard_0.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "shard_1.tar").write_bytes(b"")
    code, said, out = bulk(tmp_path / "shard_{0..1}.tar", "--embeddings")
    assert code == 1 and "Traceback" not in said
    assert 5 <= len(rows(out)) < 20
    assert [name for name, _ in errors(out)] == ["shard_0.tar", "shard_1.tar"]


def test_what_cannot_be_written_is_named_and_the_rest_done(bulk, photos, tmp_path):
    out = tmp_path / "out"
    (out / ".parts").mkdir(parents=True)
    (out / ".parts" / "00001").touch()  # a file where a folder must be
    code, said, out = bulk(photos, "--embeddings", "--shard-size", 16)
    assert code == 1 and "1 shards are not done" in said and "shard 00001" in said and "Traceback" not in said
    assert sorted(path.name for path in out.glob("masks-*")) == ["masks-00000.parquet", "masks-00002.parquet"]
    (out / ".parts" / "00001").unlink()
    code, said, out = bulk(photos, "--embeddings", "--shard-size", 16)
    assert code == 0 and [row["key"] for row in rows(out)] == names(photos)


def test_other_settings_and_other_photographs_are_refused(bulk, photos, tmp_path):
    bulk(photos, "--embeddings")
    for source, options, words in (
        (photos, ["--embeddings", "--keep-ratio", "0.25"], "keep_ratio was 0.5 and is 0.25"),
        (photos / "sub", ["--embeddings"], "input was"),
    ):
        code, said, _ = bulk(source, *options)
        assert code == 2 and "results of other settings" in said and words in said
        assert said.count("\n") == 1 or "\n" not in said.strip().partition("error:")[2]


def started(photos: Path, asked: Path, checkpoint: Path, out: Path, address: str | None) -> subprocess.Popen:
    options = ["--output", out, "--prompts", asked, "--checkpoint", checkpoint, "--shard-size", 20, *SETTING]
    options += ["--address", address] if address else []
    command = [sys.executable, "-m", "sam_bigltl.cli", "bulk", photos, *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(what, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def workers() -> list:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if words.startswith("ray::") and "_Worker" in words:
            found.append(process)
    return found


def killed(draw: random.Random, photos, asked, checkpoint, out: Path, cluster: str, times: int) -> None:
    """Kill the command at random moments, then let it end; every second time kill one of its workers instead."""
    for number in range(times):
        process = started(photos, asked, checkpoint, out, cluster)
        assert wait_for(lambda process=process: workers() or process.poll() is not None)
        time.sleep(draw.uniform(0, 4))
        if number % 2:
            for worker in draw.sample(found := workers(), min(1, len(found))):
                worker.kill()
            assert process.wait(300) == 0, process.stdout.read().decode()
            return
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = started(photos, asked, checkpoint, out, cluster)
    assert process.wait(300) == 0, process.stdout.read().decode()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_started_again_it_ends_with_the_same_files(
    bulk, cluster, photos, prompts, checkpoint, tmp_path, times
):
    asked = written(prompts, tmp_path)
    _, _, expected = bulk(photos, "--prompts", asked, "--shard-size", 20, out="expected")
    draw = random.Random(0)
    for number in range(times // 2):
        out = tmp_path / f"out{number}"
        killed(draw, photos, asked, checkpoint, out, cluster, 2)
        assert contents(out) == contents(expected)


def test_workers_that_fit_nowhere_are_refused(bulk, photos):
    code, said, _ = bulk(photos, "--embeddings", "--threads", 3, actors=None)
    assert code == 2 and "the largest node has 2 cores, a worker 3" in said


def test_on_this_machine_alone_and_two_runs_at_once(photos, prompts, checkpoint, tmp_path):
    asked, out = written(prompts, tmp_path), tmp_path / "out"
    first = started(photos, asked, checkpoint, out, None)
    assert wait_for((out / ".lock").exists)
    second = started(photos, asked, checkpoint, out, None)
    said = second.communicate(timeout=120)[0].decode()
    assert second.returncode == 2 and "another run is writing" in said and "Traceback" not in said
    said = first.communicate(timeout=300)[0].decode()
    assert first.returncode == 0 and "Traceback" not in said and "Warning" not in said, said
    assert [row["key"] for row in rows(out)] == names(photos)
    assert not (out / ".parts").exists() or not list((out / ".parts").iterdir())
