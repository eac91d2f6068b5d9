"""Fine-tuning of SAM's encoder and decoder with small added parts: the same losses and gradients as on SAM itself."""

from __future__ import annotations

import copy
import math
import zlib

import pytest
import torch
from little_models import encoder_images, small_reference_sam
from torch import nn

from sam_bigltl.convert import convert_sam


class QkvLora(nn.Module):
    """LoRA on the queries and values of a SAM attention, as SAMed applies it: by slices of a 4-D output."""

    def __init__(self, qkv: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.qkv, self.dim = qkv, qkv.in_features
        self.down_q, self.up_q = nn.Linear(self.dim, rank, bias=False), nn.Linear(rank, self.dim, bias=False)
        self.down_v, self.up_v = nn.Linear(self.dim, rank, bias=False), nn.Linear(rank, self.dim, bias=False)

    def forward(self, x):
        qkv = self.qkv(x)
        qkv[:, :, :, : self.dim] += self.up_q(self.down_q(x))
        qkv[:, :, :, -self.dim :] += self.up_v(self.down_v(x))
        return qkv


class ParallelAdapter(nn.Module):
    """A bottleneck beside an MLP, as AdaptFormer adds it."""

    def __init__(self, mlp: nn.Module, dim: int = 32, width: int = 4) -> None:
        super().__init__()
        self.mlp, self.down, self.up = mlp, nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x):
        return self.mlp(x) + 0.1 * self.up(self.down(x).relu())


class SerialAdapter(nn.Module):
    """A bottleneck with spatial mixing after an attention, as medical adapters add it: it needs rows and columns."""

    def __init__(self, attn: nn.Module, dim: int = 32, width: int = 4) -> None:
        super().__init__()
        self.attn, self.down, self.up = attn, nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x):
        _, height, width, _ = x.shape
        y = self.attn(x)
        return y + 0.1 * self.up(self.down(y).tanh()) + y.mean(dim=(1, 2), keepdim=True) / (height * width)


def add_lora(encoder):
    for block in encoder.blocks:
        block.attn.qkv = QkvLora(block.attn.qkv)


def add_parallel(encoder):
    for block in encoder.blocks:
        block.mlp = ParallelAdapter(block.mlp)


def add_serial(encoder):
    for block in encoder.blocks:
        block.attn = SerialAdapter(block.attn)


def adapted(encoder: nn.Module, add) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The frozen encoder with its added parts, which are the same for every encoder, and these."""
    encoder.requires_grad_(False)
    add(encoder)
    added = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in added.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return encoder.train(), added


def target(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("add", [add_lora, add_parallel, add_serial])
def test_adapters_have_sams_loss_and_gradients(add):
    sam = small_reference_sam()
    results = []
    for encoder in (sam.image_encoder, convert_sam(sam, little_dim=16).image_encoder):
        encoder, added = adapted(encoder, add)
        embeddings = encoder(encoder_images(sam))
        loss = nn.functional.mse_loss(embeddings, target(embeddings))
        loss.backward()
        results.append({"loss": loss.detach()} | {name: p.grad for name, p in added.items()})
    assert results[0].keys() == results[1].keys() and len(results[0]) > 8
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-5)


def falls(parameters, loss_of) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    losses = []
    for _ in range(20):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("add", [add_lora, add_parallel])
def test_adapters_learn_below_full_ratio(add):
    sam = small_reference_sam()
    encoder, added = adapted(convert_sam(sam, little_dim=16).image_encoder, add)
    encoder.keep_ratio = 0.5
    images = encoder_images(sam)
    falls(added.values(), lambda: nn.functional.mse_loss(encoder(images), target(encoder(images))))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in added.values())


# ---------------------------------------------------------------- peft
def masks(model, embeddings):
    """Low-resolution logits of two clicks on one image."""
    coords, labels = torch.tensor([[[20.0, 30.0]], [[50.0, 12.0]]]), torch.ones(2, 1)
    sparse, dense = model.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
    return model.mask_decoder(
        image_embeddings=embeddings[:1], image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True,
    )[0]  # fmt: skip


def with_peft(sam):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["qkv", "q_proj", "v_proj"])
    model = peft.get_peft_model(sam, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # the same in every model, and none zero
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_peft_on_encoder_and_decoder_has_sams_loss_and_gradients():
    reference = small_reference_sam()
    results = []
    for sam in (copy.deepcopy(reference), convert_sam(reference, little_dim=16)):
        model = with_peft(sam)
        found = masks(model.base_model.model, model.base_model.model.image_encoder(encoder_images(reference)))
        loss = nn.functional.mse_loss(found, target(found))
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append({"loss": loss.detach()} | grads)
    assert results[0].keys() <= results[1].keys() and any("image_encoder" in name for name in results[0])
    assert all("little_blocks" in name for name in results[1].keys() - results[0].keys())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-5)


def test_peft_learns_below_full_ratio():
    reference = small_reference_sam()
    model = with_peft(convert_sam(reference, little_dim=16))
    sam = model.base_model.model
    sam.image_encoder.keep_ratio = 0.5

    def loss():
        found = masks(sam, sam.image_encoder(encoder_images(reference)))
        return nn.functional.mse_loss(found, target(found))

    falls([p for p in model.parameters() if p.requires_grad], loss)
