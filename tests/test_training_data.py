"""Batches: reproducible, and image, masks, boxes and points agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from training_toy import COLOURS, edit, encode, write_shapes

import sam_bigltl.training.data as data
from sam_bigltl.data.workers import load
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.decode import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT
from sam_bigltl.training.data import MaskBatches, SampleConfig


def batches(path: Path, frame: int = 128, crop: int = 128, batch: int = 4, seed: int = 0, **changes) -> MaskBatches:
    config = SampleConfig(frame=frame, crop=crop, prompts=3, **changes)
    return MaskBatches([path], path.parent / "images", config, batch, seed, steps=100)


def test_a_batch_is_a_function_of_seed_and_step(shapes):
    first, second = batches(shapes), batches(shapes)
    later = second[7]
    _ = [second[step] for step in (3, 2)]
    for ours, again in ((first[2], second[2]), (first[7], later)):
        assert ours.keys() == again.keys()
        assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert not torch.equal(first[2]["image"], first[3]["image"])
    assert not torch.equal(first[2]["image"], batches(shapes, seed=1)[2]["image"])
    loader = DataLoader(first, batch_size=None, num_workers=1)
    for step, batch in zip(range(3), loader):
        assert all(torch.equal(batch[key], second[step][key]) for key in batch)


@pytest.mark.parametrize("crop", [128, 64, 16])
def test_shapes_types_and_offsets(crop: int, shapes):
    offsets = set()
    set_of_batches = batches(shapes, crop=crop, batch=3)
    for step in range(12):
        batch = set_of_batches[step]
        tokens = batch["coords"].shape[2]
        sizes = {
            "image": (3, 3, crop, crop), "offset": (3, 2), "valid": (3, crop // 16, crop // 16),
            "coords": (3, 3, tokens, 2), "labels": (3, 3, tokens), "boxes": (3, 3, 4),
            "target": (3, 3, crop // 4, crop // 4),
        }  # fmt: skip
        assert {key: tuple(value.shape) for key, value in batch.items()} == sizes
        assert batch["image"].dtype == batch["target"].dtype == torch.uint8
        assert batch["coords"].dtype == batch["boxes"].dtype == torch.float32 and batch["labels"].dtype == torch.int64
        assert (batch["offset"] >= 0).all() and (batch["offset"] + crop // 16 <= 128 // 16).all()
        offsets |= {tuple(offset) for offset in batch["offset"].tolist()}
    assert len(offsets) == 1 if crop == 128 else len(offsets) > 10


def test_points_and_boxes_agree_with_the_targets(shapes):
    seen = {FOREGROUND: 0, BACKGROUND: 0, TOP_LEFT: 0, NOT_A_POINT: 0}
    for crop in (128, 64):
        set_of_batches = batches(shapes, crop=crop)
        for step in range(12):
            batch = set_of_batches[step]
            for b, p in np.ndindex(4, 3):
                target, box = batch["target"][b, p].numpy(), batch["boxes"][b, p].numpy()
                rows, columns = np.nonzero(target > 0)
                tight = 4 * np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert np.abs(box - tight).max() <= 5
                origin = batch["offset"][b].numpy()[::-1] * 16
                coords, labels = batch["coords"][b, p].numpy() - origin, batch["labels"][b, p].numpy()
                for (x, y), label in zip(coords, labels):
                    seen[int(label)] = seen.get(int(label), 0) + 1
                    if label in (FOREGROUND, BACKGROUND):
                        assert x == int(x) and 0 <= x < crop and 0 <= y < crop
                        share = target[int(y) // 4, int(x) // 4]  # of the 4 x 4 pixels around
                        assert share > 0 if label == FOREGROUND else share < 255
                        assert box[0] <= x < box[2] and box[1] <= y < box[3]
                if TOP_LEFT in labels:
                    assert labels.tolist()[-2:] == [TOP_LEFT, BOTTOM_RIGHT] and NOT_A_POINT not in labels
                    side = np.tile(box[2:] - box[:2], 2)
                    jitter = coords[-2:].flatten() - box
                    assert (np.abs(jitter) <= np.minimum(20, 0.3 * side) + 1e-3).all()
                    assert (coords[-1] > coords[-2]).all()
                else:
                    assert labels[-1] == NOT_A_POINT and labels[0] == FOREGROUND
    assert all(count > 10 for count in seen.values()), seen


@pytest.mark.parametrize("crop", [128, 64])
def test_targets_cover_what_the_image_shows(crop: int, shapes, monkeypatch):
    """Through scale, crop, flip and place: a target is its colour-coded object."""
    monkeypatch.setattr(data, "jitter_colour", lambda photo, rng: photo)
    set_of_batches = batches(shapes, crop=crop)
    mistakes, seen = [], 0
    for step in range(10):
        batch = set_of_batches[step]
        for b, p in np.ndindex(4, 3):
            image = batch["image"][b].permute(1, 2, 0).numpy().astype(int)
            target = batch["target"][b, p].numpy() / 255.0
            shares = []
            for colour in COLOURS:
                is_colour = np.abs(image - colour).sum(-1) < 60
                shares.append(is_colour.reshape(crop // 4, 4, crop // 4, 4).mean((1, 3)))
            overlaps = [(share * target).sum() / max(1, target.sum()) for share in shares]
            share = shares[int(np.argmax(overlaps))]
            mistakes.append(np.abs(share - target).sum() / target.sum())
            inside, outside = target == 1, target == 0
            assert share[inside].min(initial=1) > 0.4 and share[outside].max(initial=0) < 0.6
            seen += inside.any()
    assert seen > 60 and np.mean(mistakes) < 0.25  # borders only


def test_images_are_flipped_and_scaled(shapes, monkeypatch):
    monkeypatch.setattr(data, "jitter_colour", lambda photo, rng: photo)
    steps = [batches(shapes, scale=(1.0, 1.0))[step]["image"] for step in range(12)]
    images = {image.numpy().tobytes() for batch in steps for image in batch}
    assert 6 < len(images) <= 12  # six photographs, as they are and mirrored


def test_padding_is_the_mean_and_not_valid(shapes):
    for step in range(8):
        batch = batches(shapes, as_is=1.0)[step]
        for image, valid in zip(batch["image"], batch["valid"]):
            padding = ~valid.repeat_interleave(16, 0).repeat_interleave(16, 1)
            assert 0 < padding.sum() < padding.numel()  # no square photograph among them
            assert (image[:, padding].T == torch.tensor([124, 116, 104])).all()
            edges = image.float().std(dim=0).flatten(), padding.flatten()
            assert edges[0][~edges[1]].numel()


# ---------------------------------------------------------------- what annotations may look like
def test_boxes_that_are_missing_come_from_the_masks(tmp_path):
    path = write_shapes(tmp_path)
    wanted = batches(path)
    given = [annotation.bbox for image in wanted.images for annotation in image.annotations]
    edit(path, lambda content: [entry.update(bbox=None) for entry in content["annotations"]])
    again = batches(path)
    assert [annotation.bbox for image in again.images for annotation in image.annotations] == given
    assert all(torch.equal(wanted[1][key], again[1][key]) for key in wanted[1])


def test_crowds_are_not_trained_on(tmp_path):
    path = write_shapes(tmp_path)

    def crowd(content):
        for entry in content["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] == 0 or entry["id"] % 3 == 0)

    edit(path, crowd)
    left = batches(path).images
    assert [image.id for image in left] == [1, 2, 3, 4, 5]
    assert all(annotation.id % 3 for image in left for annotation in image.annotations)
    edit(path, lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]])
    with pytest.raises(InputError, match="crowds"):
        batches(path)


def test_masks_too_small_to_train_on_end_it(tmp_path):
    path = write_shapes(tmp_path, count=2)

    def shrink(content):
        for entry in content["annotations"]:
            image = content["images"][entry["image_id"]]
            mask = np.zeros((image["height"], image["width"]), bool)
            mask[3, 3:5] = True
            entry |= {"segmentation": encode(mask), "bbox": [3, 3, 2, 1], "area": 2}

    edit(path, shrink)
    with pytest.raises(InputError, match="too small"):
        batches(path, batch=1)[0]


def test_an_image_of_another_size_than_its_entry_is_named(tmp_path):
    path = write_shapes(tmp_path)
    for number in range(6):
        Image.new("RGB", (50, 40)).save(tmp_path / "images" / f"{number}.png")
    with pytest.raises(InputError, match=r"\d\.png is 50 x 40 pixels"):
        batches(path)[0]


def test_a_damaged_photograph_is_named_in_one_line_from_a_worker(tmp_path):
    path = write_shapes(tmp_path)
    for image in json.loads(path.read_text())["images"]:
        file = tmp_path / "images" / image["file_name"]
        file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(InputError, match=r"^\S*\.png is damaged") as error:
        list(load(batches(path), 1, ahead=2))
    assert "\n" not in str(error.value)
