"""Training a Sam end to end from masks, with or without a teacher, on CPU or one GPU.

Every random choice of a step is drawn from (seed, step), and the state on disk holds the rest, so that a resumed run
continues bit for bit as if it had never stopped.
"""

from __future__ import annotations

import csv
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..decode import TOP_LEFT, decode, dense_position, embed_prompts
from ..errors import InputError
from .data import MaskBatches, SampleConfig
from .losses import embedding_loss, mask_loss

LOG_FIELDS = (
    "step", "images", "seconds", "lr", "keep_ratio", "loss", "bce", "dice", "iou_head", "cosine", "mse", "iou",
    "grad_norm", "images_per_s",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; all but the intervals must be the same when it is resumed (the rate depends on `steps`).

    Attributes:
        steps: optimizer steps in all.
        batch_size: images a step; prompts: masks an image; crop: side of the training crops, pixels.
        as_is, box_share, box_jitter: see `SampleConfig`.
        optimizer: "adamw", or "muon" (matrices by torch.optim.Muon with AdamW's step size, the rest by AdamW).
        lr: peak learning rate; warmup: steps of linear warm-up before the cosine falls to `final_lr` of it.
        keep_ratios: for a big.LITTLE encoder, drawn uniformly, one a step.
        distill_weight: weight of embedding cosine + MSE to the teacher, where there is one; the masks weigh 1.
        train_decoder: whether prompt encoder and mask decoder learn too.
        ema: decay of the averaged weights that are saved; 0 for none.
        precision: "bfloat16" (autocast) or "float32".
        save_every, log_every, val_every: in steps; val_every 0 validates at the end only.
    """

    steps: int
    batch_size: int = 16
    prompts: int = 8
    crop: int = 448
    scale: tuple[float, float] = (0.5, 1.5)
    as_is: float = 0.4
    box_share: float = 0.65
    box_jitter: float = 0.2
    optimizer: str = "adamw"
    lr: float = 1e-3
    final_lr: float = 0.01
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    keep_ratios: tuple[float, ...] = (1.0,)
    distill_weight: float = 0.0
    train_decoder: bool = True
    ema: float = 0.999
    precision: str = "bfloat16"
    compile: bool = False
    seed: int = 0
    workers: int = 1
    save_every: int = 200
    log_every: int = 10
    val_every: int = 0


# What may differ between a run and its continuation: nothing of it changes a weight.
_FREE = {"save_every", "log_every", "val_every", "workers", "compile"}


class Forward(nn.Module):
    """One forward pass over a batch, whole, so that it compiles as one graph."""

    def __init__(self, sam: Sam, teacher: Sam | None) -> None:
        super().__init__()
        self.sam = sam
        self.teacher = teacher

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = (batch["image"].float() - self.sam.pixel_mean) / self.sam.pixel_std
        embeddings = encode_crop(self.sam, images, batch["offset"])
        prompt_encoder = self.sam.prompt_encoder
        position = dense_position(prompt_encoder, batch["offset"], embeddings.shape[-2:])
        sparse = embed_prompts(prompt_encoder, batch["coords"], batch["labels"])
        logits, iou_pred = decode(self.sam.mask_decoder, prompt_encoder, embeddings, position, sparse)
        has_box = (batch["labels"] == TOP_LEFT).any(dim=-1)
        masks = mask_loss(logits, iou_pred, batch["target"].float() / 255, batch["boxes"], has_box)
        cosine = mse = masks.total.new_zeros(())
        if self.teacher is not None:
            with torch.no_grad():
                wanted = encode_crop(self.teacher, images, batch["offset"])
            cosine, mse = embedding_loss(embeddings, wanted, batch["valid"])
        return {
            "masks": masks.total, "bce": masks.bce, "dice": masks.dice, "iou_head": masks.iou_head,
            "iou": masks.iou, "cosine": cosine, "mse": mse,
        }  # fmt: skip


def encode_crop(sam: Sam, images: Tensor, offsets: Tensor) -> Tensor:
    """Embeddings of parts of the frame: images (B, 3, S, S) normalised, offsets (B, 2) in tokens -> (B, C, g, g)."""
    encoder = sam.image_encoder
    tokens = encoder.patch_embed(images)  # (B, g, g, C)
    rows = offsets[:, 0, None] + torch.arange(tokens.shape[1], device=tokens.device)
    columns = offsets[:, 1, None] + torch.arange(tokens.shape[2], device=tokens.device)
    return encoder.encode_tokens(tokens + encoder.pos_embed[0][rows[:, :, None], columns[:, None, :]])


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_lr * lr`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(sam: Sam, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Weight decay on matrices and kernels only; prompt encoder and decoder left out where they are frozen."""
    matrices, kernels, plain = [], [], []
    for name, parameter in sam.named_parameters():
        if not config.train_decoder and not name.startswith("image_encoder."):
            parameter.requires_grad_(False)
        elif parameter.ndim < 2 or re.search(r"pos_embed|rel_pos|_tokens?\.weight|point_embed|_embed\.weight", name):
            plain.append(parameter)
        else:
            (matrices if parameter.ndim == 2 else kernels).append(parameter)
    decay = config.weight_decay
    adamw = dict(lr=config.lr, betas=(0.9, 0.98), fused=True)
    if config.optimizer == "adamw":
        groups = [{"params": matrices + kernels, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, **adamw)]
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"torch {torch.__version__} has no Muon: use the optimizer adamw, or torch 2.9 or later")
    groups = [{"params": kernels, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, **adamw)]


class Trainer:
    """A run in a folder: `state.pt` to resume from, `log.csv`, and `val.csv` where it validates.

    Args:
        sam: the model to train, on its device.
        batches: `MaskBatches` of this config.
        output: folder of the run.
        teacher: frozen Sam whose embeddings are distilled, or None.
        validate: given the averaged weights, rows of figures for `val.csv`; or None.
    """

    def __init__(
        self,
        sam: Sam,
        batches: MaskBatches,
        config: TrainConfig,
        output: Path,
        teacher: Sam | None = None,
        validate: Callable[[dict[str, Tensor]], list[dict]] | None = None,
    ) -> None:
        self.sam, self.config, self.output, self.batches = sam, config, output, batches
        self.validate = validate
        self.step = 0
        self.seconds = 0.0
        self.window: list[dict[str, float]] = []  # figures of the steps since the last row of log.csv
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {output}: {error.strerror}") from None
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self.forward = Forward(sam, teacher)
        self.optimizers = make_optimizers(sam, config)
        self.average = {name: value.detach().clone() for name, value in sam.state_dict().items()}

    @property
    def state_path(self) -> Path:
        return self.output / "state.pt"

    def save(self) -> None:
        """Write the state whole or not at all."""
        state = {
            "config": asdict(self.config), "step": self.step, "seconds": self.seconds, "model": self.sam.state_dict(),
            "average": self.average, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(), "window": self.window,
        }  # fmt: skip
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_path)

    def resume(self) -> None:
        """Continue from `state.pt`."""
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(f"nothing to resume in {self.output}: no state.pt") from None
        except Exception:  # on noise the unpickler raises whatever its first bytes happen to mean
            raise InputError(f"{self.state_path} is damaged: start again in another --output") from None
        for key, value in asdict(self.config).items():
            stored = state["config"].get(key)
            stored = tuple(stored) if isinstance(stored, list) else stored
            if key not in _FREE and stored != value:
                raise InputError(f"{self.output} was trained with {key} = {stored}, not {value}: use another --output")
        try:
            self.sam.load_state_dict(state["model"])
        except RuntimeError:
            raise InputError(f"{self.output} holds the run of another --model") from None
        self.average = {name: value.to(self.sam.device) for name, value in state["average"].items()}
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step, self.seconds, self.window = state["step"], state["seconds"], state.get("window", [])
        torch.set_rng_state(state["rng"])

    def averaged(self) -> dict[str, Tensor]:
        """The weights to ship."""
        return self.average if self.config.ema else self.sam.state_dict()

    def run(self) -> None:
        """Train to the last step, saving on the way. An interrupt ends it after the step under way, saved."""
        config, device = self.config, self.sam.device
        torch.set_flush_denormal(True)  # denormals in young weights slow a CPU down several times
        forward = torch.compile(self.forward, dynamic=False) if config.compile else self.forward
        loader = DataLoader(
            Subset(self.batches, range(self.step, config.steps)),
            batch_size=None, num_workers=config.workers, prefetch_factor=4 if config.workers else None,
            worker_init_fn=_ignore_interrupts,
        )  # fmt: skip
        if self._truncate_logs():
            self._validate()
        window = self.window
        self.sam.train()
        with _interrupt_flag() as interrupted, tqdm(
            total=config.steps, initial=self.step, unit="step", dynamic_ncols=True, disable=None
        ) as bar:
            for batch in _loaded(loader):
                began = time.perf_counter()
                batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
                window.append(self._train_step(forward, batch))
                window[-1]["time"] = time.perf_counter() - began
                self.step += 1
                self.seconds += window[-1]["time"]
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    self._append("log.csv", LOG_FIELDS, self._log_row(window, bar))
                    window.clear()
                if self.step % config.save_every == 0 or last or interrupted():
                    self.save()
                if interrupted():
                    raise KeyboardInterrupt
                if self._validation_is_due():
                    self._validate()
        self.sam.eval()

    def _validation_is_due(self) -> bool:
        every = self.config.val_every
        return self.step == self.config.steps or bool(every and self.step and self.step % every == 0)

    def _validate(self) -> None:
        if self.validate is None:
            return
        for row in self.validate(self.averaged()):
            row = {"step": self.step, "images": self.step * self.config.batch_size} | row
            self._append("val.csv", tuple(row), row)
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def _append(self, name: str, fields: tuple[str, ...], row: dict) -> None:
        path = self.output / name
        new = not path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, fields)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _train_step(self, forward: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
        config, encoder = self.config, self.sam.image_encoder
        if not encoder.is_dense:
            draw = np.random.default_rng([config.seed, self.step, 1])
            encoder.keep_ratio = config.keep_ratios[draw.integers(len(config.keep_ratios))]
        rate = learning_rate(config, self.step)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = rate
        device_type = self.sam.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            out = forward(batch)
        loss = out["masks"] + config.distill_weight * (out["cosine"] + out["mse"])
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], config.clip)
        if not torch.isfinite(norm):
            raise InputError(f"the loss is not finite at step {self.step}: lower the learning rate")
        for optimizer in self.optimizers:
            optimizer.step()
        self._update_average()
        figures = {key: float(value.detach().mean()) for key, value in out.items()}
        ratio = encoder.keep_ratio if isinstance(encoder.keep_ratio, float) else float("nan")
        return figures | {"loss": float(loss.detach()), "grad_norm": float(norm), "lr": rate, "keep_ratio": ratio}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.config.ema else 0.0
        for name, value in self.sam.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _log_row(self, window: list[dict[str, float]], bar: tqdm) -> dict[str, float | int]:
        row = {key: float(np.mean([w[key] for w in window])) for key in window[0] if key in LOG_FIELDS}
        speed = self.config.batch_size / float(np.mean([w["time"] for w in window]))
        bar.set_postfix(loss=f"{row['loss']:.3f}", iou=f"{100 * row['iou']:.1f}", img_s=f"{speed:.1f}")
        row = {key: round(value, 6) for key, value in row.items()}
        images = self.step * self.config.batch_size
        row |= {"step": self.step, "images": images, "seconds": round(self.seconds, 1)}
        return row | {"images_per_s": round(speed, 2)}

    def _truncate_logs(self) -> bool:
        """Drop the rows after this step: they will be written again. Returns whether a validation was cut off."""
        validated = False
        for path in (self.output / "log.csv", self.output / "val.csv"):
            if path.exists():
                with open(path, newline="") as file:
                    reader = csv.DictReader(file)
                    rows = [row for row in reader if int(row["step"]) <= self.step]
                if path.name == "val.csv":
                    validated = any(int(row["step"]) == self.step for row in rows)
                with open(path, "w", newline="") as file:
                    writer = csv.DictWriter(file, reader.fieldnames or [])
                    writer.writeheader()
                    writer.writerows(rows)
        return self._validation_is_due() and not validated


def _loaded(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """The batches; bad input is named without the traceback that a worker process puts before it."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().rsplit("InputError: ", 1)[-1]) from None


def _ignore_interrupts(worker: int) -> None:
    """Signals reach the whole process group; the workers end with the loop, not before it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Within it SIGINT and SIGTERM only raise a flag: a step is never left half done. A second one ends at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody can interrupt it
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_batches(annotations: Path, images: Path, sam: Sam, config: TrainConfig) -> MaskBatches:
    """The batches that `config` asks for, in the frame of `sam`."""
    encoder = sam.image_encoder
    if config.crop % encoder.patch_size or not 0 < config.crop <= encoder.img_size:
        raise InputError(
            f"crop is a multiple of {encoder.patch_size} up to {encoder.img_size} pixels, not {config.crop}"
        )
    sample = SampleConfig(
        encoder.img_size, config.crop, encoder.patch_size, config.prompts, config.scale, config.as_is, config.box_share,
        config.box_jitter,
    )
    return MaskBatches(annotations, images, sample, config.batch_size, config.seed, config.steps)
