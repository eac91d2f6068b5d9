"""Distillation for a given time: the rate falls with the clock, and the best weights on held-out photographs count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..convert.sam import LITTLE_PATH
from ..data.interrupts import waiting
from ..data.sources import Source
from .distill import DistillConfig, Distiller
from .engine import Batch
from .frames import Embeddings
from .objectives import EmbeddingObjective
from .optimizers import cosine

_ENCODER = "image_encoder."
_PAUSE = 4.0  # least time between two checks, of that which one takes
_RISE = 0.001  # of the held-out loss, that counts as an improvement


@dataclass(frozen=True, kw_only=True)
class TimedConfig(DistillConfig):
    """Settings of a stage that ends with the clock.

    Attributes:
        seconds: of this stage, all runs together, with checks and the making of batches.
        warm: share of them after which the warm-up ends, if not after `warmup` steps before.
        checks: how often the held-out loss is computed at most; patience: checks in a row without a new best at which
            the stage ends.
    """

    steps: int = 2**40
    seconds: float
    warm: float = 0.05
    checks: int = 10
    patience: int = 4


class TimedDistiller(Distiller):
    """Trains the little path alone, so that at keep_ratio 1.0 the student stays as it is.

    Args:
        held_out: makes batches, never trained on, whose loss at each of `config.keep_ratios` says which weights are the
            best. It is called within the time.
        clock: seconds, from any start; for tests.
        others: see `Distiller`.

    Attributes:
        figures: held-out figures of the weights at the start and of the best ones, by keep_ratio: what the objective
            gives.
        stopped_early: whether the loss no longer fell.
        finished: whether the stage is at its end.
    """

    config: TimedConfig

    def __init__(
        self,
        student: Sam,
        teacher: Sam,
        source: Source,
        config: TimedConfig,
        output: Path,
        held_out: Callable[[], Sequence[Batch]],
        cache: Embeddings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(_is_little(name))
        super().__init__(student, teacher, source, config, output, cache)
        # The closed-form fit was to the padding, too. Left out of the loss it drifts: with `vit_mini` at keep_ratio
        # 0.25 its error doubled in 26 steps, and masks of other photographs agreed less.
        objective = cast(EmbeddingObjective, self.forward)
        # A fitted student is so close to its teacher that thresholded masks would lead it away again.
        objective.weights = replace(objective.weights, padding=True, soft=True)
        self.clock, self._make_held_out = clock, held_out
        self.held_out: Sequence[Batch] = ()
        self._began, self._before = clock(), 0.0
        self._next_check = self._check_seconds = 0.0
        self._unimproved, self._checked = 0, -1
        self.figures: dict[str, dict[float, dict[str, float]]] = {}
        self.best: dict[str, Tensor] = {}
        self.stopped_early = self.finished = False

    def weights(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.sam.state_dict().items() if _is_little(name)}

    @property
    def gained(self) -> bool:
        """Whether the best weights are others than those at the start."""
        return self.figures["best"] != self.figures["start"]

    @property
    def elapsed(self) -> float:
        """Seconds of the stage so far, all runs together."""
        return self._before + (0.0 if self.finished else self.clock() - self._began)

    @property
    def ended(self) -> bool:
        """Whether time is up but for the last check."""
        return self.stopped_early or self.finished or self.elapsed + self._check_seconds >= self.config.seconds

    @property
    def expected_steps(self) -> None:
        return None

    def rate(self) -> float:
        share = min(1.0, self.elapsed / max(1e-9, self.config.seconds - self._check_seconds))
        warm = max((self.step + 1) / max(1, self.config.warmup), share / self.config.warm)
        return min(1.0, warm) * cosine(self.config, share)

    def run(self) -> None:
        """Train until time is up or the held-out loss no longer falls; the student has the best weights then."""
        if not self.finished:
            self.held_out = self._make_held_out()
            if not self.figures or (self._checked != self.step and self._validation_is_due()):
                self._validate()
            super().run()
            if self._checked != self.step:
                self._validate()
            self._before, self.finished = self.elapsed, True
            self.save()
        self.sam.load_state_dict(self.best, strict=False)
        self.sam.eval()

    def _validation_is_due(self) -> bool:
        return not self.finished and (self.ended or self.elapsed >= self._next_check)

    def _truncate_logs(self) -> bool:
        super()._truncate_logs()
        return False  # the state says what was checked

    def _validate(self) -> None:
        """Compare the averaged weights with the best ones, and save what came out."""
        began = self.clock()
        with waiting():
            figures = self._figures()
        first = self.figures.setdefault("start", figures)
        least = self._relative(self.figures.get("best", first), first)
        if not self.best or self._relative(figures, first) < (1 - _RISE) * least:
            self.figures["best"], self._unimproved = figures, 0
            self.best = {name: value.clone() for name, value in self.averaged().items()}
        else:
            self._unimproved += 1
        self._check_seconds = self.clock() - began
        self._next_check = self.elapsed + max(self.config.seconds / self.config.checks, _PAUSE * self._check_seconds)
        self.stopped_early = self._unimproved >= self.config.patience
        self._checked = self.step
        for ratio, row in figures.items():
            self._append("val.csv", {"step": self.step, "seconds": round(self.elapsed, 1), "keep_ratio": ratio} | row)
        if self.step:
            self.save()

    @torch.no_grad()
    def _figures(self) -> dict[float, dict[str, float]]:
        """Means over the held-out photographs by keep_ratio, with the averaged weights."""
        encoder: Any = self.sam.image_encoder
        now = {name: value.clone() for name, value in self.weights().items()}
        self.sam.load_state_dict(self.averaged(), strict=False)
        self.sam.eval()
        result: dict[float, dict[str, float]] = {}
        for ratio in self.config.keep_ratios:
            encoder.keep_ratio = ratio
            sums: dict[str, float] = {}
            for batch in self.held_out:
                batch = {key: value.to(self.device) for key, value in batch.items()}
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                    out = self.forward(batch)
                for key, value in out.items():
                    sums[key] = sums.get(key, 0.0) + float(value.float().mean()) / len(self.held_out)
            result[ratio] = sums
        self.sam.load_state_dict(now, strict=False)
        self._train_mode()
        return result

    @staticmethod
    def _relative(figures: dict[float, dict[str, float]], start: dict[float, dict[str, float]]) -> float:
        """Mean over the keep_ratios of the loss over that at the start, so that each counts the same."""
        shares = [own["loss"] / max(1e-12, start[ratio]["loss"]) for ratio, own in figures.items()]
        return sum(shares) / len(shares)

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {
            "elapsed": self.elapsed, "next_check": self._next_check, "check_seconds": self._check_seconds,
            "unimproved": self._unimproved, "checked": self._checked, "figures": self.figures, "best": self.best,
            "stopped_early": self.stopped_early, "finished": self.finished,
        }  # fmt: skip

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._before, self._began = state["elapsed"], self.clock()
        self._next_check, self._check_seconds = state["next_check"], state["check_seconds"]
        self._unimproved, self._checked, self.figures = state["unimproved"], state["checked"], state["figures"]
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.stopped_early, self.finished = state["stopped_early"], state["finished"]


def _is_little(name: str) -> bool:
    return name.startswith(_ENCODER) and bool(LITTLE_PATH.match(name.removeprefix(_ENCODER)))
