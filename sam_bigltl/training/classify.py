"""Training and distilling a big.LITTLE classifier on images with labels.

Datasets, augmentation, mixup and optimizers are timm's; steps, resuming and keep ratios are those of every other
training here (`sam_bigltl.training.engine`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.mixup import mixup_target
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from ..data.labelled import LabelledImages
from ..data.skipped import Skipped, Unreadable, write_skipped
from ..data.workers import load
from ..errors import InputError
from .config import LoopConfig
from .engine import Batch, Loop


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(LoopConfig):
    """Settings of a run on labelled images. `optimizer` is any of timm's names.

    Attributes:
        auto_augment, color_jitter, erase, scale, hflip: see timm's `create_transform`.
        mixup, cutmix, smoothing: see timm's `Mixup`.
        label_weight, feature_weight, logit_weight: of the labels, and with a teacher of its tokens (1 - cosine, the
            paper's L_fd) and of its logits (cross-entropy with its probabilities at `temperature`).
        head_only: train the classification head alone.
    """

    auto_augment: str | None = None
    color_jitter: float = 0.0
    erase: float = 0.0
    hflip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.0)
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.1
    label_weight: float = 1.0
    feature_weight: float = 1.0
    logit_weight: float = 1.0
    temperature: float = 1.0
    head_only: bool = False


class Classifier(Protocol):
    """What is asked of timm's models and this project's."""

    def forward_features(self, images: Tensor) -> Tensor: ...

    def forward_head(self, features: Tensor) -> Tensor: ...

    def get_classifier(self) -> nn.Module: ...


class Objective(nn.Module):
    """Scalars "loss", "label", "top1" and, with a teacher, "feature" and "logit".

    Args:
        student: has `forward_features` and `forward_head`.
        teacher: frozen, likewise, or None; not a submodule, since nothing of it is to be synchronised between
            processes.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, config: ClassifyConfig) -> None:
        super().__init__()
        self.student, self.config = cast(Classifier, student), config
        self._teacher = (cast("Classifier | None", teacher),)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`batch`: image (B, 3, H, W) normalised, target (B, classes) probabilities."""
        config, (teacher,) = self.config, self._teacher
        features = self.student.forward_features(batch["image"])
        logits = self.student.forward_head(features)
        target = batch["target"]
        label = -(target * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
        top1 = (logits.argmax(dim=-1) == target.argmax(dim=-1)).float().mean()
        out = {"loss": config.label_weight * label, "label": label, "top1": top1}
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher.forward_features(batch["image"])
                probabilities = (teacher.forward_head(wanted).float() / config.temperature).softmax(dim=-1)
            ours = (logits.float() / config.temperature).log_softmax(dim=-1)
            out["feature"] = 1 - F.cosine_similarity(features.float(), wanted.float(), dim=-1).mean()
            out["logit"] = -(probabilities * ours).sum(dim=-1).mean() * config.temperature**2
            out["loss"] = out["loss"] + config.feature_weight * out["feature"] + config.logit_weight * out["logit"]
        return out


class LabelledBatches(Dataset):
    """Batch i of a run: image (B, 3, H, W) normalised, target (B, classes); every choice is drawn from (seed, i).

    In place of an image that cannot be read comes another one, at random; "unreadable" says why, by name.

    Args:
        data_config: input size, mean, std and interpolation, as timm's `resolve_data_config` gives them.
    """

    def __init__(
        self, dataset: LabelledImages, data_config: dict[str, Any], num_classes: int, config: ClassifyConfig
    ) -> None:
        if len(dataset) < config.batch_size:
            raise InputError(f"{len(dataset)} images are fewer than a batch of {config.batch_size}")
        self.dataset, self.num_classes, self.config = dataset, num_classes, config
        self.transform = create_transform(
            data_config["input_size"], is_training=True, scale=config.scale, mean=data_config["mean"],
            std=data_config["std"], interpolation=data_config["interpolation"], auto_augment=config.auto_augment,
            color_jitter=config.color_jitter or None,  # type: ignore[arg-type]  # timm's annotation lacks its None
            re_prob=config.erase, hflip=config.hflip,
        )  # fmt: skip
        self.mix = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=num_classes)

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        pairs, unreadable = self._read(step)
        with _seeded(self.config.seed, step):
            images = torch.stack([self.transform(image) for image, _ in pairs])
            labels = torch.tensor([label for _, label in pairs])
            if self.mix is not None:
                images, target = self.mix(images, labels)
            else:
                target = mixup_target(labels, self.num_classes, smoothing=self.config.smoothing)
        return {"image": images, "target": target.float(), "unreadable": unreadable}

    def _read(self, step: int) -> tuple[list[tuple[Image.Image, int]], dict[str, str]]:
        """The step's images with labels, and what is wrong with others. Raises InputError where these are too many."""
        pairs, unreadable = [], Unreadable(len(self.dataset))
        for index in chain(self._indices(step), self._others(step)):
            item = self.dataset[index]
            if isinstance(item, Skipped):
                unreadable.add([item])
            else:
                pairs.append(item)
            if len(pairs) == self.config.batch_size:
                break
        return pairs, unreadable.reasons

    def _others(self, step: int) -> Iterator[int]:
        draw = np.random.default_rng([self.config.seed, step, 4])
        while True:
            yield int(draw.integers(len(self.dataset)))

    def _indices(self, step: int) -> list[int]:
        """Every image once an epoch, in an order drawn from (seed, epoch); the rest of an epoch starts the next one."""
        size, count = self.config.batch_size, len(self.dataset)
        epoch, place = divmod(step * size, count)
        found = self._order(epoch)[place : place + size]
        return [*found, *self._order(epoch + 1)[: size - len(found)]]

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng([self.config.seed, epoch, 2]).permutation(len(self.dataset)).tolist()


@contextmanager
def _seeded(seed: int, step: int) -> Iterator[None]:
    """Within it every generator that timm's augmentation draws from starts from (seed, step)."""
    before = random.getstate(), np.random.get_state()
    start = int(np.random.default_rng([seed, step, 3]).integers(2**31))
    with torch.random.fork_rng(devices=[]):
        random.seed(start)
        np.random.seed(start)
        torch.manual_seed(start)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class Classification(Loop):
    """A run on the labelled images of `batches`; the rest as in `Loop`.

    Attributes:
        unreadable: images that it could not read.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: LabelledBatches,
        config: ClassifyConfig,
        output: Path,
        teacher: nn.Module | None = None,
        validate: Callable[[dict[str, Tensor]], list[dict]] | None = None,
    ) -> None:
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        if config.head_only:
            model.requires_grad_(False)
            cast(Classifier, model).get_classifier().requires_grad_(True)
        super().__init__(model, Objective(model, teacher, config), config, output, validate)
        if self.accelerator.num_processes > 1:
            raise InputError("`train` runs as one process")
        self.batches, self.unreadable = batches, Unreadable(len(batches.dataset))

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        try:
            optimizer = create_optimizer_v2(
                self.sam, self.config.optimizer, lr=self.config.lr, weight_decay=self.config.weight_decay
            )
        except (ValueError, KeyError, AssertionError, RuntimeError) as error:
            raise InputError(f"timm has no optimizer {self.config.optimizer!r} ({error})") from None
        return [optimizer]

    @property
    def routed(self) -> nn.Module:
        return getattr(self.sam, "image_encoder", self.sam)

    def micro_batches(self) -> Generator[list[Batch], None, None]:
        for batch in load(Subset(self.batches, range(self.step, self.config.end)), self.config.workers, ahead=4):
            self.unreadable.update(batch.pop("unreadable"))
            yield [batch]

    def extra_state(self) -> dict[str, Any]:
        if self.unreadable.reasons:
            write_skipped(self.output / "skipped.csv", self.unreadable.reasons)
        return {"unreadable": self.unreadable.reasons}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.unreadable.reasons = dict(state.get("unreadable", {}))
