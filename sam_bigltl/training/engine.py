"""The loop of every training here: steps, averaged weights, logs, and a state on disk from which it goes on exactly.

Every random choice of a step is drawn from (seed, step), and the state holds the rest, so that a resumed run continues
bit for bit as if it had never stopped. Several processes, started by `accelerate launch` or `torchrun`, share a batch:
gradients are averaged by DistributedDataParallel.
"""

from __future__ import annotations

import csv
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from ..convert.checkpoints import check_tensors, read_checkpoint
from ..data.files import remove_partial, whole_path
from ..data.interrupts import interrupt_flag, waiting
from ..data.workers import worker_failures
from ..errors import InputError
from ..modeling.trunk import Trunk
from .config import FREE, LoopConfig
from .denormals import flush_denormals
from .optimizers import learning_rate, make_optimizers

Batch = dict[str, Tensor]


class Loop(ABC):
    """A run in a folder: `state.pt` to resume from, `log.csv`, and `val.csv` where it validates.

    Args:
        sam: the model to train, on its device: a Sam, or what a subclass trains instead.
        forward: from a batch to a dict of scalars, of which "loss" is minimised and the others are logged; the mean
            over the batch's images each, so that processes and micro-batches average to the whole.
        output: folder of the run.
        validate: given the averaged weights, rows of figures for `val.csv`; or None.
    """

    def __init__(
        self,
        sam: nn.Module,
        forward: nn.Module,
        config: LoopConfig,
        output: Path,
        validate: Callable[[dict[str, Tensor]], list[dict]] | None = None,
    ) -> None:
        self.sam, self.forward, self.config, self.output = sam, forward, config, output
        self.validate = validate
        self.step = 0
        self.seconds = 0.0
        self.window: list[dict[str, float]] = []  # figures of the steps since the last row of log.csv
        self.device = next(sam.parameters()).device
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # at 1.0 the little path
        )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {output}: {error.strerror}") from None
        self.optimizers = self.make_optimizers()
        self.average = {name: value.detach().clone() for name, value in self.weights().items()}

    @abstractmethod
    def micro_batches(self) -> Generator[list[Batch], None, None]:
        """This process's share of every step from `self.step` on, cut into equal parts whose gradients add up.

        It is closed at the end of the run. Until it yields, it leaves what `extra_state` gives as it is.
        """

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers, which share the schedule of `config`."""
        return make_optimizers(self.sam, self.config)

    def weights(self) -> dict[str, Tensor]:
        """What is trained, averaged and kept in the state, as it is now."""
        return self.sam.state_dict()

    @property
    def ended(self) -> bool:
        """Whether there is no step to come."""
        return self.step >= self.config.end

    def rate(self) -> float:
        """The learning rate of the coming step."""
        return learning_rate(self.config, self.step)

    @property
    def routed(self) -> nn.Module:
        """What the keep ratio of a step is set on, where it is a `Trunk`."""
        return cast(nn.Module, self.sam.image_encoder)

    def extra_state(self) -> dict[str, Any]:
        """What else a continuation needs; called on every process."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - by default there is none
        """Take up what `extra_state` gave."""

    # Whether a stem's batch norms keep the statistics they came with. With a teacher they do: those are the teacher's,
    # and statistics of a batch would depend on how it is cut into parts.
    keep_statistics = False

    def _train_mode(self) -> None:
        self.sam.train()
        for module in self.sam.modules() if self.keep_statistics else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    progress = True  # whether a terminal sees a bar

    @property
    def expected_steps(self) -> int | None:
        """How many steps there will be, if that is known."""
        return self.config.end

    @property
    def state_path(self) -> Path:
        return self.output / "state.pt"

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.accelerator.is_main_process

    def save(self) -> None:
        """Write the state whole or not at all."""
        extra = self.extra_state()
        if not self.first:
            return
        state = {
            "config": asdict(self.config), "step": self.step, "seconds": self.seconds, "model": self.weights(),
            "average": self.average, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(), "window": self.window, "extra": extra,
        }  # fmt: skip
        remove_partial(self.state_path)  # as large as the state, at each time that a process was killed
        try:
            with whole_path(self.state_path) as partial:
                torch.save(state, partial)
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{self.state_path} cannot be written ({reason}): make room, then --resume") from None

    def resume(self) -> None:
        """Continue from `state.pt`. Raises InputError where it is missing, damaged or another run's."""
        if not self.state_path.exists():
            raise InputError(f"nothing to resume in {self.output}: no state.pt")
        state = read_checkpoint(self.state_path)
        check_tensors(state, self.state_path)
        try:
            state = dict(state)
            self._take_up(state)
        except InputError:
            raise
        except Exception:  # a file that can be read, but holds something else
            raise InputError(f"{self.state_path} is damaged: start again in another --output") from None

    def _take_up(self, state: dict[str, Any]) -> None:
        for key, value in asdict(self.config).items():
            stored = state["config"].get(key)
            stored = tuple(stored) if isinstance(stored, list) else stored
            if key not in FREE and stored != value:
                raise InputError(f"{self.output} was trained with {key} = {stored}, not {value}: use another --output")
        for weights in (state["model"], state["average"]):
            if _shapes(weights) != _shapes(self.average):
                raise InputError(f"{self.output} holds the run of another --model")
        self.sam.load_state_dict(state["model"], strict=False)  # its names have been compared
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step, self.seconds, self.window = state["step"], state["seconds"], state.get("window", [])
        torch.set_rng_state(state["rng"])
        self.load_extra_state(state.get("extra", {}))

    def averaged(self) -> dict[str, Tensor]:
        """The weights to ship."""
        return self.average if self.config.ema else self.weights()

    @flush_denormals()
    def run(self) -> None:
        """Train to the last step, saving on the way. An interrupt ends it after the step under way, saved.

        Raises:
            InputError: a batch cannot be made, a process that makes them was killed, the loss is not finite, or
                something cannot be written.
        """
        config, device = self.config, self.device
        forward = self.forward
        if config.compile:
            forward = cast(nn.Module, torch.compile(forward, dynamic=False))
        if self.accelerator.num_processes > 1:
            forward = self.accelerator.prepare_model(forward)
        if self._truncate_logs():
            self._validate()
        window = self.window
        self._train_mode()
        batches = _no_batches() if self.ended else self.micro_batches()
        with (
            closing(batches),
            worker_failures(),
            interrupt_flag(self.accelerator.num_processes == 1) as interrupted,
            tqdm(
                total=self.expected_steps,
                initial=self.step,
                unit="step",
                dynamic_ncols=True,
                disable=None if self.first and self.progress else True,
            ) as bar,
        ):
            while not self.ended:
                parts = self._next(batches)
                began = time.perf_counter()
                parts = [{key: value.to(device, non_blocking=True) for key, value in part.items()} for part in parts]
                window.append(self._train_step(forward, parts))
                window[-1]["time"] = time.perf_counter() - began
                self.step += 1
                self.seconds += window[-1]["time"]
                bar.update()
                last, stop = self.ended, self._anywhere(interrupted())
                if self.step % config.log_every == 0 or last:
                    row = self._log_row(window, bar)
                    self._append("log.csv", row)
                    window.clear()
                due = self._validation_is_due()
                if self.step % config.save_every == 0 or last or stop or due:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
                if due:
                    self._validate()
        self.sam.eval()

    def _next(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        """The coming step's parts.

        Where there are none, because of bad input or an interrupt, the steps before are kept.
        """
        try:
            return next(batches)
        except (InputError, KeyboardInterrupt):
            if self.step and self.accelerator.num_processes == 1:  # several processes save together
                self.save()
            raise

    def _anywhere(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum"))

    def _validation_is_due(self) -> bool:
        every = self.config.val_every
        return self.ended or bool(every and self.step and self.step % every == 0)

    def _validate(self) -> None:
        if self.validate is None or not self.first:
            return
        with waiting():
            rows = self.validate(self.averaged())
        for row in rows:
            row = {"step": self.step, "images": self.step * self.config.batch_size} | row
            self._append("val.csv", row)
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def _append(self, name: str, row: dict) -> None:
        if not self.first:
            return
        path = self.output / name
        new = not path.exists()
        try:
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): make room, then --resume") from None

    def draw_keep_ratio(self) -> float:
        """The ratio of the coming step, the same on every process."""
        draw = np.random.default_rng([self.config.seed, self.step, 1])
        if self.config.keep_ratio_range:
            low, high = np.log(self.config.keep_ratio_range)
            return min(1.0, float(np.exp(draw.uniform(low, high))))
        return self.config.keep_ratios[draw.integers(len(self.config.keep_ratios))]

    def _train_step(self, forward: nn.Module, parts: list[Batch]) -> dict[str, float]:
        config, encoder = self.config, self.routed
        ratio = 1.0 if getattr(encoder, "is_dense", True) else self.draw_keep_ratio()
        if isinstance(encoder, Trunk):  # not another library's model
            encoder.keep_ratio = ratio
        rate = self.rate()
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = rate * group.get("share", 1.0)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        figures: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            alone = number < len(parts) and self.accelerator.num_processes > 1  # the last one exchanges the sums
            with self.accelerator.no_sync(forward) if alone else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    out = forward(part)
                (out["loss"] / len(parts)).backward()
            for key, value in out.items():
                figures[key] = figures.get(key, 0.0) + value.detach().float().mean() / len(parts)
        norm = nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], config.clip)
        if not torch.isfinite(norm):
            raise InputError(f"the loss is not finite at step {self.step}: lower the learning rate")
        for optimizer in self.optimizers:
            optimizer.step()
        self._update_average()
        values = torch.stack(list(figures.values()))
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, "mean")
        return dict(zip(figures, values.tolist())) | {"grad_norm": float(norm), "lr": rate, "keep_ratio": ratio}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.config.ema else 0.0
        for name, value in self.weights().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _log_row(self, window: list[dict[str, float]], bar: tqdm) -> dict[str, float | int]:
        mean = {key: float(np.mean([figures[key] for figures in window])) for key in window[0]}
        speed = self.config.batch_size / mean.pop("time")
        bar.set_postfix({"loss": f"{mean['loss']:.3f}", "img/s": f"{speed:.1f}"})
        start = {"step": self.step, "images": self.step * self.config.batch_size, "seconds": round(self.seconds, 1)}
        return start | {key: round(value, 6) for key, value in mean.items()} | {"images_per_s": round(speed, 2)}

    def _truncate_logs(self) -> bool:
        """Drop the rows after this step: they will be written again. Returns whether a validation was cut off."""
        validated = False
        if not self.first:
            return False
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


def _no_batches() -> Generator[list[Batch], None, None]:
    yield from ()


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}
