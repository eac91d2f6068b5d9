"""A tuning step by step; what was done before an interruption is taken from its journal."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from tqdm import tqdm

from ..bench.timing import timed
from ..convert.sam import describe, load_sam, save_sam
from ..convert.warm_start import warm_start
from ..data.photos import preprocess
from ..errors import InputError
from ..fast.devices import device_name
from ..memory import available_memory
from ..modeling.registry import ENCODERS
from . import choice
from .agreement import Measured, disagreements, measure
from .costs import first_look, fitting_memory
from .engines import Engines, times
from .journal import MODEL, TRAINING, Journal
from .original import Objects, find_masks, find_prompts, original_of, see, shrunk
from .photographs import FIT, MEASURE, Entry, Photographs, is_held_out
from .plan import FEWEST_FIT, FEWEST_MEASURE, WORST, Costs, Plan, duration, make_plan, of_vit_h
from .result import Disagreement, Tuned
from .settings import RATIOS, Setting, apply, formats_here, settings_of

_FOCUSED = (0.5, 0.25, 0.125, 0.0625)  # ratios that are tried with boxes given
_ROUNDS = 7
_ENOUGH_WORK = 5e9  # multiply-accumulates of an encoder from which a larger one's time can be guessed
_LATE = 1.25  # of the budget: then no further photograph is begun


@dataclass(frozen=True)
class Wanted:
    """The arguments of a tuning; see `tune`."""

    target: float = 0.95
    minutes: float = 0.0
    budget: float | None = 10.0
    fit: int = FIT
    measure: int = MEASURE
    objects: int = 8
    ratios: tuple[float | str, ...] = RATIOS
    dtypes: tuple[str, ...] | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for the first one that cannot be used."""
        if not 0 < self.target <= 1:
            raise InputError(f"the target is a mean agreement in (0, 1], not {self.target:g}")
        if not 0 <= self.minutes < float("inf"):
            raise InputError(f"minutes of training are a number from 0 on, not {self.minutes:g}")
        if self.budget is not None and not self.budget > 0:
            raise InputError(f"the budget is a positive number of minutes, not {self.budget:g}")
        for name in ("fit", "measure", "objects"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, not {getattr(self, name)}")
        if not self.ratios:
            raise InputError("there is no keep_ratio to compare: name some")
        if self.dtypes is not None and not self.dtypes:
            raise InputError("there is no dtype to compare: name some, or None for all")
        if self.minutes and not self.trained:
            raise InputError("training is for keep_ratios below 1, and there is none: name some, or leave minutes out")

    @property
    def trained(self) -> list[float]:
        """The ratios that a training draws from: one number below 1 for all stages."""
        return [float(ratio) for ratio in self.ratios if isinstance(ratio, int | float) and ratio < 1]


class Run:
    """One tuning.

    Args:
        model: big.LITTLE, in float32; it is fitted in place.
        has_little: whether its little path is to be kept.
        folder: for the journal, the training and, where it is `kept`, the model.
        say: is called with lines of text.
    """

    journal: Journal

    def __init__(
        self, wanted: Wanted, model: Sam, has_little: bool, photographs: Photographs, folder: Path, kept: bool,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.wanted, self.model, self.has_little, self.photographs = wanted, model, has_little, photographs
        self.folder, self.kept, self.say = folder, kept, say
        self.formats = formats_here(model.device, wanted.dtypes)
        for ratio in (*wanted.ratios, 1.0):
            model.image_encoder.keep_ratio = ratio  # raises what is wrong with it
        self.original, self.engines = original_of(model), Engines(model)
        self.started = time.monotonic()

    def open(self, source: str, restart: bool) -> None:
        """Take up what the folder holds; `source` is where the model comes from, in words."""
        self.about: dict[str, Any] = {
            "checkpoint": source, "model": describe(self.model.image_encoder.config),
            "machine": device_name(self.model.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "original": "segment_anything's encoder",
        }  # fmt: skip
        if self.model.image_encoder.config.stem:
            self.about["original"] += " with this project's stem"
        options = asdict(self.wanted)
        del options["target"]  # the choice alone depends on it
        self.journal = Journal(self.folder, {
            "version": 1, "weights": _digest(self.model), "options": options, "formats": self.formats,
            "fitting": [each.key for each in self.photographs.fit],
            "measuring": [each.key for each in self.photographs.measure], "pixels": self.photographs.digest,
            **{name: self.about[name] for name in ("machine", "threads", "torch")},
        }, restart)  # fmt: skip

    def all(self) -> Tuned:
        """Plan, fit, train where asked for, measure, choose."""
        plan = self.plan()
        self.fit(plan)
        before: dict[Setting, dict[str, Measured]] = {}
        if self.wanted.minutes:
            before = self.measure(plan, "before training", plan.before_training)
            self.train(plan)
        measured = self.measure(plan, "tuned", plan.settings)
        reference, seconds = self.times(plan)
        rows = choice.rows(measured, reference, seconds)
        setting, reached = choice.choose(rows, self.wanted.target)
        tuned = Tuned(
            self.model, setting, reached, self.wanted.target, rows, reference,
            {"fit": [] if self.has_little else [each.key for each in self.photographs.fit[: plan.fit]],
             "measure": list(measured[setting]), "skipped": dict(self.photographs.skipped),
             "near_copies": self.photographs.near_copies},
            self.about, choice.stages(before, measured), self.worst(setting, measured[setting]),
        )  # fmt: skip
        if self.kept:
            tuned.path = self.folder / MODEL
            save_sam(self.model, tuned.path, setting=setting)
        apply(self.model.image_encoder, setting)
        return tuned

    # ---------------------------------------------------------------- before it starts
    def plan(self) -> Plan:
        """What is done, and how long it takes: said before it starts."""
        if "plan" in self.journal.facts:
            self.say("going on with what the folder holds")
            return Plan.from_json(self.journal.facts["plan"])
        self.say("looking at the first photograph, to see how long everything takes")
        pixels = self._pixels(self.photographs.measure[0])
        costs, macs, memory = first_look(self.engines, self.original, pixels, self.formats, self.wanted.objects)
        settings = settings_of(self.formats, self.wanted.ratios, [r for r in _FOCUSED if r in self.wanted.ratios])
        fit = 0 if self.has_little else self._fit_into_memory(len(self.photographs.fit))
        trains = bool(self.wanted.minutes)
        whole = Plan(fit, len(self.photographs.measure), _ROUNDS, tuple(settings), trains)
        plan = make_plan(costs, whole, None if self.wanted.budget is None else 60 * self.wanted.budget)
        for line in self._plan_lines(plan, costs, memory):
            self.say(line)
        config = self.model.image_encoder.config
        if _ENOUGH_WORK <= macs and config.dim < ENCODERS["vit_h"].dim:
            whole = replace(whole, fit=self.wanted.fit, measure=self.wanted.measure)
            theirs = of_vit_h(costs, macs, config)
            own, every = (duration(each.seconds(theirs)) for each in (plan, whole))
            self.say(
                f"  with a ViT-H this plan would take about {own} on this machine; every setting on {whole.measure} "
                f"photographs, fitted to {whole.fit}, {every}"
            )
        self.journal.note("plan", plan.as_json())
        return plan

    def _fit_into_memory(self, photographs: int) -> int:
        """So many photographs to fit to, or as many as half of the free memory has room for."""
        free = available_memory()
        if free is None:
            return photographs
        fewer = next((n for n in range(photographs, 0, -1) if fitting_memory(self.model, n) <= free / 2), 0)
        if fewer < min(FEWEST_FIT, photographs):
            need = 2 * fitting_memory(self.model, FEWEST_FIT) / 2**30
            raise InputError(f"fitting this model takes {need:.1f} GB of free memory, and there are {free / 2**30:.1f}")
        if fewer < photographs:
            self.say(f"  memory: there is room for {fewer} photographs to fit to, instead of {photographs}")
        return fewer

    def _plan_lines(self, plan: Plan, costs: Costs, memory: float | None) -> list[str]:
        fits = "its little path is kept" if self.has_little else f"fit the little path to {plan.fit} photographs"
        skipped = len(self.photographs.skipped)
        lines = [
            f"plan: {fits}, measure {len(plan.settings)} settings on {plan.measure} others, then the time in "
            f"{plan.rounds} rounds: about {duration(plan.seconds(costs))}"
            + (f", then at most {self.wanted.minutes:g} min of training" if self.wanted.minutes else "")
        ]
        if memory is not None:
            memory += fitting_memory(self.model, plan.fit)
            lines.append(f"  memory: about {memory / 2**30:.1f} GB at its peak")
        if skipped:
            name, reason = next(iter(self.photographs.skipped.items()))
            lines.append(f"  {skipped} photograph{'s' * (skipped > 1)} cannot be used, such as {name}: {reason}")
        if self.photographs.near_copies:
            lines.append(f"  {self.photographs.near_copies} near copies of others are left out")
        return lines

    def _pixels(self, entry: Entry) -> np.ndarray:
        return shrunk(entry.pixels(), self.model.image_encoder.img_size)

    # ---------------------------------------------------------------- the model
    def fit(self, plan: Plan) -> None:
        """The little path, in closed form."""
        if self.has_little or "fitted" in self.journal.facts:
            if not self.has_little:
                self._load()
            return
        self._save("fitted", self._fit_to(self._fitting(plan)))

    def _fitting(self, plan: Plan) -> list[Entry]:
        return self.photographs.fit[: plan.fit]

    def _fit_to(self, entries: Sequence[Entry]) -> float:
        """Seconds of the fit."""
        self.say(f"fitting the little path to {len(entries)} photographs")
        images = (preprocess(self.model, entry.pixels()) for entry in entries)
        return timed(lambda: warm_start(self.model, images))

    def train(self, plan: Plan) -> None:
        """The little path further, for some minutes; where that gains nothing, the fit to all photographs instead."""
        if "trained" in self.journal.facts:
            self.about["training"] = self.journal.facts["trained"]
            return
        from .distil import distil  # which needs accelerate

        entries = self._fitting(plan)
        if "refitted" not in self.journal.facts:  # what says when to stop must be new to the model
            part = [entry for place, entry in enumerate(entries) if not is_held_out(place)]
            self._save("refitted", self._fit_to(part))
        photographs = ((pixels, find_masks(self.original, pixels)) for pixels in map(self._pixels, entries))
        self.say(f"training the little path for at most {self.wanted.minutes:g} min")
        done = distil(
            self.model, self.original, photographs, self.wanted.minutes, self.wanted.trained,
            self.folder / TRAINING, self.wanted.seed,
        )  # fmt: skip
        early = ", ended early" if done.stopped_early else ""
        gain = "" if done.gained else "; nothing gained on photographs held out, so the fit to all of them is kept"
        self.about["training"] = f"{' + '.join(map(str, done.steps))} steps in {duration(done.seconds)}{early}{gain}"
        self.say(f"  {self.about['training']}")
        if not done.gained:
            self._fit_to(entries)
        self._save("trained", self.about["training"])

    def _save(self, fact: str, value: Any) -> None:
        save_sam(self.model, self.folder / MODEL)
        self.journal.note(fact, value)
        self.engines.weights_changed()

    def _load(self) -> None:
        self.model.load_state_dict(load_sam(self.folder / MODEL).state_dict())
        self.engines.weights_changed()

    # ---------------------------------------------------------------- measuring
    def measure(self, plan: Plan, phase: str, settings: Sequence[Setting]) -> dict[Setting, dict[str, Measured]]:
        """What every setting makes of every photograph: by setting, then by photograph."""
        found: dict[Setting, dict[str, Measured]] = {setting: {} for setting in settings}
        entries = self.photographs.measure[: plan.measure]
        total = len(entries) * len(settings)
        with tqdm(total=total, desc=f"masks {phase}", unit="setting", disable=None) as bar:
            for number, entry in enumerate(entries):
                if number >= FEWEST_MEASURE and self._late():
                    self.say(f"the budget is used up: {number} photographs are measured")
                    break
                own = {setting: self.journal.measured(phase, entry.key, setting) for setting in settings}
                seen = self._see(entry)
                if seen is None:  # nothing to prompt
                    bar.update(len(settings))
                    continue
                for setting, measured in own.items():
                    if measured is None:
                        measured = measure(self.engines.predictor(setting), seen, setting)
                        self.journal.add_measured(phase, entry.key, setting, measured)
                    found[setting][entry.key] = measured
                    bar.update()
        if not any(found.values()):
            raise InputError("this model finds no object in any of the photographs to measure on: give others")
        return found

    def _see(self, entry: Entry) -> Objects | None:
        """The original's answers for a photograph; None where it finds nothing in it."""
        pixels = self._pixels(entry)
        prompts = self.journal.prompts(entry.key)
        if prompts is None:
            prompts = find_prompts(self.original, pixels, self.wanted.objects)
            self.journal.add_prompts(entry.key, *prompts)
        return see(self.original, entry.key, pixels, *prompts) if len(prompts[0]) else None

    def _late(self) -> bool:
        budget = self.wanted.budget
        return budget is not None and time.monotonic() - self.started > _LATE * 60 * (budget + self.wanted.minutes)

    def times(self, plan: Plan) -> tuple[float, dict[Setting, float]]:
        """Seconds of an encoder pass: of the original, and of every setting."""
        if "times" not in self.journal.facts:
            # With boxes given the encoder does the same work.
            settings = [setting for setting in plan.settings if not setting.focus]
            photographs = [self._pixels(entry) for entry in self.photographs.measure[: plan.rounds + 1]]
            self.say(f"timing the encoder, {plan.rounds} rounds")
            reference, seconds = times(self.engines, self.original.image_encoder, settings, photographs, plan.rounds)
            listed = [[setting.as_json(), value] for setting, value in seconds.items()]
            self.journal.note("times", {"original": reference, "settings": listed})
        noted = self.journal.facts["times"]
        found = {Setting.from_json(setting): value for setting, value in noted["settings"]}
        return noted["original"], {each: found[replace(each, focus=False)] for each in plan.settings}

    def worst(self, setting: Setting, measured: dict[str, Measured]) -> list[Disagreement]:
        """The prompts for which the chosen setting agrees least with the original."""
        lowest = sorted(measured, key=lambda key: min(measured[key].ious))[:WORST]
        found = []
        for entry in self.photographs.measure:
            if entry.key in lowest and (seen := self._see(entry)) is not None:
                found += disagreements(self.engines.predictor(setting), seen, most=2)
        return sorted(found, key=lambda each: each.iou)[:WORST]


def _digest(sam: Sam) -> str:
    """A sha256 over all weights: models that differ in the mask decoder alone are different ones, too."""
    digest = hashlib.sha256()
    for name, value in sam.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
