"""Models in which a client has changed something: hooks, wrappers, methods, classes. The change counts, as with SAM."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture, tiny_sam
from little_models import dense_sam
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.transformer import Attention
from torch import nn
from torch.nn.utils import parametrize, prune

from sam_bigltl import InputError, SamAutomaticMaskGenerator, SamPredictor
from sam_bigltl.evaluation.decoding import BatchDecoder, PromptLoop, decoder_for
from sam_bigltl.predict import decoding

BOX = np.array([5, 5, 40, 25])
GRID = dict(points_per_side=3, pred_iou_thresh=-100.0, stability_score_thresh=0.0, box_nms_thresh=0.99)


@pytest.fixture(autouse=True)
def _few_at_once(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_bigltl.predict.predictor._TOKENS", 64)  # four prompts of a grid of 16


class Calls:
    """Counts how often a client's code was called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1


class Lora(nn.Module):
    """A wrapper as LoRA's: of the layer it shows nothing."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.more = inner, nn.Linear(width, width // 2, bias=False)
        nn.init.normal_(self.more.weight, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.more(x)


class LoraLinear(nn.Linear):
    """The same as a subclass of the layer, with its attributes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.5 * x[..., : self.out_features]


class Twice(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class ZeroKeys(TwoWayTransformer):
    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        queries, keys = super().forward(*args)
        return queries, keys * 0


class OtherDecoder(MaskDecoder):
    def predict_masks(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        masks, iou = super().predict_masks(**inputs)
        return -masks, iou / 2


class OtherPrompts(PromptEncoder):
    def get_dense_pe(self) -> torch.Tensor:
        return -super().get_dense_pe()


class OtherSam(Sam):
    def postprocess_masks(self, masks: torch.Tensor, *sizes: tuple[int, ...]) -> torch.Tensor:
        return super().postprocess_masks(masks, *sizes) - masks.mean(dim=(0, 1, 2, 3))  # of the whole batch

    def preprocess(self, x: torch.Tensor) -> torch.Tensor:
        return super().preprocess(255 - x)


def attention(sam: Sam) -> Attention:
    return sam.mask_decoder.transformer.layers[1].cross_attn_token_to_image


def replaced_transformer(sam: Sam) -> None:
    other = ZeroKeys(depth=2, embedding_dim=32, num_heads=2, mlp_dim=64).eval()
    other.load_state_dict(sam.mask_decoder.transformer.state_dict())
    sam.mask_decoder.transformer = other


def lora(sam: Sam) -> None:
    torch.manual_seed(0)
    for layer in sam.mask_decoder.transformer.layers:
        layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj)
        layer.cross_attn_image_to_token.v_proj = Lora(layer.cross_attn_image_to_token.v_proj, 32)


def lora_linear(sam: Sam) -> None:
    linear = attention(sam).q_proj
    wrapped = LoraLinear(linear.in_features, linear.out_features)
    wrapped.load_state_dict(linear.state_dict())
    attention(sam).q_proj = wrapped


def without_bias(sam: Sam) -> None:
    linear = attention(sam).v_proj
    other = nn.Linear(linear.in_features, linear.out_features, bias=False)
    other.weight = linear.weight
    attention(sam).v_proj = other


def peft_lora(sam: Sam) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    sam.mask_decoder = peft.get_peft_model(sam.mask_decoder, config).base_model.model


def quantized(sam: Sam) -> None:
    torch.ao.quantization.quantize_dynamic(sam.mask_decoder, {nn.Linear}, inplace=True)


def method(of: Callable[[Sam], nn.Module], name: str, change: Callable) -> Callable[[Sam], object]:
    """A method put into one instance, as monkey patches do."""

    def patch(sam: Sam) -> None:
        module = of(sam)
        before = getattr(module, name)
        setattr(module, name, MethodType(lambda _self, *args, **kwargs: change(before(*args, **kwargs)), module))

    return patch


def hooked(of: Callable[[Sam], nn.Module], change: Callable) -> Callable[[Sam], object]:
    return lambda sam: of(sam).register_forward_hook(lambda _module, _args, output: change(output))


def upscaling(index: int, module: Callable[[nn.Module], nn.Module]) -> Callable[[Sam], object]:
    def put(sam: Sam) -> None:
        parts = sam.mask_decoder.output_upscaling
        parts[index] = module(parts[index])

    return put


def class_of(kind: type[nn.Module], of: Callable[[Sam], nn.Module]) -> Callable[[Sam], object]:
    return lambda sam: setattr(of(sam), "__class__", kind)


CHANGES: dict[str, Callable[[Sam], object]] = {
    "hook on the decoder": hooked(lambda sam: sam.mask_decoder, lambda out: (-out[0], out[1] + 1)),
    "hook on the transformer": hooked(lambda sam: sam.mask_decoder.transformer, lambda out: (out[0], out[1] * 0)),
    "hook on a layer": hooked(lambda sam: sam.mask_decoder.transformer.layers[0], lambda out: (out[0], -out[1])),
    "hook on an attention": hooked(attention, torch.neg),
    "hook on a projection": hooked(lambda sam: attention(sam).k_proj, torch.neg),
    "hook on a norm": hooked(lambda sam: sam.mask_decoder.transformer.layers[1].norm4, torch.neg),
    "hook on an mlp": hooked(lambda sam: sam.mask_decoder.transformer.layers[1].mlp.lin1, torch.neg),
    "hook on the upscaling": hooked(lambda sam: sam.mask_decoder.output_upscaling, torch.neg),
    "hook in the upscaling": hooked(lambda sam: sam.mask_decoder.output_upscaling[1], lambda out: out.flip(1)),
    "hook on a hypernetwork": hooked(lambda sam: sam.mask_decoder.output_hypernetworks_mlps[2].layers[1], torch.neg),
    "hook on the iou head": hooked(lambda sam: sam.mask_decoder.iou_prediction_head, torch.neg),
    "transformer": replaced_transformer,
    "decoder's class": class_of(OtherDecoder, lambda sam: sam.mask_decoder),
    "forward of the decoder": method(lambda sam: sam.mask_decoder, "forward", lambda out: (-out[0], out[1])),
    "predict_masks": method(lambda sam: sam.mask_decoder, "predict_masks", lambda out: (-out[0], out[1])),
    "forward of an attention": method(attention, "forward", torch.neg),
    "heads of an attention": method(attention, "_recombine_heads", torch.neg),
    "forward of a projection": method(lambda sam: attention(sam).q_proj, "forward", torch.neg),
    "lora": lora,
    "lora as a Linear": lora_linear,
    "peft": peft_lora,
    "no bias": without_bias,
    "parametrization": lambda sam: parametrize.register_parametrization(attention(sam).q_proj, "weight", Twice()),
    "pruning": lambda sam: prune.l1_unstructured(attention(sam).out_proj, "weight", 0.5),
    "int8": quantized,
    "upscaling with more": upscaling(0, lambda up: nn.Sequential(up, nn.Conv2d(8, 8, 3, padding=1))),
    "upscaling of another kernel": upscaling(3, lambda _: nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)),
    "activation over channels": upscaling(4, lambda _: nn.Softmax(dim=1)),
    "hook on the prompt encoder": hooked(lambda sam: sam.prompt_encoder, lambda out: (-out[0], out[1])),
    "hook on the positions": hooked(lambda sam: sam.prompt_encoder.pe_layer, torch.neg),
    "dense positions": method(lambda sam: sam.prompt_encoder, "get_dense_pe", torch.neg),
    "prompt encoder's class": class_of(OtherPrompts, lambda sam: sam.prompt_encoder),
    "embeddings of points": method(lambda sam: sam.prompt_encoder, "_embed_points", torch.neg),
    "postprocess_masks": method(lambda sam: sam, "postprocess_masks", lambda out: out - out.mean()),
    "Sam's class": class_of(OtherSam, lambda sam: sam),
}  # fmt: skip


def answers(kind: type, sam: Sam) -> list[np.ndarray]:
    """Logits, scores and low-resolution logits of one prompt and of several, more than are decoded at once."""
    predictor = kind(sam)
    predictor.set_image(picture())
    torch.manual_seed(0)
    boxes = torch.tensor([5.0, 5, 30, 25]) + 9 * torch.rand(9, 4)
    many = predictor.predict_torch(None, None, boxes, return_logits=True)
    points = predictor.predict_torch(torch.rand(9, 2, 2) * 40, torch.ones(9, 2, dtype=torch.int), return_logits=True)
    return [*predictor.predict(box=BOX, return_logits=True), *(x.numpy() for x in (*many, *points))]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_client_changes_counts(name: str) -> None:
    sam = tiny_sam()
    before = answers(SamPredictor, sam)
    torch.manual_seed(1)
    CHANGES[name](sam)
    theirs = answers(segment_anything.SamPredictor, sam)
    assert any(not np.allclose(a, b, atol=1e-4) for a, b in zip(before, theirs))  # else the test would not see it
    assert_close(answers(SamPredictor, sam), theirs)
    predictor = SamPredictor(sam)
    assert type(decoder_for(predictor, 4)) is PromptLoop

    ours, expected = (kind(sam, **GRID).generate(picture()) for kind in
                      (SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator))  # fmt: skip
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected):
        assert np.array_equal(a["segmentation"], b["segmentation"])
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-5)


def test_hooks_are_called_as_often_and_with_the_same() -> None:
    sam = tiny_sam()
    seen: list[tuple] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = [*args, *kwargs.values()]
        inputs = [x for each in inputs for x in (each if isinstance(each, tuple) else [each])]
        seen.append((sorted(kwargs), [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in inputs]))

    for module in (sam.prompt_encoder, sam.mask_decoder, sam.mask_decoder.transformer, sam.prompt_encoder.pe_layer):
        module.register_forward_pre_hook(keep, with_kwargs=True)
    answers(segment_anything.SamPredictor, sam)
    theirs, seen[:] = list(seen), []
    answers(SamPredictor, sam)
    assert len(seen) == len(theirs) > 0
    for (names, ours), (expected_names, expected) in zip(seen, theirs):
        assert names == expected_names
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def as_sam(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Counts the calls of SAM's own decoder."""
    calls, decode = Calls(), decoding.decode_as_sam
    monkeypatch.setattr(decoding, "decode_as_sam", lambda *args: calls(*args) or decode(*args))
    yield calls


def test_hooks_of_all_modules(as_sam: Calls) -> None:
    counts = []
    for kind in (SamPredictor, segment_anything.SamPredictor):
        predictor, calls = kind(tiny_sam()), Calls()
        predictor.set_image(picture())
        handle = nn.modules.module.register_module_forward_hook(calls)
        try:
            predictor.predict(box=BOX)
        finally:
            handle.remove()
        counts.append(calls.count)
    assert counts[0] == counts[1] > 50 and as_sam.count == 1


def test_a_patched_class(as_sam: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    sam, calls = tiny_sam(), Calls()
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    forward = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda self, q, k, v: calls() or 0.5 * forward(self, q, k, v))
    found = []
    for predictor in (ours, theirs):
        predictor.set_image(picture())
        found.append(predictor.predict(box=BOX, return_logits=True))
        assert calls.count == 7
        calls.count = 0
    assert_close(*found)


def test_nothing_changed_is_decoded_fast(as_sam: Calls) -> None:
    """Also after a hook was removed, in copies, in bfloat16 and of a state that was loaded."""
    sam = tiny_sam()
    sam.mask_decoder.register_forward_hook(Calls()).remove()
    sam.load_state_dict(tiny_sam(seed=1).state_dict())
    for model in (sam, copy.deepcopy(sam), copy.deepcopy(sam).bfloat16(), sam.requires_grad_(False)):
        predictor = SamPredictor(model)
        predictor.set_image(picture())
        predictor.predict(box=BOX)
        assert isinstance(decoder_for(predictor, 4), BatchDecoder)
    assert as_sam.count == 0
    handle = sam.mask_decoder.transformer.register_forward_pre_hook(Calls())
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    for expected in (1, 1):
        predictor.predict(box=BOX)
        assert as_sam.count == expected
        handle.remove()


def test_a_kept_position_follows_the_size_of_the_embedding() -> None:
    sam = tiny_sam()
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    found = []
    for predictor in (ours, theirs):
        predictor.set_image(picture())
        predictor.predict(box=BOX)
    sam.prompt_encoder.image_embedding_size = (2, 4)
    for predictor in (ours, theirs):
        predictor.features = predictor.features[:, :, :2]
        found.append(predictor.predict(box=BOX, return_logits=True))
    assert_close(*found)


def test_fewer_outputs_than_the_decoder_has_weights_for() -> None:
    sam = tiny_sam()
    sam.mask_decoder.num_mask_tokens = 3
    assert_close(*(answers(kind, sam) for kind in (SamPredictor, segment_anything.SamPredictor)))


def test_the_export_refuses_what_it_would_leave_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from sam_bigltl.convert.export import export_onnx

    sam = dense_sam()
    CHANGES["hook on a projection"](sam)
    with pytest.raises(InputError, match="cannot be exported") as error:
        export_onnx(sam, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lora", "hook on the positions"])
def test_the_trainings_refuse_what_they_would_leave_out(name: str) -> None:
    from sam_bigltl.training.loop import Forward
    from sam_bigltl.training.objectives import PromptObjective, Weights

    sam, changed = dense_sam(), tiny_sam()
    CHANGES[name](changed)
    for make in (
        lambda: Forward(changed, None), lambda: PromptObjective(changed, sam, Weights()),
        lambda: PromptObjective(sam, changed, Weights()),
    ):  # fmt: skip
        with pytest.raises(InputError, match="cannot be trained"):
            make()


def test_a_prompt_encoder_with_shapes_of_its_own() -> None:
    """Four coordinates a point, masks of any size: what SAM's predictor lets through, ours does."""

    class Own(nn.Module):
        def __init__(self, inner: PromptEncoder) -> None:
            super().__init__()
            self.inner = inner

        def get_dense_pe(self) -> torch.Tensor:
            return self.inner.get_dense_pe()

        def forward(self, points, boxes, masks):
            masks = None if masks is None else masks.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 16, 16)
            points = points and (points[0][..., :2] + points[0][..., 2:], points[1])
            return self.inner(points=points, boxes=boxes, masks=masks)

    sam = tiny_sam()
    sam.prompt_encoder = Own(sam.prompt_encoder)
    points, mask = torch.rand(2, 3, 4) * 20, np.random.default_rng(0).normal(0, 3, (1, 5, 7))
    found = []
    for kind in (SamPredictor, segment_anything.SamPredictor):
        predictor = kind(sam)
        predictor.set_image(picture())
        found.append([*predictor.predict_torch(points, torch.ones(2, 3), None, torch.ones(2, 1, 3, 3), True, True)])
        found[-1] += predictor.predict(box=BOX, mask_input=mask, return_logits=True)
    assert_close(*found)


def test_a_changed_model_in_bfloat16() -> None:
    """SAM's own prompt encoder fails there; ours computes in float32, with the client's methods."""
    sam = tiny_sam()
    CHANGES["prompt encoder's class"](sam)
    CHANGES["hook on the decoder"](sam)
    reference = SamPredictor(copy.deepcopy(sam))
    half = SamPredictor(sam.bfloat16())
    for predictor in (reference, half):
        predictor.set_image(picture())
    for a, b in zip(half.predict(box=BOX, return_logits=True), reference.predict(box=BOX, return_logits=True)):
        assert a.dtype == b.dtype == np.float32
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.15 * np.sqrt(np.mean(b**2))
