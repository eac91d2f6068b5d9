"""Train a ViT with SAM's plain patch projection from a `vit_mini`, whose convolutional stem it has to do without.

    torchrun --nproc-per-node 2 eval/plain_teacher.py --data data/train.json data/train_2.json --images data/images \
        --output runs/plain

Its last layers start as the teacher's own, its first ones learn what the stem knows: tokens after them are compared
with those after the teacher's stem, and the embeddings with the teacher's. The patch projection starts as the linear
map from pixels to the stem's tokens that least squares finds. Interrupted, --resume goes on exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sam_bigltl.convert import load_sam, save_sam
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.modeling.decode import dense_position
from sam_bigltl.modeling.encoder import EncoderConfig
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.modeling.trunk import Taps
from sam_bigltl.training.engine import Batch
from sam_bigltl.training.loop import Forward, TrainConfig, Trainer, embed_crop, encode_crop, make_batches
from sam_bigltl.training.losses import embedding_loss, relative_error
from sam_bigltl.training.processes import join_processes
from sam_bigltl.training.validation import Validation

FRONT = 4  # layers in the stem's place


def plain_config(teacher: EncoderConfig, front: int = FRONT) -> EncoderConfig:
    """The shape of a ViT with `front` layers before the teacher's, the last of them global, and no stem."""
    behind = tuple(front + layer for layer in teacher.global_layers)
    return replace(teacher, stem=None, depth=front + teacher.depth, global_layers=(front - 1, *behind))


def plain_student(teacher: Sam, front: int = FRONT) -> Sam:
    """A Sam of that shape: layers behind the front, neck, prompt encoder and decoder are the teacher's, copied."""
    sam = build_sam(plain_config(teacher.image_encoder.config, front))
    state = {name: value for name, value in teacher.state_dict().items() if "image_encoder." not in name}
    for name, value in teacher.image_encoder.state_dict().items():
        part, *rest = name.split(".")
        if part == "neck":
            state[f"image_encoder.{name}"] = value
        elif part == "blocks":
            state[f"image_encoder.blocks.{int(rest[0]) + front}.{'.'.join(rest[1:])}"] = value
    sam.load_state_dict(state, strict=False)
    for block in sam.image_encoder.blocks[:front]:  # at first the layers in front add nothing
        for layer in (block.attn.proj, block.mlp.lin2):
            nn.init.zeros_(layer.weight)
    nn.init.zeros_(sam.image_encoder.pos_embed)
    return sam


@torch.no_grad()
def fit_projection(student: Sam, teacher: Sam, images: Tensor, ridge: float = 1e-3) -> float:
    """Fit the patch projection to the teacher's stem by least squares, in place.

    Args:
        images: normalised crops (n, 3, S, S).

    Returns:
        the share of the variance of the stem's tokens that it explains on `images`.
    """
    projection = student.image_encoder.patch_embed.proj
    patch = projection.kernel_size[0]
    wanted = teacher.image_encoder.patch_embed(images).flatten(0, 2).double()
    pixels = nn.functional.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1).double()
    pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    gram = pixels.T @ pixels
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, pixels.T @ wanted)
    left = (wanted - pixels @ weight).square().sum() / (wanted - wanted.mean(0)).square().sum()
    projection.weight.copy_(weight[:-1].T.reshape(projection.weight.shape))
    projection.bias.copy_(weight[-1])
    student.image_encoder.pos_embed.copy_(teacher.image_encoder.pos_embed)
    return 1 - float(left)


class FeatureForward(Forward):
    """Losses against the teacher, of the tokens behind the front and of the embedding; and of masks, `weight_masks`."""

    def __init__(self, sam: Sam, teacher: Sam, front: int, weight_masks: float) -> None:
        super().__init__(sam, None)
        self._teacher = (teacher,)  # not a submodule: nothing of it is to be synchronised
        self.front, self.weight_masks = front, weight_masks

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = (batch["image"].float() - self.sam.pixel_mean) / self.sam.pixel_std
        (teacher,) = self._teacher
        with torch.no_grad():
            stem = embed_crop(teacher, images, batch["offset"])
            wanted = teacher.image_encoder.encode_tokens(stem)
        encoder = self.sam.image_encoder
        encoder.taps = taps = Taps()
        ours = encode_crop(self.sam, images, batch["offset"])
        encoder.taps = None
        valid = batch["valid"]
        front = relative_error(
            taps.layers[self.front - 1].transpose(1, 2), stem.flatten(1, 2).transpose(1, 2), valid.flatten(1)
        )
        cosine, mse = embedding_loss(ours, wanted, valid)
        out = {"loss": cosine + mse + front, "cosine": cosine, "mse": mse, "front": front}
        if self.weight_masks:
            position = dense_position(self.sam.prompt_encoder, batch["offset"], ours.shape[-2:])
            masks = self._rounds(batch, ours, position)
            out |= {key: masks[key] for key in ("bce", "dice", "iou_head", "iou", "last_iou")}
            out["loss"] = out["loss"] + self.weight_masks * masks["loss"]
        return out


def _config(args: argparse.Namespace) -> TrainConfig:
    whole = args.crop is None
    return TrainConfig(
        steps=args.steps, seed=args.seed, crop=args.crop or 640, batch_size=args.batch_size, lr=args.lr,
        final_lr=args.final_lr, warmup=min(30, args.steps // 10), optimizer="muon", ema=args.ema, balance="source",
        scale=(0.6, 1.3) if whole else (0.3, 1.5), as_is=0.6 if whole else 0.25, paste=0.25, degrade=0.15,
        rounds=args.rounds, round_prompts=3, box_share=0.75, prompts=8 if args.masks else 1, precision=args.precision,
        train_decoder=args.masks > 0, save_every=200, log_every=10, val_every=args.val_every,
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Train and write the averaged weights."""
    processes, device = join_processes(None)
    torch.manual_seed(args.seed)
    teacher = load_sam(args.teacher).to(device).eval().requires_grad_(False)
    sam = load_sam(args.init) if args.init else plain_student(teacher)
    sam = sam.to(device)
    teacher.image_encoder.optimize()
    config = _config(args)
    batches = make_batches(args.data, args.images, sam, config)
    if not args.init and not args.resume:
        crops = np.concatenate([batches[args.steps + number]["image"] for number in range(12)])
        explained = fit_projection(sam, teacher, (torch.from_numpy(crops).float() - sam.pixel_mean) / sam.pixel_std)
        print(f"a linear map of the pixels explains {explained:.3f} of the variance of the stem's tokens", flush=True)
    validate = Validation(sam, args.val, args.images, 48, (1.0,)) if args.val else None
    trainer = Trainer(sam, batches, config, args.output, None, validate)
    trainer.forward = FeatureForward(sam, teacher, FRONT, args.masks)
    if args.resume:
        trainer.resume()
    trainer.run()
    if processes.is_main_process:
        sam.load_state_dict(trainer.averaged())
        save_sam(sam, args.output / "model.safetensors")
        print(f"wrote {args.output / 'model.safetensors'} after {trainer.step} steps, {trainer.seconds:.0f} s")


def main(argv: Sequence[str] | None = None) -> None:
    """Train the plain teacher of the study."""
    parser = ArgumentParser(
        prog="plain_teacher.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, default=Path("checkpoints/vit_mini.safetensors"))
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="JSON")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--val", type=Path, metavar="JSON")
    parser.add_argument("--val-every", type=int, default=0, help="steps (0: at the end only)")
    parser.add_argument("--init", type=Path, metavar="CKPT", help="a plain model to go on from")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/plain"), metavar="DIR")
    parser.add_argument("--crop", type=int, help="side of the crops, pixels (whole frames)")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--final-lr", type=float, default=0.05)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument(
        "--masks", type=float, default=0.0, help="weight of the loss on masks, which trains the decoder"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.crop is not None and args.crop < 32:
        raise InputError("--crop is at least 32 pixels")
    run_cli("plain_teacher.py", run, args)
