"""How much is measured in the time that is given, and how long and how large that will be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..bench.macs import count_macs
from ..errors import InputError
from ..modeling.encoder import EncoderConfig
from ..modeling.registry import ENCODERS
from .agreement import FOCUSED
from .original import segment_anything_encoder
from .settings import Setting

FEWEST_FIT, FEWEST_MEASURE, MOST_ROUNDS = 4, 4, 7
WORST = 12  # disagreements that are shown, of as many photographs at most
FIT_PASSES = 4.0  # of the original's encoder that fitting takes for a photograph, about: 2.9 with vit_mini


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine, from one photograph.

    Attributes:
        original: a pass of the original's encoder.
        objects: everything mode, with its own pass.
        decode: masks of the prompts of a photograph.
        formats: a pass at keep_ratio 1.0 and one at LOW, by `Setting.format`.
    """

    LOW = 0.125

    original: float
    objects: float
    decode: float
    formats: dict[str, tuple[float, float]]

    def seconds(self, setting: Setting) -> float:
        """An encoder pass as `setting` says, about."""
        whole, low = self.formats[setting.format]
        ratio = setting.keep_ratio
        share = 0.75 if isinstance(ratio, str) else sum(ratio) / len(ratio) if isinstance(ratio, tuple) else ratio
        return max(0.5 * low, low + (whole - low) * (share - self.LOW) / (1 - self.LOW))

    def scaled(self, encoder: float, decoder: float) -> Costs:
        """Of a model whose encoder and decoder take so many times as long."""
        formats = {name: (encoder * whole, encoder * low) for name, (whole, low) in self.formats.items()}
        everything = encoder * self.original + decoder * max(0.0, self.objects - self.original)
        return Costs(encoder * self.original, everything, decoder * self.decode, formats)


@dataclass(frozen=True)
class Plan:
    """What a tuning does.

    Attributes:
        fit, measure: photographs; rounds: of the timing.
        settings: that are measured.
        trains: whether `before_training` is measured, too.
    """

    fit: int
    measure: int
    rounds: int
    settings: tuple[Setting, ...]
    trains: bool = False

    @property
    def before_training(self) -> tuple[Setting, ...]:
        """What is measured before a training: the ratios below 1.0, in float32 where that is measured."""
        below = [setting for setting in self.settings if setting.keep_ratio != 1.0 and not setting.focus]
        form = "float32" if any(setting.dtype == "float32" for setting in below) else below[0].format if below else ""
        return tuple(setting for setting in below if setting.format == form)

    def as_json(self) -> dict[str, Any]:
        """For files; `from_json` reads it."""
        return {**asdict(self), "settings": [setting.as_json() for setting in self.settings]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """What `as_json` gave."""
        return cls(**{**content, "settings": tuple(map(Setting.from_json, content["settings"]))})

    def seconds(self, costs: Costs) -> float:
        """How long it takes, about, without a training."""
        boxes = [setting for setting in self.settings if setting.focus]
        plain = [setting for setting in self.settings if not setting.focus]
        passes = sum(map(costs.seconds, plain))
        photograph = costs.objects + costs.original + passes + len(plain) * costs.decode
        photograph += FOCUSED * sum(costs.seconds(setting) + costs.decode / 2 for setting in boxes)
        finding = self.fit * costs.objects if self.trains else 0.0
        if self.trains:
            photograph += sum(costs.seconds(setting) + costs.decode for setting in self.before_training)
        timing = (self.rounds + 1) * (costs.original + passes)
        last = min(WORST, self.measure) * (2 * costs.original + 2 * costs.decode)
        return self.fit * FIT_PASSES * costs.original + finding + self.measure * photograph + timing + last


def make_plan(costs: Costs, wanted: Plan, budget: float | None) -> Plan:
    """The largest part of `wanted` that takes at most `budget` seconds; None has no bound.

    First there are fewer photographs and rounds, then fewer settings: no boxes given, the formats that other ones beat,
    every second ratio.

    Raises:
        InputError: even the smallest takes longer.
    """
    if budget is None or wanted.seconds(costs) <= budget:
        return wanted
    plan = wanted
    for settings in _fewer(wanted.settings, costs):
        plan = replace(wanted, settings=settings)
        shares = [step / 20 for step in range(20, -1, -1)]
        for share in shares:
            part = replace(
                plan,
                fit=_part(plan.fit, FEWEST_FIT, share), measure=_part(plan.measure, FEWEST_MEASURE, share),
                rounds=_part(plan.rounds, 2, share),
            )  # fmt: skip
            if part.seconds(costs) <= budget:
                return part
        plan = part
    need = plan.seconds(costs)
    raise InputError(
        f"this model needs about {need / 60:.1f} minutes at least on this machine, and --budget is "
        f"{budget / 60:g}: give {-(-need // 60):.0f}, or more"
    )


def _part(most: int, least: int, share: float) -> int:
    return min(most, max(least, round(most * share)))


def _fewer(settings: Sequence[Setting], costs: Costs) -> list[tuple[Setting, ...]]:
    """`settings`, then ever fewer of them."""
    without_boxes = tuple(setting for setting in settings if not setting.focus)
    fastest = min(costs.formats, key=lambda name: costs.formats[name][1])
    formats = tuple(setting for setting in without_boxes if setting.format in ("float32", fastest))
    few = tuple(setting for setting in formats if setting.keep_ratio in (1.0, 0.5, 0.25))
    only = tuple(setting for setting in few if setting.format == fastest)
    return [each for each in dict.fromkeys((tuple(settings), without_boxes, formats, few, only)) if each]


def macs_on_paper(config: EncoderConfig) -> int:
    """Multiply-accumulates of `segment_anything`'s encoder of this shape, without building its weights."""
    with torch.device("meta"):
        image = torch.empty(1, 3, config.img_size, config.img_size)
        return count_macs(segment_anything_encoder(config), image).total


def of_vit_h(costs: Costs, macs: int, config: EncoderConfig) -> Costs:
    """What a ViT-H would cost, about: `costs` of an encoder of this shape whose pass takes so many products."""
    vit_h = ENCODERS["vit_h"]
    return costs.scaled(macs_on_paper(vit_h) / macs, (vit_h.side / config.side) ** 2)


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
