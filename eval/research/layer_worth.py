"""What each layer of a dense teacher is worth: masks without 0, 1, 2 ... layers, and what a linear map explains."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sam_bigltl.convert import load_sam
from sam_bigltl.convert.warm_start.moments import Moments

from . import rivals
from .study import Study, append_rows

COLUMNS = ("teacher", "skipped", "layers", "box", "point", "linear_share")


def run(study: Study, path: Path) -> None:
    """Append the rows of a study's teacher to a CSV, those that it has left out.

    `layers` are those that run: each time the one goes that the embedding misses least. `linear_share` is how much of
    the variance of the last layer's tokens a linear map of the tokens explains that come after the layers up to the
    last one skipped, were the skipped ones the last: of the embedding's tokens by `depth - skipped` layers.
    """
    teacher = load_sam(study.path)
    depth = teacher.image_encoder.config.depth
    done = set()
    if path.exists():
        with open(path, newline="") as file:
            done = {(row["teacher"], row["skipped"]) for row in csv.DictReader(file)}
    shares = linear_shares(teacher, study.crops)
    for skipped in range(depth + 1):
        if (study.mark, str(skipped)) in done:
            continue
        layers = tuple(sorted(study.worth[skipped:]))
        sam = _without(teacher, layers)
        _, rows = study.predicted(sam, (1.0,))
        figures = {row["prompt"]: round(row["all"], 3) for row in rows}
        row = {
            "teacher": study.mark, "skipped": skipped, "layers": " ".join(map(str, layers)), **figures,
            "linear_share": round(shares[depth - skipped], 4),
        }  # fmt: skip
        append_rows(path, COLUMNS, [row])
        print(row, flush=True)


def _without(teacher: Sam, layers: tuple[int, ...]) -> Sam:
    """The teacher with these layers only."""
    if layers:
        return rivals.shallow(teacher, layers)
    sam = rivals.shallow(teacher, (0,))
    sam.image_encoder.blocks[0] = rivals.Skip()
    return sam


@torch.no_grad()
def linear_shares(teacher: Sam, crops: list[dict[str, Tensor]]) -> list[float]:
    """How much of the variance of the last layer's tokens a linear map explains of the tokens after k layers.

    Fitted to two thirds of the crops, measured on the rest.

    Returns:
        one share for each k from 0 to the depth.
    """
    encoder = teacher.image_encoder
    depth = encoder.config.depth
    moments = [Moments() for _ in range(depth + 1)]
    held: list[list[Tensor]] = []
    for number, batch in enumerate(crops):
        images = (batch["image"].float() - teacher.pixel_mean) / teacher.pixel_std
        tokens = encoder.embed_patches(images)
        geometry = encoder._geometry(tuple(tokens.shape[1:3]), encoder.config.window, tokens.device)
        states = [tokens]
        for block in encoder.blocks:
            states.append(block(states[-1], geometry))
        inside = batch["valid"].flatten()
        rows = [state.flatten(0, 2)[inside] for state in states]
        if number % 3 == 2:
            held.append(rows)
        else:
            for own, sums in zip(rows, moments):
                sums.add(own, rows[-1])
    shares = []
    for k, sums in enumerate(moments):
        weight, bias = sums.solution()
        left = total = 0.0
        mean = torch.cat([rows[-1] for rows in held]).double().mean(dim=0)
        for rows in held:
            wanted = rows[-1].double()
            left += (rows[k].double() @ weight + bias - wanted).square().sum().item()
            total += (wanted - mean).square().sum().item()
        shares.append(1 - left / total)
    return shares
