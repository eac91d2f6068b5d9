"""`accelerate` on transformers' SAM models: their processor, pipeline, outputs and files go on working."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import enliven
from PIL import Image

from sam_bigltl import InputError, accelerate
from sam_bigltl.modeling.encoder import BigLittleEncoder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 64


def sizes(**changes) -> dict:
    vision = dict(
        hidden_size=32, output_channels=16, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE, mlp_dim=64,
        window_size=3, global_attn_indexes=[1, 3], num_pos_feats=8,
    )  # fmt: skip
    return vision | changes


def parts() -> dict:
    return dict(
        prompt_encoder_config=dict(hidden_size=16, image_size=SIDE, patch_size=16, image_embedding_size=SIDE // 16),
        mask_decoder_config=dict(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16, num_hidden_layers=2
        ),
    )


def build(kind: str = "SamModel", seed: int = 0, **changes):
    torch.manual_seed(seed)
    hq = "HQ" in kind
    vision = sizes(**changes)
    if kind.endswith("VisionModel"):
        config = getattr(transformers, "SamHQVisionConfig" if hq else "SamVisionConfig")(**vision)
    else:
        others = parts()
        if hq:
            others["mask_decoder_config"]["vit_dim"] = 32
        config = getattr(transformers, "SamHQConfig" if hq else "SamConfig")(vision_config=vision, **others)
    model = getattr(transformers, kind)(config).eval()
    enliven(model.vision_encoder, seed)
    return model


def processor():
    sides = dict(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    masks = dict(mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16})
    return transformers.SamProcessor(transformers.SamImageProcessor(**sides, **masks))


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def predict(model, **kwargs):
    inputs = processor()(Image.fromarray(picture()), input_points=[[[20, 14]]], return_tensors="pt")
    return model(**{**inputs, **kwargs})


def assert_close(found, expected, atol: float = 1e-4) -> None:
    assert list(found.keys()) == list(expected.keys())
    for name, value in expected.items():
        for own, other in zip(*((x if isinstance(x, tuple | list) else [x]) for x in (found[name], value))):
            torch.testing.assert_close(own, other, atol=atol, rtol=0)


@pytest.mark.parametrize("kind", ["SamModel", "SamHQModel"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_and_scores(kind, attention):
    model = build(kind, attn_implementation=attention)
    theirs = model.vision_encoder
    calls = [{}, {"multimask_output": False}, {"output_hidden_states": True}]
    calls += [{"hq_token_only": True}] if "HQ" in kind else []
    before = [predict(model, **call) for call in calls]
    assert accelerate(model, dtype="float32") is model
    assert isinstance(model.vision_encoder.encoder, BigLittleEncoder)
    for call, expected in zip(calls, before):
        found = predict(model, **call)
        assert type(found) is type(expected)
        assert_close(found, expected)
    accelerate(model, undo=True)
    assert model.vision_encoder is theirs
    for call, expected in zip(calls, before):
        assert_close(predict(model, **call), expected, atol=0.0)


def test_prompts_and_embeddings_of_before():
    model = build()
    inputs = dict(input_boxes=torch.tensor([[[3.0, 4, 40, 30]], [[2, 2, 50, 50]]]))
    with torch.no_grad():
        embeddings = model.get_image_embeddings(pixels())
        expected = model(image_embeddings=embeddings, **inputs)
    accelerate(model, dtype="float32")
    torch.testing.assert_close(model.get_image_embeddings(pixels()), embeddings, atol=1e-4, rtol=0)
    with torch.no_grad():
        assert_close(model(pixel_values=pixels(), **inputs), expected)
        assert_close(model(image_embeddings=embeddings, **inputs), expected, atol=0.0)


def test_hq_features_of_before():
    model = build("SamHQModel")
    embedding, features = model.get_image_embeddings(pixels())
    accelerate(model, dtype="float32")
    found, found_features = model.get_image_embeddings(pixels())
    torch.testing.assert_close(found, embedding, atol=1e-4, rtol=0)
    assert len(found_features) == len(features) == 2
    for own, other in zip(found_features, features):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["SamVisionModel", "SamHQVisionModel"])
@pytest.mark.parametrize(
    "call",
    [
        {}, {"output_hidden_states": True}, {"output_hidden_states": [0, -1]}, {"output_hidden_states": 2},
        {"return_dict": False},
    ],
)  # fmt: skip
@torch.no_grad()
def test_outputs_of_the_vision_model(kind, call):
    model = build(kind)
    try:
        expected = model(pixels(), **call)
    except (TypeError, ValueError, AttributeError) as error:
        pytest.skip(f"this transformers does not answer it: {error}")
    accelerate(model, dtype="float32")
    found = model(pixels(), **call)
    assert type(found) is type(expected)
    if not isinstance(expected, tuple):
        assert list(found.keys()) == list(expected.keys())
    for own, other in zip(found if isinstance(found, tuple) else found.to_tuple(),
                          expected if isinstance(expected, tuple) else expected.to_tuple()):  # fmt: skip
        assert type(own) is type(other)
        own, other = (x if isinstance(x, tuple | list) else [x] for x in (own, other))
        assert len(own) == len(other)
        for value, reference in zip(own, other):
            assert (value is None) == (reference is None)
            if value is not None:
                torch.testing.assert_close(value, reference, atol=1e-4, rtol=0)


def test_hidden_states_by_configuration():
    model = build("SamVisionModel")
    model.vision_encoder.config.output_hidden_states = True
    expected = model(pixels()).hidden_states
    accelerate(model, dtype="float32")
    found = model(pixels()).hidden_states
    assert len(found) == len(expected) == 5
    for own, other in zip(found, expected):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


def test_what_is_refused():
    model = accelerate(build(), dtype="float32")
    with pytest.raises(InputError, match="attention"):
        predict(model, output_attentions=True)
    with pytest.raises(InputError, match="64 x 64"):
        model.get_image_embeddings(pixels()[..., :32])
    with pytest.raises(ValueError, match="pixel_values"):
        model.vision_encoder()
    accelerate(model, 0.5, "float32", images=[picture(seed=seed) for seed in range(4)])
    with pytest.raises(InputError, match=r"keep_ratio to 1\.0"):
        predict(model, output_hidden_states=True)
    predict(model)
    for changes, words in (
        (dict(hidden_act="relu"), "mlp.act"),
        (dict(attention_dropout=0.1), "dropout"),
        (dict(num_channels=1), "RGB"),
    ):
        with pytest.raises(InputError, match=words):
            accelerate(build("SamVisionModel", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        dict(qkv_bias=False), dict(use_rel_pos=False), dict(use_abs_pos=False), dict(layer_norm_eps=1e-2),
        dict(window_size=0),
    ],
)  # fmt: skip
def test_other_configurations(changes):
    model = build(**changes)
    expected, names = predict(model), sorted(model.state_dict())
    accelerate(model, dtype="float32")
    assert_close(predict(model), expected)
    assert sorted(model.state_dict()) == names
    model.load_state_dict(model.state_dict())


def test_the_pipeline_gives_the_same_masks():
    model = build()
    generate = transformers.pipeline("mask-generation", model=model, image_processor=processor().image_processor)
    settings = dict(
        points_per_crop=4, points_per_batch=8, pred_iou_thresh=-10.0, stability_score_thresh=-1.0, crops_nms_thresh=1.0
    )
    image = Image.fromarray(picture(64, 64))
    expected = generate(image, **settings)
    assert accelerate(generate, dtype="float32") is generate
    found = generate(image, **settings)
    assert len(expected["masks"]) == len(found["masks"]) > 0
    for own, other in zip(found["masks"], expected["masks"]):
        assert (np.asarray(own) != np.asarray(other)).sum() == 0
    torch.testing.assert_close(torch.as_tensor(found["scores"]), torch.as_tensor(expected["scores"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["SamModel", "SamVisionModel", "SamHQModel"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saves_what_transformers_reads(kind, dtype, tmp_path):
    model = build(kind)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    accelerate(model, dtype=dtype, native=False)
    assert model.state_dict().keys() == state.keys()
    model.save_pretrained(tmp_path)
    again, report = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_a_state_dict(dtype):
    model, other = build(), build(seed=1)
    accelerate(model, dtype=dtype, native=False)
    model.load_state_dict(other.state_dict())
    expected = predict(other).pred_masks
    assert (predict(model).pred_masks - expected).norm() / expected.norm() < (1e-4 if dtype == "float32" else 5e-2)
    accelerate(model, undo=True)
    assert torch.equal(predict(model).pred_masks, expected)


def test_a_fitted_little_path_is_not_saved(tmp_path):
    model = build()
    state = model.state_dict()
    accelerate(model, 0.5, "float32", images=[picture(seed=seed) for seed in range(4)])
    half = predict(model).pred_masks
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert torch.equal(predict(model).pred_masks, half)
    model.vision_encoder.keep_ratio = 1.0
    assert not torch.equal(predict(model).pred_masks, half)


def test_hq_below_one():
    model = build("SamHQModel")
    expected = predict(model).pred_masks
    accelerate(model, 0.5, "float32", images=[picture(seed=seed) for seed in range(6)])
    for keep_ratio in (0.5, "auto", (1.0, 0.5)):
        model.vision_encoder.keep_ratio = keep_ratio
        found, features = model.get_image_embeddings(pixels())
        alone = [model.get_image_embeddings(image) for image in pixels().split(1)]
        torch.testing.assert_close(found, torch.cat([one[0] for one in alone]), atol=1e-4, rtol=0)
        torch.testing.assert_close(features[0], torch.cat([one[1][0] for one in alone]), atol=1e-4, rtol=0)
        assert torch.isfinite(predict(model).pred_masks).all()
    model.vision_encoder.keep_ratio = 1.0
    torch.testing.assert_close(predict(model).pred_masks, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["SamModel", "SamHQModel"])
def test_gradients_reach_the_same_parameters(kind):
    model = build(kind).train()
    reference = copy.deepcopy(model)
    theirs = model.vision_encoder
    accelerate(model, dtype="float32")
    for each in (model, reference):
        each(pixel_values=pixels(), input_points=torch.full((2, 1, 1, 2), 20.0)).pred_masks.square().mean().backward()
    expected = {name: value.grad for name, value in reference.vision_encoder.named_parameters()}
    found = {name: value.grad for name, value in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    learnt = predict(model.eval()).pred_masks
    accelerate(model, undo=True)
    torch.testing.assert_close(predict(model).pred_masks, learnt, atol=1e-4, rtol=0)


def test_gradient_checkpointing():
    model = build().train()
    model.gradient_checkpointing_enable()
    accelerate(model, dtype="float32")
    model.gradient_checkpointing_enable()
    assert model.vision_encoder.encoder.gradient_checkpointing
    model.vision_encoder(pixels()).last_hidden_state.sum().backward()
    assert model.vision_encoder.encoder.blocks[0].attn.qkv.weight.grad is not None


@pytest.mark.parametrize("kind", ["SamModel", "SamVisionModel"])
def test_the_type_of_the_model(kind):
    model = build(kind)
    accelerate(model, dtype="bfloat16", native=False)
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    names = sorted(build(kind).state_dict())
    assert model.half().dtype == torch.float16
    assert sorted(model.state_dict()) == names
    assert accelerate(model, undo=True).dtype == torch.float16


def test_type_device_and_copies():
    model = build()
    expected = predict(model).pred_masks
    before = model.dtype, model.device
    accelerate(model, dtype="bfloat16", native=False)
    assert (model.dtype, model.device) == before
    rounded = predict(model.to("cpu").float()).pred_masks
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - expected).norm() / expected.norm() < 5e-2
    other = copy.deepcopy(model)
    assert torch.equal(predict(other).pred_masks, rounded)
    assert torch.equal(predict(accelerate(other, undo=True)).pred_masks, expected)
    half = accelerate(build().bfloat16(), dtype="bfloat16", native=False)
    assert half.dtype == torch.bfloat16
    assert half.get_image_embeddings(pixels().bfloat16()).dtype == torch.bfloat16


def test_hidden_states_asked_for_before():
    """transformers hangs hooks on its layers the first time; they are no change of a client's."""
    model = build()
    expected = predict(model, output_hidden_states=True)
    accelerate(model, dtype="float32")
    assert_close(predict(model, output_hidden_states=True), expected)
    accelerate(model, undo=True)
    assert_close(predict(model, output_hidden_states=True), expected, atol=0.0)
    model.vision_encoder.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="hook"):
        accelerate(model)


def test_peft_before_is_named_and_after_works():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    with pytest.raises(InputError, match=r"qkv is a Linear"):
        accelerate(peft.get_peft_model(build(), config).base_model.model)
    with pytest.raises(InputError, match="Peft"):
        accelerate(peft.get_peft_model(build(), config))
    decoder = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(build(), decoder)
    expected = predict(model).pred_masks
    accelerate(model.base_model.model, dtype="float32")
    torch.testing.assert_close(predict(model).pred_masks, expected, atol=1e-4, rtol=0)


def test_peft_on_the_accelerated_encoder():
    """LoRA on `qkv` learns on ours what it learns on theirs."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=r".*attn\.qkv", r=2, init_lora_weights=False)
    gradients, masks = [], []
    for ours in (False, True):
        model = accelerate(build(), dtype="float32") if ours else build()
        torch.manual_seed(1)
        model = peft.get_peft_model(model, config).train()
        result = model(pixel_values=pixels(), input_points=torch.full((2, 1, 1, 2), 20.0)).pred_masks
        result.square().mean().backward()
        masks.append(result.detach())
        gradients.append([value.grad for name, value in model.named_parameters() if "lora_" in name])
    torch.testing.assert_close(masks[1], masks[0], atol=1e-4, rtol=0)
    assert len(gradients[0]) == len(gradients[1]) == 8
    for own, other in zip(gradients[1], gradients[0]):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-3)
    merged = model.merge_and_unload()
    learnt = predict(merged.eval()).pred_masks
    accelerate(merged, undo=True)
    torch.testing.assert_close(predict(merged).pred_masks, learnt, atol=1e-4, rtol=0)


def test_hooks_on_the_blocks():
    model = accelerate(build(), dtype="float32")
    shapes = []
    for block in model.vision_encoder.encoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: shapes.append((inputs[0].shape, output.shape)))
    model.get_image_embeddings(pixels())
    assert shapes == [((2, 4, 4, 32), (2, 4, 4, 32))] * 4
