"""Small photographs, prompts, a tiny model and a Ray cluster of two nodes, for the tests of `sam-bigltl bulk`."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from little_models import dense_config, dense_sam
from PIL import Image
from pycocotools import mask as coco_mask

from sam_bigltl.cli import main
from sam_bigltl.convert import save_sam

COUNT = 40  # photographs: three chunks, or shards of them
SETTING = ("--dtype", "float32", "--native", "--keep-ratio", "0.5", "--device", "cpu")


@pytest.fixture(scope="module")
def ray_cluster():
    """Two nodes on this machine, of two cores each, to which this process is connected."""
    ray = pytest.importorskip("ray")
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
def bulk_checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_sam(dense_sam(dense_config(little_dim=8)), path)
    return path


@pytest.fixture(scope="module")
def bulk_photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for seed in range(COUNT):
        image = Image.fromarray(picture(40 + seed, 90 - seed, seed=seed))
        image.save(folder / ("sub" if seed % 5 == 0 else "") / f"{seed:02d}.{'jpg' if seed % 2 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def bulk_prompts(bulk_photos) -> dict[str, list[dict]]:
    """One to three boxes, or points, for each photograph but one."""
    found = {}
    for number, name in enumerate(names(bulk_photos)):
        boxes = [{"box": [3 + i, 2, 30 + i, 35]} for i in range(1 + number % 3)]
        points = [{"point_coords": [[10, 12], [30, 5]], "point_labels": [1, 0]}] * (number % 4 == 0)
        found[name] = boxes + points
    del found[names(bulk_photos)[7]]
    return found


@pytest.fixture
def bulk(ray_cluster, bulk_checkpoint, tmp_path, capsys, monkeypatch):
    """Run the command in this process; returns the exit code, what it printed, and the folder of the results."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Ray's handlers have the stream of the first test

    def run(source: object, *options: object, out: str = "out", actors: int | None = 1) -> tuple[int, str, Path]:
        fixed = ["--output", tmp_path / out, "--checkpoint", bulk_checkpoint, "--address", ray_cluster, *SETTING]
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
    from pyarrow import parquet

    return [row for path in sorted(folder.glob("masks-*")) for row in parquet.read_table(path).to_pylist()]


def errors(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "errors.csv", newline="") as file:
        return [(row["name"], row["reason"]) for row in csv.DictReader(file)]


def written(prompts: object, tmp_path: Path, name: str = "prompts.json") -> Path:
    (tmp_path / name).write_text(json.dumps(prompts))
    return tmp_path / name


def decoded(mask: dict, row: dict) -> np.ndarray:
    return coco_mask.decode({"size": [row["height"], row["width"]], "counts": mask["counts"]}).astype(bool)


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
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([
        {
            "image": {"bytes": (photos / name).read_bytes(), "path": name},
            "boxes": [list(map(float, prompt["box"])) for prompt in asked.get(name, []) if "box" in prompt],
        }
        for name in names(photos)
    ])  # fmt: skip
    parquet.write_table(table, folder / "photos.parquet", row_group_size=9)
    return folder / "photos.parquet"
