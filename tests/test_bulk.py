"""`sam-bigltl bulk` on Ray: the masks of the predictor, from any input, however the work is spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bulk_toy import COUNT, contents, decoded, made_list, made_parquet, made_tars, names, rows, written

from sam_bigltl import SamAutomaticMaskGenerator, SamPredictor, load_sam
from sam_bigltl.data.images import read_image

pytest.importorskip("ray")


@pytest.fixture
def predictor(bulk_checkpoint):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the decoder's last bits depend on it
    sam = load_sam(bulk_checkpoint)
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


def test_masks_are_those_of_the_predictor_however_the_work_is_spread(
    bulk, bulk_photos, bulk_prompts, predictor, tmp_path
):
    asked = written(bulk_prompts, tmp_path)
    code, said, out = bulk(bulk_photos, "--prompts", asked, "--shard-size", 20, "--coco", actors=None)
    assert code == 0 and f"{COUNT} photographs" in said
    assert contents(out).keys() == {
        "settings.json",
        "errors.csv",
        "annotations.json",
        "masks-00000.parquet",
        "masks-00001.parquet",
    }
    found = rows(out)
    assert [row["key"] for row in found] == names(bulk_photos)
    for row in found:
        image = read_image(bulk_photos / row["key"])
        expected = masks_one_by_one(predictor, image, bulk_prompts.get(row["key"], []))
        assert (row["height"], row["width"]) == image.shape[:2] and len(row["masks"]) == len(expected)
        for number, (mask, (own, score)) in enumerate(zip(row["masks"], expected)):
            assert (decoded(mask, row) == own).all() and mask["predicted_iou"] == np.float32(score)
            assert mask["prompt"] == number and mask["area"] == own.sum()
    _, _, other = bulk(
        bulk_photos, "--prompts", asked, "--shard-size", 20, "--coco", "--batch-size", 7, "--threads", 2, out="other",
    )  # fmt: skip
    assert contents(other) == contents(out)


def test_from_python(ray_cluster, bulk, bulk_photos, bulk_checkpoint, bulk_prompts, tmp_path):
    from sam_bigltl.bulk import BulkConfig, Folder, Setting, find_shards, segment_shards

    boxes = {name: [each for each in asked if "box" in each] for name, asked in bulk_prompts.items()}
    _, _, expected = bulk(bulk_photos, "--prompts", written(boxes, tmp_path), out="folder")
    config = BulkConfig.of(bulk_checkpoint, setting=Setting("float32", True, 0.5), prompts="columns")
    shards = find_shards(str(made_parquet(bulk_photos, tmp_path, boxes)))
    said = []
    summary = segment_shards(shards, Folder(str(tmp_path / "out")), config, actors=1, report=said.append)
    assert summary.photographs == summary.new == COUNT and not summary.failed and summary.errors == 0
    found = rows(tmp_path / "out")
    assert summary.masks == sum(len(row["masks"]) for row in found) and said[-1] is summary
    assert [row["masks"] for row in found] == [row["masks"] for row in rows(expected)]


def test_coco_json_is_read_by_pycocotools(bulk, bulk_photos, bulk_prompts, tmp_path):
    from pycocotools.coco import COCO

    _, _, out = bulk(bulk_photos, "--prompts", written(bulk_prompts, tmp_path), "--coco")
    coco = COCO(out / "annotations.json")
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == names(bulk_photos)
    for row, image in zip(rows(out), images):
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(row["masks"])
        for annotation, mask in zip(annotations, row["masks"]):
            assert (coco.annToMask(annotation) == decoded(mask, row)).all()


def test_prompts_beside_photographs_in_tars_and_in_a_file(bulk, bulk_photos, bulk_prompts, tmp_path):
    boxes = {name: [each for each in asked if "box" in each] for name, asked in bulk_prompts.items()}
    _, _, expected = bulk(bulk_photos, "--prompts", written(boxes, tmp_path), out="folder")
    tars = made_tars(bulk_photos, tmp_path, boxes)
    flat = {name.replace("/", "_"): asked for name, asked in boxes.items()}
    for out, prompts in (("beside", "columns"), ("file", written(flat, tmp_path, "flat.json"))):
        code, said, found = bulk(tars, "--prompts", prompts, out=out)
        assert code == 0, said
        assert [(row["sha256"], row["masks"]) for row in rows(found)] == [
            (row["sha256"], row["masks"]) for row in rows(expected)
        ]


def test_a_list_and_an_address(bulk, bulk_photos, bulk_prompts, tmp_path):
    """Of paths, and file://; the prompts are named as the list names the photographs."""
    _, _, expected = bulk(bulk_photos, "--prompts", written(bulk_prompts, tmp_path), out="folder")
    asked = {str(bulk_photos / name): each for name, each in bulk_prompts.items()}
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
    code, said, out = bulk(made_list(bulk_photos, tmp_path, {}), *options)
    assert code == 0, said
    for row, own in zip(rows(out), rows(expected)):
        boxes = [mask for mask in own["masks"] if "box" in bulk_prompts[own["key"]][mask["prompt"]]]
        assert row["sha256"] == own["sha256"]
        assert [mask["counts"] for mask in row["masks"]] == [mask["counts"] for mask in boxes]
        assert all(mask["category_id"] == 3 for mask in row["masks"])
    code, said, remote = bulk(f"file://{bulk_photos}", "--prompts", written(bulk_prompts, tmp_path), out="remote")
    assert code == 0 and rows(remote) == rows(expected), said


def test_everything_mode_is_the_generators(bulk, bulk_photos, predictor, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in names(bulk_photos)[:3]:
        (few / Path(name).name).write_bytes((bulk_photos / name).read_bytes())
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


def test_embeddings_are_read_by_their_names(bulk, bulk_photos, predictor):
    code, said, out = bulk(bulk_photos, "--embeddings", "--batch-size", 4)
    assert code == 0, said
    for row in (rows(out)[0], rows(out)[-1]):
        image = read_image(bulk_photos / row["key"])
        predictor.set_image(image)
        features, expected = predictor.features, predictor.predict(box=np.array([3, 3, 30, 30]))
        predictor.load_embedding(out / row["embedding"], row["key"])
        assert torch.equal(predictor.features, features)
        assert all((a == b).all() for a, b in zip(predictor.predict(box=np.array([3, 3, 30, 30])), expected))
    with pytest.raises(ValueError, match="holds 16 photographs"):
        predictor.load_embedding(out / rows(out)[0]["embedding"])
