"""ONNX export: the graphs and the predictor without torch, against the model and the predictor that have it."""

# ruff: noqa: E402 - what needs an optional package is imported after the check for it
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam

from sam_bigltl import SamPredictor
from sam_bigltl.convert import save_sam
from sam_bigltl.errors import InputError

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript")

from sam_bigltl.bench.onnx_runtime import Timed, result_rows, table
from sam_bigltl.convert.export import encoder_program, export_onnx, to_onnx
from sam_bigltl.convert.onnx_files import ENCODER
from sam_bigltl.predict.onnx_predictor import OnnxSamPredictor, resized_shape
from sam_bigltl.predict.predictor import ResizeLongestSideFloat32

ROOT = Path(__file__).resolve().parents[1]
SIZE = (40, 52)


def little_sam(seed: int = 0):
    """64 px, padded windows, with a little path; a decoder whose masks depend visibly on the prompt."""
    sam = dense_sam(dense_config(little_dim=16), seed)
    for module in (sam.prompt_encoder, sam.mask_decoder):
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.data.mul_(2.5)
    return sam


@pytest.fixture(scope="module")
def sam():
    sam = little_sam()
    sam.image_encoder.keep_ratio = 0.5
    return sam


@pytest.fixture(scope="module")
def folder(sam, tmp_path_factory) -> Path:
    """An export at keep_ratio 0.5, by the command line."""
    folder = tmp_path_factory.mktemp("onnx")
    save_sam(sam, folder / "model.safetensors")
    done = command("--checkpoint", folder / "model.safetensors", "--keep-ratio", 0.5, "--output", folder / "half")
    own = [line for line in done.stderr.splitlines() if "torch/onnx/" not in line]  # torch 2.8 warns of itself
    assert done.returncode == 0 and not own, done.stderr
    assert sorted(path.name for path in (folder / "half").iterdir()) == ["decoder.onnx", "encoder.onnx"]
    assert len(done.stdout.splitlines()) == 2 and "encoder.onnx" in done.stdout
    return folder / "half"


@pytest.fixture(scope="module")
def predictors(sam, folder: Path) -> tuple[OnnxSamPredictor, SamPredictor]:
    """Ours without torch and ours with it, two images set."""
    both = OnnxSamPredictor(folder, threads=1), SamPredictor(sam, strict=True)
    for predictor in both:
        predictor.set_images([picture(*SIZE), picture(100, 30, seed=1)])
    return both


def command(*arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "sam_bigltl.cli", "export", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


def run_encoder(program, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(to_onnx(program, ENCODER).model_proto.SerializeToString())
    return session.run(None, {"images": images.numpy()})[0]


def assert_equal(ours, theirs) -> None:
    """Types, shapes, logits and scores; masks up to the pixels on their edge."""
    (masks, iou, low_res), (their_masks, their_iou, their_low_res) = ours, theirs
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(low_res, their_low_res, atol=2e-3)
    np.testing.assert_allclose(iou, their_iou, atol=1e-3)
    if masks.dtype == bool:
        assert 0 < their_masks.mean() < 1  # else there is nothing to compare
        for a, b in zip(masks.reshape(-1, *masks.shape[-2:]), their_masks.reshape(-1, *masks.shape[-2:])):
            assert (a & b).sum() >= 0.99 * (a | b).sum()
    else:
        np.testing.assert_allclose(masks, their_masks, atol=2e-3)


@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_encoder_equals_torch_for_any_batch(sam, ratio: float) -> None:
    program = encoder_program(sam, ratio)
    predictor = SamPredictor(little_sam())
    predictor.model.image_encoder.keep_ratio = ratio
    for count in (1, 3):
        images = [picture(64, 64, seed) for seed in range(count)]
        predictor.set_images(images)
        pixels = torch.cat([sam.preprocess(torch.as_tensor(i).permute(2, 0, 1)[None].float()) for i in images])
        np.testing.assert_allclose(program.module()(pixels), predictor.features.numpy(), atol=1e-3)  # torch.export's
        np.testing.assert_allclose(run_encoder(program, pixels), predictor.features.numpy(), atol=1e-3)
    assert sam.image_encoder.keep_ratio == 0.5  # the model is left as it was


def test_a_fixed_batch(sam, predictors, tmp_path: Path) -> None:
    export_onnx(sam, tmp_path, 0.5, batch=2)
    fixed = OnnxSamPredictor(tmp_path, threads=1)
    assert fixed._encoder.get_inputs()[0].shape[0] == 2
    images = [picture(*SIZE), picture(100, 30, seed=1), picture(30, 64, seed=2)]
    any_number = predictors[0]
    any_number.set_images(images)
    for count in (1, 2, 3):
        fixed.set_images(images[:count])
        assert fixed.features.shape[0] == count
        np.testing.assert_allclose(fixed.features, any_number.features[:count], atol=1e-4)
    any_number.set_images([picture(*SIZE), picture(100, 30, seed=1)])  # as the other tests find it
    with pytest.raises(InputError, match="at least 1, not 0"):
        export_onnx(sam, tmp_path, 0.5, batch=0)


def test_equal_scores_go_by_index(sam) -> None:
    grey = torch.zeros(1, 3, 64, 64)
    flat = little_sam()
    flat.image_encoder.pos_embed.data.zero_()
    flat.image_encoder.patch_embed.proj.weight.data.zero_()
    flat.image_encoder.keep_ratio = 0.5
    with torch.no_grad():
        want = flat.image_encoder(grey)
    assert flat.image_encoder.last_route.groups[0].indices[0].tolist() == list(range(8))
    np.testing.assert_allclose(run_encoder(encoder_program(flat, 0.5), grey), want.numpy(), atol=1e-3)


def test_embeddings_of_images_of_any_size(predictors) -> None:
    ours, theirs = predictors
    assert ours.get_image_embedding().shape == theirs.get_image_embedding().shape
    np.testing.assert_allclose(ours.get_image_embedding(), theirs.get_image_embedding().numpy(), atol=1e-3)
    assert (ours.original_size, ours.input_size) == (theirs.original_size, theirs.input_size)


@pytest.mark.parametrize("size", [(40, 52), (64, 64), (100, 30), (3, 200), (1, 1), (481, 640), (64, 4000)])
def test_size_after_the_resize(size: tuple[int, int]) -> None:
    for side in (64, 448, 1024):
        assert resized_shape(size, side) == ResizeLongestSideFloat32.get_preprocess_shape(*size, side)


POINTS = {"point_coords": np.array([[10, 20], [30.5, 8]]), "point_labels": np.array([1, 0])}
BOX = {"box": np.array([5, 6, 40, 30])}


@pytest.mark.parametrize("prompt", [POINTS, BOX, POINTS | BOX, {}], ids=["points", "box", "both", "none"])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_masks_equal_the_predictors(predictors, prompt: dict, multimask: bool, with_mask: bool) -> None:
    ours, theirs = predictors
    if with_mask:
        prompt = prompt | {"mask_input": theirs.predict(**POINTS, multimask_output=False)[2]}
    for logits in (False, True):
        asked = prompt | {"multimask_output": multimask, "return_logits": logits}
        assert_equal(ours.predict(**asked), theirs.predict(**asked))


def test_masks_of_another_image(predictors) -> None:
    ours, theirs = predictors
    inside = {"point_coords": np.array([[12, 70]]), "point_labels": np.array([1])}
    assert_equal(ours.predict(**inside, image_index=1), theirs.predict(**inside, image_index=1))


def test_many_prompts_equal_single_ones(predictors) -> None:
    ours, theirs = predictors
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 30, (11, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 5], axis=1)
    coords, labels = rng.uniform(0, 40, (11, 3, 2)), rng.integers(-1, 2, (11, 3))
    masks = rng.normal(0, 5, (11, 1, 16, 16)).astype(np.float32)
    many = ours.predict_batch(coords, labels, boxes, masks)
    single = [theirs.predict(*one) for one in zip(coords, labels, boxes, masks)]
    assert_equal(many, tuple(np.stack(parts) for parts in zip(*single)))


def test_bgr(predictors, folder: Path) -> None:
    other = OnnxSamPredictor(folder, threads=1)
    other.set_image(picture(*SIZE)[..., ::-1], image_format="BGR")
    np.testing.assert_allclose(other.features, predictors[0].features[:1], atol=1e-5)


def test_bad_prompts_are_named(predictors) -> None:
    for wrong in (
        {"point_coords": np.zeros((1, 2))}, {"box": np.array([9, 9, 5, 5])}, {"box": np.array([0, 0, np.nan, 5])},
        {"mask_input": np.zeros((1, 5, 5))}, {"image_index": 2},
    ):  # fmt: skip
        said = []
        for predictor in predictors:
            with pytest.raises(InputError) as refused:
                predictor.predict(**wrong)
            said.append(str(refused.value))
        assert said[0] == said[1] and "\n" not in said[0]
    with pytest.raises(InputError, match="NaN"):
        predictors[0].predict_batch(boxes=np.array([[0, 0, np.inf, 5]]))


def test_nothing_is_set_before_set_image(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="set_image"):
        OnnxSamPredictor(folder).predict(**POINTS)


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder
class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "segment_anything", "timm", "safetensors", "onnx"):
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from sam_bigltl.onnx_predictor import OnnxSamPredictor
predictor = OnnxSamPredictor(sys.argv[1], threads=1)
predictor.set_image(np.load(sys.argv[2]))
masks, iou, low_res = predictor.predict(box=np.array([5, 6, 40, 30]))
np.save(sys.argv[3], low_res)
assert "torch" not in sys.modules
try:
    from sam_bigltl import SamPredictor
except ModuleNotFoundError as error:
    print(error)
"""


def test_predictor_runs_where_there_is_no_torch(predictors, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", picture(*SIZE))
    words = [sys.executable, "-c", WITHOUT_TORCH, folder, tmp_path / "image.npy", tmp_path / "low_res.npy"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "blocked" in done.stdout  # the hook did block
    np.testing.assert_allclose(np.load(tmp_path / "low_res.npy"), predictors[0].predict(**BOX)[2], atol=1e-4)


def test_files_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    def said(name: str) -> str:
        with pytest.raises(InputError) as refused:
            OnnxSamPredictor(tmp_path / name)
        text = str(refused.value)
        assert "\n" not in text
        return text

    for name in ("damaged", "text", "swapped", "foreign"):
        shutil.copytree(folder, tmp_path / name)
    assert "no encoder.onnx" in said("absent")
    content = (folder / "encoder.onnx").read_bytes()
    (tmp_path / "damaged" / "encoder.onnx").write_bytes(content[: len(content) // 2])
    assert "encoder.onnx cannot be read" in said("damaged")
    (tmp_path / "text" / "decoder.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "decoder.onnx cannot be read" in said("text")
    shutil.copy(folder / "decoder.onnx", tmp_path / "swapped" / "encoder.onnx")
    assert "holds the decoder" in said("swapped")
    import onnx

    model = onnx.load(folder / "encoder.onnx")
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"weights": "', '"weights": "0')
    onnx.save(model, tmp_path / "foreign" / "encoder.onnx")
    assert "two models" in said("foreign")
    model.metadata_props[0].value = "{}"
    onnx.save(model, tmp_path / "foreign" / "encoder.onnx")
    assert "another version" in said("foreign")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign" / "encoder.onnx")
    assert "not written by" in said("foreign")


def test_export_that_cannot_be(sam, tmp_path: Path) -> None:
    for ratio in (0.0, 1.5, "auto"):
        with pytest.raises(InputError, match="keep_ratio"):
            export_onnx(sam, tmp_path / "out", ratio)
    with pytest.raises(InputError, match="dense"):
        export_onnx(dense_sam(), tmp_path / "out", 0.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        export_onnx(sam, tmp_path / "file", 0.5)
    assert not list((tmp_path / "out").iterdir())  # nothing half written


def test_a_torch_that_is_too_old_is_named(sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.7.1+cpu"))
    with pytest.raises(InputError, match=r"^exporting needs torch 2\.8 or later, and this is 2\.7\.1\+cpu$"):
        export_onnx(sam, tmp_path / "onnx", 0.5)
    assert not list((tmp_path / "onnx").iterdir())


@pytest.mark.parametrize(
    "arguments", [["--keep-ratio", "1.5"], ["--keep-ratio", "half"], ["--checkpoint", "none.pth"], ["--format", "x"]]
)
def test_bad_command_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = command("--output", tmp_path, *arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("sam-bigltl export: ")


def test_a_missing_exporter_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['onnxscript'] = None; from sam_bigltl.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "export", "--output", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "onnxscript" in done.stderr


def test_rows_of_the_benchmark() -> None:
    kinds = (("torch", "float32", False), ("torch", "int8", True), ("onnxruntime", "float32", False))
    cases = [Timed(task, "bigltl_mini", 0.5, *kind, 640, None) for kind in kinds for task in ("encoder", "1 box")]
    times = [[4.0, 2.0, 9.0], [1.0], [2.0], [5.0], [8.0], [0.5]]
    rows = result_rows(cases, times, {"threads": 1})
    assert [(row["task"], row["runtime"], row["dtype"], row["speedup_vs_torch_float32"]) for row in rows] == [
        ("encoder", "torch", "float32", 1), ("encoder", "torch", "int8", 2), ("encoder", "onnxruntime", "float32", 0.5),
        ("1 box", "torch", "float32", 1), ("1 box", "torch", "int8", 0.2), ("1 box", "onnxruntime", "float32", 2),
    ]  # fmt: skip
    assert "| 1 box | bigltl_mini | 0.5 | onnxruntime float32 | 500.0 | 2.00x |" in table(rows)
    alone = result_rows(cases[2:3], times[2:3], {})
    assert alone[0]["speedup_vs_torch_float32"] is None and "| - |" in table(alone)


def test_a_folder_whose_name_is_not_utf8(folder, tmp_path):
    copied = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(folder, copied)
    answers = []
    for each in (folder, copied):
        predictor = OnnxSamPredictor(each, threads=1)
        predictor.set_image(picture(*SIZE))
        answers.append(predictor.predict(box=np.array([4, 4, 40, 30]))[0])
    assert (answers[0] == answers[1]).all()
