"""The cells of the study: models made from one dense teacher, and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sam_bigltl.convert import load_sam
from sam_bigltl.convert.warm_start import Recipe

from . import ablations, rivals, routers

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "bigltl_mini.safetensors"
RATIOS = (1.0, 0.5, 0.25, 0.125)
MIXED_RATIOS = (1.0, 0.6, 0.4, 0.25)


@dataclass(frozen=True)
class Material:
    """What cells are made of.

    Attributes:
        teacher: dense.
        student: converted from it, its little path fitted in closed form.
        worth: the teacher's layers, the least valuable first.
        crops: batches with masks, to fit what needs them.
    """

    teacher: Sam
    student: Sam
    worth: list[int]
    crops: list[dict[str, Tensor]]


@dataclass(frozen=True)
class Cell:
    """One model of the study.

    Attributes:
        build: the model to train.
        ratios: keep ratios to score at; a dense model's own is 1.0.
        drawn: keep ratios that training draws from.
        convert: arguments of `convert_sam` for the student, where they are not the defaults.
        seeds: how many repetitions of the training.
        cosine_only: train with the paper's loss alone.
        fixed_router: leave the router out of the training.
        little_only: train the LITTLE path without its router, and nothing of the big path.
        recipe: of the closed-form start, where it is not the default.
    """

    build: Callable[[Material], Sam]
    ratios: tuple[float, ...] = (1.0,)
    drawn: tuple[float, ...] = (1.0,)
    convert: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1
    cosine_only: bool = False
    fixed_router: bool = False
    little_only: bool = False
    recipe: Recipe | None = None


def _student(*changes: Callable[[Sam], Any]) -> Callable[[Material], Sam]:
    def build(material: Material) -> Sam:
        for change in changes:
            change(material.student)
        return material.student

    return build


def _without(count: int) -> Callable[[Material], Sam]:
    """The teacher without its `count` least valuable layers."""
    return lambda m: rivals.shallow(m.teacher, tuple(sorted(m.worth[count:])))


def _by_masks(material: Material) -> Sam:
    routers.fit_routers_to_masks(material.student, material.crops)
    return material.student


def _by_stage(material: Material) -> Sam:
    routers.ratios_by_stage(material.student, material.crops[:2], (0.5, 0.25))
    return material.student


def _random(sam: Sam) -> None:
    routers.set_router(sam, routers.RandomRouter())


def _turns(sam: Sam) -> None:
    routers.covered(sam, lambda router, group, _: routers.TurnRouter(router, group))


def _covering(sam: Sam) -> None:
    routers.covered(sam, lambda router, _, before: routers.CoveringRouter(router, before))


def _shipped(material: Material) -> Sam:
    return load_sam(SHIPPED)  # distilled from the shipped teacher, and from no other


_OURS = Cell(_student(), RATIOS[1:], RATIOS, seeds=3)
_QUARTER = replace(_OURS, ratios=(0.25,), seeds=1)
_PAPER = {"little_stream": "continuous", "route_every": 1}
CELLS: dict[str, Cell] = {
    "teacher": Cell(lambda m: m.teacher),
    # big.LITTLE: ours, the paper's, and one change at a time.
    "ours": _OURS,
    "shipped": Cell(_shipped, (0.5, 0.25)),
    "LITTLE path trained": replace(_OURS, drawn=RATIOS[1:], little_only=True),  # at 1.0 it does nothing
    "turns": replace(_OURS, build=_student(_turns)),
    "covering router": replace(_QUARTER, build=_student(_covering), ratios=(0.5, 0.25)),
    "random router": replace(_QUARTER, build=_student(_random), ratios=(0.5, 0.25)),
    "paper": replace(_OURS, convert=_PAPER, seeds=1, cosine_only=True),
    "paper, our loss": replace(_QUARTER, convert=_PAPER, ratios=(0.5, 0.25)),
    "paper, without E-blocks": replace(
        _QUARTER, build=_student(ablations.without_little_blocks), convert=_PAPER, ratios=(0.5, 0.25)
    ),
    "mask router": replace(_QUARTER, build=_by_masks, fixed_router=True, ratios=(0.5, 0.25)),
    "error router": replace(_QUARTER, fixed_router=True, ratios=(0.5, 0.25)),
    "once": replace(_QUARTER, build=_student(routers.route_once)),
    "every layer": replace(_QUARTER, convert={"route_every": 1}),
    "without E-blocks": replace(_QUARTER, build=_student(ablations.without_little_blocks), ratios=(0.5, 0.25)),
    "fitted without E-blocks": replace(
        _OURS, build=_student(ablations.without_little_blocks), seeds=1, recipe=Recipe(units=False)
    ),
    "depthwise 7 x 7": replace(
        _QUARTER, build=_student(lambda sam: ablations.convolve(sam, 7)), drawn=RATIOS[1:], little_only=True
    ),
    "global tokens": replace(_QUARTER, build=_student(ablations.mix_globally), drawn=RATIOS[1:], little_only=True),
    "ratios by stage": replace(_QUARTER, build=_by_stage, ratios=(0.5, 0.25), drawn=(1.0, 0.5, 0.25)),
    "width 32": replace(_QUARTER, convert={"little_dim": 32}),
    "width 128": replace(_QUARTER, convert={"little_dim": 128}),
    "without gamma": replace(_QUARTER, build=_student(ablations.without_fusion)),
    "selected only": replace(_QUARTER, build=_student(ablations.attend_to_selected_only)),
    "merging inside": Cell(lambda m: rivals.mixed(m.student, m.crops), (0.6, 0.4, 0.25), MIXED_RATIOS),
    # Rivals.
    "2 layers fewer": Cell(_without(2), seeds=2),
    "4 layers fewer": Cell(_without(4), seeds=2),
    "6 layers fewer": Cell(_without(6), seeds=2),
    "MLP 2": Cell(lambda m: rivals.narrow(m.teacher, 2.0)),
    "MLP 1": Cell(lambda m: rivals.narrow(m.teacher, 1.0)),
    "MLP 0.5": Cell(lambda m: rivals.narrow(m.teacher, 0.5)),
    "512 px": Cell(lambda m: rivals.low_resolution(m.teacher, 512), seeds=2),
    "448 px": Cell(lambda m: rivals.low_resolution(m.teacher, 448), seeds=2),
    "384 px": Cell(lambda m: rivals.low_resolution(m.teacher, 384)),
    "pruned 0.5": Cell(lambda m: rivals.pruned(m.teacher, 0.5)),
    "pruned 0.25": Cell(lambda m: rivals.pruned(m.teacher, 0.25)),
    "ToMe 0.5": Cell(lambda m: rivals.merged(m.teacher, 0.5)),
    "ToMe 0.25": Cell(lambda m: rivals.merged(m.teacher, 0.25)),
    "flat areas 0.5": Cell(lambda m: rivals.structured(m.teacher, 0.5)),
    "flat areas 0.25": Cell(lambda m: rivals.structured(m.teacher, 0.25)),
}


def worth_of(teacher: Sam, crops: list[dict[str, Tensor]]) -> list[int]:
    """The teacher's layers from the least to the most valuable, by the embeddings of some crops."""
    images = torch.cat([batch["image"] for batch in crops])[:4].float()
    images = (images - teacher.pixel_mean) / teacher.pixel_std
    with torch.no_grad():
        return rivals.layers_by_worth(teacher, teacher.image_encoder.embed_patches(images))
