"""Training and distilling classifiers: the objective by hand, batches, resuming, the command line, the linear probe."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from labelled import make_folder
from little_models import enliven
from research import classify_study
from torch import nn
from torch.nn import functional as F

from sam_bigltl import cli
from sam_bigltl.convert.classifiers import open_classifier, save_classifier
from sam_bigltl.convert.probe import SamClassifier
from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.convert.vit import convert_vit
from sam_bigltl.data.labelled import open_dataset
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.classifier import BigLittleClassifier
from sam_bigltl.training.classify import Classification, ClassifyConfig, LabelledBatches, Objective

KWARGS = dict(img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2)
WORDS = [f"{key}={value}" for key, value in KWARGS.items()]
CONFIG = ClassifyConfig(
    steps=6, batch_size=8, lr=3e-3, warmup=2, workers=0, log_every=1, save_every=100, precision="float32",
    keep_ratio_range=(0.2, 1.0), auto_augment="rand-m5", mixup=0.2, cutmix=0.5, erase=0.2,
)  # fmt: skip
DATA_CONFIG = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"))


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **KWARGS)
    enliven(model)
    return model.eval()


def student() -> BigLittleClassifier:
    torch.manual_seed(0)
    model = convert_vit(vit())
    enliven(model, seed=2)
    return model


def run(folder: Path, output: Path, config: ClassifyConfig = CONFIG) -> Classification:
    batches = LabelledBatches(open_dataset("", folder, "train"), DATA_CONFIG, 3, config)
    return Classification(student(), batches, config, output, teacher=vit())


def test_the_objective_by_hand() -> None:
    config = replace(CONFIG, label_weight=2.0, feature_weight=3.0, logit_weight=0.5, temperature=2.0)
    ours, theirs = student(), vit()
    ours.keep_ratio = 0.5
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([[0.9, 0.1, 0], [0, 1, 0], [0.2, 0.2, 0.6], [0, 0, 1]])
    out = Objective(ours, theirs, config)({"image": images, "target": target})
    with torch.no_grad():
        logits, wanted = ours(images).double(), theirs(images).double()
        a, b = ours.forward_features(images).double(), theirs.forward_features(images).double()
    label = F.cross_entropy(logits, target.double())
    feature = 1 - ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
    logit = F.cross_entropy(logits / 2, (wanted / 2).softmax(-1)) * 4
    for name, value in (("label", label), ("feature", feature), ("logit", logit)):
        assert out[name].item() == pytest.approx(value.item(), rel=1e-4)
    assert out["loss"].item() == pytest.approx((2 * label + 3 * feature + 0.5 * logit).item(), rel=1e-4)
    assert out["top1"].item() == pytest.approx((logits.argmax(1) == target.argmax(1)).double().mean().item())
    out["loss"].backward()
    assert all(p.grad is None for p in theirs.parameters())
    assert ours.transitions[0].router.score.weight.grad.abs().sum() > 0


def test_every_image_once_an_epoch_and_the_same_batches_every_time(folder: Path) -> None:
    dataset = open_dataset("", folder, "train")
    config = replace(CONFIG, steps=9, auto_augment=None, mixup=0.0, cutmix=0.0, erase=0.0, smoothing=0.1)
    batches = LabelledBatches(dataset, DATA_CONFIG, 3, config)
    seen = [index for step in range(9) for index in batches._indices(step)]
    assert sorted(seen[:36]) == sorted(seen[36:]) == list(range(36)) and seen[:36] != seen[36:]
    batch = batches[4]
    assert batch["image"].shape == (8, 3, 32, 32) and batch["target"].shape == (8, 3)
    expected = F.one_hot(torch.tensor([dataset[i][1] for i in batches._indices(4)]), 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(batch["target"], expected)
    mixed = LabelledBatches(dataset, DATA_CONFIG, 3, CONFIG)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, other = mixed[2], mixed[2], mixed[3]
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["target"], again["target"])
    assert not torch.equal(first["image"], other["image"])
    assert np.array_equal(np.random.get_state()[1], state[0]) and torch.equal(torch.get_rng_state(), state[1])
    torch.testing.assert_close(first["target"].sum(dim=1), torch.ones(8))


def test_a_resumed_run_is_the_whole_one(folder: Path, tmp_path: Path) -> None:
    whole = run(folder, tmp_path / "whole")
    whole.run()
    half = run(folder, tmp_path / "half")
    step = half._train_step

    def stops(*args):
        done = step(*args)
        if half.step == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return done

    half._train_step = stops
    with pytest.raises(KeyboardInterrupt):
        half.run()
    assert half.step == 3
    rest = run(folder, tmp_path / "half")
    rest.resume()
    rest.run()
    assert all(torch.equal(value, rest.averaged()[name]) for name, value in whole.averaged().items())
    assert (tmp_path / "whole" / "log.csv").read_text().count("\n") == 7


def main(*words: str) -> None:
    cli.main(["train", "--task", "classify", *map(str, words)])


def test_from_a_dense_vit_to_a_distilled_student(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["--data-dir", folder, "--batch-size", "12", "--warmup", "5", "--lr", "2e-3", "--ema", "0", "--device",
              "cpu",
              "--workers", "0", "--val-dir", folder, "--scale", "0.8", "1", "--precision", "float32"]  # fmt: skip
    dense, small = tmp_path / "dense", tmp_path / "small"
    main(*common, "--model", "vit_tiny_patch16_224", "--model-kwargs", *WORDS, "--steps", "60", "--output", dense)
    with open(dense / "val.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["top1"]) > 90 and row["images"] == "36" and row["keep_ratio"] == "1.0"
    main(*common, "--model", "vit_tiny_patch16_224", "--model-kwargs", *WORDS, "--convert", "--checkpoint",
         dense / "model.safetensors", "--teacher", "vit_tiny_patch16_224", "--teacher-kwargs", *WORDS,
         "--teacher-checkpoint", dense / "model.safetensors", "--steps", "15", "--lr", "5e-4", "--keep-ratio-range",
         "0.2", "1", "--output", small)  # fmt: skip
    with open(small / "val.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["keep_ratio"] for row in rows] == ["1.0", "0.5", "0.25"] and all(float(r["top1"]) > 80 for r in rows)
    # What was written is a model of timm's registry.
    model = timm.create_model(
        "bigltl_tiny_patch16_224",
        num_classes=3,
        checkpoint_path=str(small / "model.safetensors"),
        route_every=1,
        **KWARGS,
    )
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert (small / "curve.png").exists() or any(small.glob("*.png"))
    assert "wrote" in capsys.readouterr().out


def test_a_linear_probe_of_the_encoder(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = tmp_path / "backbone.safetensors"
    from sam_bigltl.convert import save_sam

    save_sam(sam_model_registry["bigltl_mini"](), backbone)
    main("--data-dir", folder, "--backbone", backbone, "--steps", "8", "--batch-size", "6", "--lr", "0.05", "--warmup",
         "0",
         "--ema", "0", "--device", "cpu", "--workers", "0", "--keep-ratios", "0.25", "--output",
         tmp_path / "probe")  # fmt: skip
    head = tmp_path / "probe" / "model.safetensors"
    probe = open_classifier("", 3, checkpoint=head, backbone=backbone)
    assert isinstance(probe, SamClassifier) and probe.head.weight.abs().sum() > 0
    fresh = sam_model_registry["bigltl_mini"](checkpoint=backbone).image_encoder
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in probe.image_encoder.state_dict().items())
    assert head.stat().st_size < 100_000  # the head only


def test_saved_weights_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    model = student()
    save_classifier(model, model.state_dict(), path)
    options = KWARGS | dict(route_every=1)
    same = open_classifier("bigltl_tiny_patch16_224", 3, options, path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in same.state_dict().items())
    with pytest.raises(InputError, match="holds another model: .* does not fit"):
        open_classifier("bigltl_tiny_patch16_224", 4, options, path)

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "proof"),)

    for name, zipped in (("a.pth", True), ("b.pth", False), ("c.safetensors", True), ("d.safetensors", False)):
        torch.save({"head.weight": Malicious()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="holds more than tensors .it names posix.mkdir|cannot be read"):
            open_classifier("bigltl_tiny_patch16_224", 3, options, tmp_path / name)
    assert not (tmp_path / "proof").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="list.pth holds no tensor of .* since it is a list"):
        open_classifier("bigltl_tiny_patch16_224", 3, options, tmp_path / "list.pth")
    path.write_bytes(b"noise")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        open_classifier("bigltl_tiny_patch16_224", 3, options, path)
    with pytest.raises(InputError, match="timm cannot make no_such_model"):
        open_classifier("no_such_model", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-dir", "missing"], "no folder of images at missing"),
        (["--steps", "0"], "--steps is at least 1"),
        (["--keep-ratios", "0"], "keep ratios are in (0, 1]"),
        (["--teacher", "vit_tiny_patch16_224"], "give --teacher-checkpoint"),
        (["--teacher-checkpoint", "x.pth"], "--teacher-checkpoint needs a --teacher"),
        (["--checkpoint", "x.pth"], "no checkpoint at x.pth"),
        (["--optimizer", "nonsense"], "timm has no optimizer 'nonsense'"),
        (["--batch-size", "100"], "36 images are fewer than a batch of 100"),
        (["--model", "resnet18", "--model-kwargs", "--convert"], "convert_vit takes timm's VisionTransformer"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = {
        "--data-dir": [str(folder)],
        "--steps": ["2"],
        "--batch-size": ["4"],
        "--model": ["bigltl_tiny_patch16_224"],
    }
    line = [word for option, value in given.items() if option not in words for word in (option, *value)]
    kwargs = [] if "--model-kwargs" in words else ["--model-kwargs", *WORDS]
    with pytest.raises(SystemExit) as exit_info:
        main(*line, *words, *kwargs, "--output", str(tmp_path / "run"), "--device", "cpu")
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in error and error.count("\n") == 1


# ---------------------------------------------------------------- the study
def test_the_study_scores_every_row_and_keeps_finished_runs(folder, tmp_path, capsys):
    words = ["--data-dir", folder, "--val-dir", folder, "--img-size", 32, "--patch-size", 8, "--dim", 32, "--depth", 2,
             "--heads", 2, "--steps", 12, "--student-steps", 2, "--batch-size", 8, "--lr", 3e-3, "--hflip", 0,
             "--workers", 0, "--seeds", 2, "--dtype", "bfloat16", "--output", tmp_path / "study"]  # fmt: skip
    classify_study.main([str(word) for word in words])
    with (tmp_path / "study" / "study.csv").open() as file:
        rows = {(row["model"], float(row["keep_ratio"])): row for row in csv.DictReader(file)}
    names = ("distilled", "distilled, bfloat16", "random tokens", "no distillation")
    assert set(rows) == {("dense ViT", 1.0)} | {(name, ratio) for name in names for ratio in (1.0, 0.5, 0.25)}
    assert all(row["seeds"] == "2" and 0 <= float(row["top1_mean"]) <= 100 for row in rows.values())
    assert float(rows["dense ViT", 1.0]["top1_mean"]) > 60  # colours; a third by chance
    assert all(float(rows[name, 0.5]["ms_of_32_images"]) > 0 for name in names[:2])
    dense = tmp_path / "study" / "dense_ViT_0"
    log, state = (dense / "log.csv").read_bytes(), (dense / "state.pt").read_bytes()
    capsys.readouterr()
    classify_study.main([str(word) for word in words])
    assert (dense / "log.csv").read_bytes() == log and (dense / "state.pt").read_bytes() == state
    with (tmp_path / "study" / "study.csv").open() as file:
        again = {(row["model"], float(row["keep_ratio"])): row["top1_mean"] for row in csv.DictReader(file)}
    assert again == {key: row["top1_mean"] for key, row in rows.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hflip", "2"], "--hflip is a probability in [0, 1], not 2"),
        (["--seeds", "0"], "--seeds is at least 1, not 0"),
        (["--native"], "--native needs a --dtype"),
    ],
)
def test_the_study_refuses(words, message, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        classify_study.main(["--data-dir", str(folder), "--val-dir", str(folder), "--output", str(tmp_path), *words])
    assert capsys.readouterr().err == f"classify_study.py: error: {message}\n"


@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_images_are_mirrored_as_often_as_asked(hflip, folder):
    config = replace(CONFIG, auto_augment=None, mixup=0.0, cutmix=0.0, erase=0.0, scale=(1.0, 1.0), hflip=hflip)
    dataset = open_dataset("", folder, "train")
    batch = LabelledBatches(dataset, DATA_CONFIG, 3, config)
    mirrored = LabelledBatches(dataset, DATA_CONFIG, 3, replace(config, hflip=1 - hflip))
    assert torch.equal(batch[0]["image"], mirrored[0]["image"].flip(-1))
