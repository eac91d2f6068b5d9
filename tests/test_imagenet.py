"""Accuracy of classifiers: counting by hand, going on after an interrupt, the script, object crops, costs by layer."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from labelled import COLOURS, make_folder
from PIL import Image
from safetensors.torch import save_file

import sam_bigltl.classifier  # noqa: F401 - registers the models
from sam_bigltl.bench import layer_cost
from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.data.crops import main as crops_main
from sam_bigltl.evaluation import imagenet

ROOT = Path(__file__).resolve().parents[1]
KWARGS = dict(img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run on nine pictures with a model of random weights."""
    root = tmp_path_factory.mktemp("top1")
    make_folder(root / "photos", each=3)
    torch.manual_seed(0)
    model = timm.create_model("bigltl_tiny_patch16_224", num_classes=3, **KWARGS)
    save_file(model.state_dict(), root / "model.safetensors")
    return [
        "--data-dir", str(root / "photos"), "--model", "bigltl_tiny_patch16_224", "--model-kwargs",
        *(f"{key}={value}" for key, value in KWARGS.items()), "--checkpoint", str(root / "model.safetensors"),
        "--keep-ratio", "1", "0.5", "--batch-size", "2", "--workers", "0", "--device", "cpu",
    ]  # fmt: skip


def test_counting_by_hand() -> None:
    class Fixed(torch.nn.Module):
        keep_ratio = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 0] * (1 if self.keep_ratio == 1.0 else -1)  # the image holds its logits

    logits = torch.tensor([[9.0, 0, 1, 2, 3, 4, 5], [0, 9, 8, 7, 6, 5, 1], [1, 2, 3, 4, 5, 6, 7]])
    images, labels, device = logits[:, None, None], torch.tensor([0, 6, 5]), torch.device("cpu")
    one, half = imagenet.count_correct(Fixed(), images, labels, [1.0, 0.5], device)
    assert one[:3] == (3, 1, 2)  # right, sixth, second
    assert half[:3] == (3, 0, 1)  # last, second, sixth
    assert imagenet.count_correct(Fixed(), torch.empty(0), torch.empty(0), [1.0], device) == [(0, 0, 0, 0.0)]


def results(folder: Path) -> list[dict]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_interrupted_run_goes_on(setup: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet.main([*setup, "--output", str(tmp_path / "whole")])
    calls = 0
    real = imagenet.logits_of

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == 5:  # two batches of two ratios are done
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(imagenet, "logits_of", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        imagenet.main([*setup, "--output", str(tmp_path / "parts")])
    assert exit_info.value.code == 130
    journal = tmp_path / "parts" / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 3
    journal.write_text(journal.read_text() + "[[2, 1")  # torn
    imagenet.main([*setup, "--output", str(tmp_path / "parts")])
    assert calls == 5 + 2 * 3
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    for a, b in zip(whole, parts, strict=True):
        assert all(a[key] == b[key] for key in ("keep_ratio", "top1", "top5", "images", "gmacs"))
    assert tuple(whole[0]) == imagenet.COLUMNS and [row["keep_ratio"] for row in whole] == ["1", "0.5"]
    assert whole[0]["images"] == "9" and whole[0]["top5"] == "100"
    assert float(whole[1]["gmacs"]) < float(whole[0]["gmacs"])


def test_the_script(setup: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "eval" / "imagenet_top1.py"),
        *setup,
        "--output",
        str(tmp_path),
        "--limit",
        "4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "top-1 %" in done.stdout and results(tmp_path)[0]["images"] == "4"
    again = subprocess.run([*command[:-2], "--limit", "5"], capture_output=True, text=True, timeout=240)
    assert again.returncode == 2 and "holds a run with another images: give --restart" in again.stderr


def test_a_probe_and_a_timm_model(setup: list[str], tmp_path: Path) -> None:
    backbone = ROOT / "checkpoints" / "bigltl_mini.safetensors"
    common = [*setup[:2], "--batch-size", "9", "--workers", "0", "--device", "cpu"]
    imagenet.main([*common, "--backbone", str(backbone), "--keep-ratio", "0.5", "--output", str(tmp_path / "probe")])
    assert results(tmp_path / "probe")[0]["image_size"] == "640"
    imagenet.main([*common, "--model", "vit_tiny_patch16_224", *setup[4:10], "--output", str(tmp_path / "vit")])
    assert results(tmp_path / "vit")[0]["model"] == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-ratio", "1.5"], "--keep-ratio 1.5 is outside (0, 1]"),
        (["--batch-size", "0"], "--batch-size 0 is below 1"),
        (["--dtype", "float16"], "unknown dtype 'float16'"),
        (["--dataset", "torch/nonsense"], "dataset torch/nonsense cannot be read"),
        (["--checkpoint", "missing.pth"], "no checkpoint at missing.pth"),
        (["--model", "resnet18", "--model-kwargs", "--checkpoint", ""], "computes every token"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], message: str, setup: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if options[-1] == "":
        options = options[:-2]
        at = setup.index("--checkpoint")
        setup = setup[:at] + setup[at + 2 :]
    with pytest.raises(SystemExit) as exit_info:
        imagenet.main([*setup, *options, "--output", str(tmp_path)])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in error
    assert error.splitlines()[-1].startswith("imagenet_top1.py: error: ") and "Traceback" not in error


def test_object_crops(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (100, 60), (10, 200, 10)).save(tmp_path / "a.png")
    boxes = [(1, [40, 20, 30, 20]), (2, [0, 0, 40, 40]), (1, [0, 0, 5, 50])]
    data = {
        "categories": [{"id": i, "name": n, "supercategory": "kitchen"} for i, n in ((1, "wine glass"), (2, "cup"))],
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png", "category_known": False}],
        "annotations": [
            *({"id": i, "image_id": 7, "category_id": c, "bbox": b, "iscrowd": 0} for i, (c, b) in enumerate(boxes)),
            {"id": 9, "image_id": 8, "category_id": 1, "bbox": [0, 0, 50, 50]},
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(data))
    options = ["--annotations", str(tmp_path / "x.json"), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    crops_main([*options, "--side", "48", "--smallest", "20", "--margin", "0"])
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert found == ["cup/7_1.jpg", "wine_glass/7_0.jpg"]
    crop = Image.open(tmp_path / "out" / found[1])
    assert crop.size == (48, 48) and crop.getpixel((24, 24))[1] > 190
    assert "2 crops of 2 classes" in capsys.readouterr().out
    crops_main([*options[:-1], str(tmp_path / "two"), "--by", "supercategory", "--most", "2", "--smallest", "5"])
    assert "2 crops of 1 classes" in capsys.readouterr().out and len(list((tmp_path / "two/kitchen").iterdir())) == 2
    with pytest.raises(SystemExit):
        crops_main([*options, "--classes", "spoon"])
    assert "no objects of known categories" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_costs_are_the_formulas(ratio: float) -> None:
    torch.manual_seed(0)
    encoder = sam_model_registry["bigltl_mini"]().image_encoder
    costs = {cost.term: cost for cost in layer_cost.layer_costs(encoder, ratio)}
    linear = [cost for cost in costs.values() if cost.formula is not None]
    assert len(linear) == (3 if ratio == 1.0 else 10)
    assert all(cost.counted == cost.formula for cost in linear)
    n, c = 40 * 40, 256
    attention = costs["attention of both paths"].counted
    if ratio == 1.0:  # three layers in 25 windows of 64 tokens, three global ones, and their relative positions
        assert attention == pytest.approx(3 * 2 * n * 64 * c + 3 * 2 * n * n * c, rel=0.08)
    assert encoder.keep_ratio == 1.0
    assert "6.5 N C^2 + N^2 C" in layer_cost.report(encoder, ratio)


def test_colours_are_the_classes(tmp_path: Path) -> None:
    assert sorted(path.name for path in make_folder(tmp_path / "x", each=1).iterdir()) == sorted(COLOURS)


def test_digits(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "eval" / "digits.py"), "--output", str(tmp_path / "digits")]
    bad = subprocess.run([*script, "--side", "4"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr == "digits.py: error: --side is at least 8, not 4\n"
    done = subprocess.run([*script, "--side", "16"], capture_output=True, text=True)
    if done.returncode:
        assert done.returncode == 2 and done.stderr.endswith("pip install scikit-learn\n")
        pytest.skip("the digits come with scikit-learn")
    assert [len(list((tmp_path / "digits" / part).rglob("*.png"))) for part in ("train", "test")] == [1198, 599]
