# ruff: noqa: F811 - fixtures
"""What clients of SAM do to its image encoder: call parts by hand, hook, trace, copy and distribute them."""

from __future__ import annotations

import copy

import pytest
import torch
from little_models import dense_config, dense_sam, encoder_images, enliven
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from clients.encoders import noise, pair, pictures  # noqa: F401
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.registry import build_sam

PARTS = ("", "attn", "attn.qkv", "attn.proj", "norm1", "norm2", "mlp", "mlp.lin1")


def seen_by_hooks(encoder: nn.Module, images: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, input, output) of every call of the parts of blocks, in order."""
    seen, handles = [], []
    for layer, block in enumerate(encoder.blocks):
        for part in PARTS:
            name = f"{layer}.{part}"
            hook = lambda _, x, y, name=name: seen.append((name, x[0].detach(), y.detach()))  # noqa: E731
            handles.append(block.get_submodule(part).register_forward_hook(hook))
    encoder(images)
    for handle in handles:
        handle.remove()
    return seen


# ---------------------------------------------------------------- by hand
@torch.no_grad()
def test_the_encoder_written_out_by_hand_is_the_encoder(pair):
    reference, ours = pair
    results = []
    for encoder in (reference, ours):
        x = encoder.patch_embed(pictures(encoder)) + encoder.pos_embed
        for block in encoder.blocks:
            x = block(x)
            assert x.shape == (2, 4, 4, 32)
        results.append(encoder.neck(x.permute(0, 3, 1, 2)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[1], ours(pictures(ours)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 3, 32), (1, 4, 4, 32), (1, 5, 2, 32)])
@torch.no_grad()
def test_an_attention_sees_the_grid_that_it_gets(pair, shape):
    reference, ours = pair
    for theirs, own in zip(reference.blocks, ours.blocks):
        torch.testing.assert_close(own.attn(noise(*shape)), theirs.attn(noise(*shape)), atol=1e-5, rtol=1e-5)


def test_blocks_have_the_attributes_of_sams(pair):
    reference, ours = pair
    for theirs, own in zip(reference.blocks, ours.blocks):
        assert own.window_size == theirs.window_size
        for name in ("num_heads", "scale", "use_rel_pos"):
            assert getattr(own.attn, name) == getattr(theirs.attn, name)


# ---------------------------------------------------------------- hooks
@torch.no_grad()
def test_hooks_see_at_full_ratio_what_they_see_in_sam(pair):
    reference, ours = pair
    for (name, *theirs), (own_name, *own) in zip(*(seen_by_hooks(e, pictures(e)) for e in pair), strict=True):
        assert own_name == name
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(pictures(ours)), reference(pictures(ours)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep_ratio", [0.5, (1.0, 0.25), "auto"])
@torch.no_grad()
def test_hooks_fire_once_and_see_the_selected_tokens(pair, keep_ratio):
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    images = pictures(ours, 1)
    plain = ours(images)
    seen = seen_by_hooks(ours, images)
    assert sorted(name for name, *_ in seen) == sorted(f"{i}.{part}" for i in range(4) for part in PARTS)
    routed = {name: x.shape for name, x, _ in seen}
    for group in ours.last_route.groups:
        for layer in group.layers:
            if group.scores is not None:
                assert routed[f"{layer}."] == (1, 1, group.indices.shape[1], 32)
                assert routed[f"{layer}.attn.qkv"] == (1, 1, group.indices.shape[1], 32)
            else:
                assert routed[f"{layer}."] == (1, 4, 4, 32)
    torch.testing.assert_close(ours(images), plain)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@torch.no_grad()
def test_a_hook_that_changes_a_layer_changes_the_result(pair, keep_ratio):
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    before = ours(pictures(ours))
    for part in ("", "attn", "mlp", "attn.qkv", "attn.proj"):
        handle = ours.blocks[0].get_submodule(part).register_forward_hook(lambda _, x, y: y * 0)
        assert not torch.allclose(ours(pictures(ours)), before, atol=1e-3), part
        handle.remove()


def test_gradients_reach_hooks_of_the_last_norm(pair):
    """As Grad-CAM takes them: activations and gradients (B, H, W, C), brought to (B, C, H, W)."""
    shapes = []
    for encoder in pair:
        kept = []
        encoder.blocks[-1].norm1.register_forward_hook(lambda _, x, y, kept=kept: kept.append(y))
        embeddings = encoder(pictures(encoder))
        shapes.append(tuple(torch.autograd.grad(embeddings.sum(), kept)[0].shape))
    assert shapes == [(2, 4, 4, 32)] * 2


# ---------------------------------------------------------------- parts that clients replace
class Wrapper(nn.Module):
    """Knows nothing but x."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.ndim == 4
        return self.inner(x)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5, (0.5, 1.0)])
@pytest.mark.parametrize("part", ["", "attn", "attn.qkv", "attn.proj", "mlp", "norm1", "norm2"])
@torch.no_grad()
def test_a_wrapped_part_computes_the_same(pair, part, keep_ratio):
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    images = pictures(ours)
    before = ours(images)
    for layer in range(4):
        if part:
            parent, _, name = f"blocks.{layer}.{part}".rpartition(".")
            setattr(ours.get_submodule(parent), name, Wrapper(ours.blocks[layer].get_submodule(part)))
        else:
            ours.blocks[layer] = Wrapper(ours.blocks[layer])
    torch.testing.assert_close(ours(images), before, atol=1e-5, rtol=1e-5)


class Checkpointed(Wrapper):
    """Runs the inner module again in the backward pass."""

    reentrant = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=self.reentrant)


def checkpoint_parts(encoder: nn.Module, part: str, reentrant: bool) -> None:
    for layer, block in enumerate(encoder.blocks):
        wrapped = Checkpointed(getattr(block, part) if part else block)
        wrapped.reentrant = reentrant
        if part:
            setattr(block, part, wrapped)
        else:
            encoder.blocks[layer] = wrapped


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["", "attn", "mlp"])
def test_a_clients_checkpoint_has_sams_gradients(pair, part, reentrant):
    gradients = []
    for encoder in pair:
        images = pictures(encoder).requires_grad_()
        checkpoint_parts(encoder, part, reentrant)
        encoder(images).square().mean().backward()
        named = {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}
        gradients.append({"images": images.grad, **named})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["", "attn"])
def test_a_clients_checkpoint_of_selected_tokens_is_refused(pair, part, reentrant):
    """Which tokens they are is not known in the backward pass; ours knows."""
    ours = pair[1]
    checkpoint_parts(ours, part, reentrant)
    ours.keep_ratio = 0.5
    images = pictures(ours).requires_grad_()
    with pytest.raises(InputError, match="gradient_checkpointing"):
        ours(images).square().mean().backward()
    ours.keep_ratio = 1.0
    ours(images).square().mean().backward()


def test_a_wrapped_neck(pair):
    reference, ours = pair
    for encoder in pair:
        encoder.neck = Wrapper(encoder.neck)
    images = pictures(ours)
    torch.testing.assert_close(ours(images), reference(images), atol=1e-5, rtol=1e-5)
    assert ours.to(torch.bfloat16)(images).dtype == torch.float32


@torch.no_grad()
def test_sams_own_attention_can_take_ours_place(pair):
    reference, ours = pair
    for theirs, block in zip(reference.blocks, ours.blocks):
        attention = Attention(32, 2, use_rel_pos=True, input_size=(3, 3) if block.window_size else (4, 4))
        attention.load_state_dict(theirs.attn.state_dict())
        block.attn = attention.eval()
    torch.testing.assert_close(ours(pictures(ours)), reference(pictures(ours)), atol=1e-5, rtol=1e-5)
    ours.keep_ratio = 0.5
    with pytest.raises(InputError, match="an? Attention that takes the place of a SemiCrossAttention runs at .* 1.0"):
        ours(pictures(ours))


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@torch.no_grad()
def test_a_patched_forward_that_calls_the_old_one(pair, keep_ratio):
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    before = ours(pictures(ours))
    for block in ours.blocks:
        for module in (block, block.attn):
            module.forward = lambda x, old=module.forward: old(x)
    torch.testing.assert_close(ours(pictures(ours)), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_that_cuts_windows_itself_is_refused_below_full_ratio(pair):
    from segment_anything.modeling.image_encoder import Block

    reference, ours = pair
    for block in ours.blocks:  # as adapters patch it: SAM's own forward
        block.forward = Block.forward.__get__(block)
    torch.testing.assert_close(ours(pictures(ours)), reference(pictures(ours)), atol=1e-5, rtol=1e-5)
    ours.keep_ratio = 0.5
    with pytest.raises(InputError, match="keep_ratio 1.0"):
        ours(pictures(ours))


# ---------------------------------------------------------------- training
@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_training_after_inference_mode(pair, keep_ratio):
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    with torch.inference_mode():
        before = ours(pictures(ours))
    after = ours(pictures(ours))
    after.sum().backward()
    torch.testing.assert_close(after, before.clone(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_train_does_not_change_a_frozen_encoder(keep_ratio):
    """With the stem of older weights, which has batch norms, as well."""
    for stem in (None, (8, 8, 16, 16)):
        encoder = build_sam(dense_config(stem=stem, little_dim=16)).image_encoder
        enliven(encoder)
        encoder.keep_ratio = keep_ratio
        encoder.requires_grad_(False)
        images = pictures(encoder)
        before = encoder(images)
        state = copy.deepcopy(encoder.state_dict())
        encoder.train()
        assert torch.equal(encoder(images), before)
        encoder.eval()
        assert torch.equal(encoder(images), before)
        assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5, (1.0, 0.25)])
def test_distributed_data_parallel_needs_no_flag(process_group, keep_ratio):
    encoder = dense_sam(dense_config(little_dim=16)).image_encoder
    encoder.keep_ratio = keep_ratio
    images = encoder_images(dense_sam())
    plain = encoder(images)
    wrapped = nn.parallel.DistributedDataParallel(encoder)
    for _ in range(3):  # without all gradients the second pass fails
        found = wrapped(images)
        torch.testing.assert_close(found, plain)
        found.square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())
