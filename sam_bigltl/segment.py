"""`sam-bigltl segment`: masks of one photograph, from boxes or points, as pictures and COCO JSON.

`segment_folder` does the same for many.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from pycocotools import mask as mask_utils

from .devices import parse_device, synchronize
from .errors import InputError, in_one_line
from .evaluation.files import whole_file
from .images import read_image, write_image
from .precision import PRECISIONS, check_precision
from .predictor import SamPredictor
from .prompt_checks import check_box, clip_to_image
from .routing import Route
from .visualize import overlay, routing_picture


@dataclass(frozen=True)
class Prompt:
    """What one object is asked for with, in pixels: a box, points (N, 2) with labels (N,), or both."""

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()

    def arguments(self) -> dict[str, np.ndarray]:
        """The keyword arguments of `SamPredictor.predict`."""
        arguments = {} if self.box is None else {"box": np.array(self.box)}
        if self.points:
            arguments |= {"point_coords": np.array(self.points), "point_labels": np.array(self.labels)}
        return arguments

    def clipped(self, size: tuple[int, int]) -> Prompt:
        """The prompt with what rounding has put outside an image of size (H, W) on its edge.

        Raises InputError where more of it lies outside.
        """
        box, points = self.box, self.points
        if box is not None:
            check_box(box, size)
            box = tuple(clip_to_image(np.array(box).reshape(2, 2), size).ravel().tolist())
        if points:
            points = tuple(map(tuple, clip_to_image(np.array(points), size).tolist()))
        return Prompt(box, points, self.labels)

    def record(self) -> dict[str, Any]:
        """The prompt as JSON."""
        record: dict[str, Any] = {} if self.box is None else {"box": list(self.box)}
        if self.points:
            record |= {"point_coords": [list(point) for point in self.points], "point_labels": list(self.labels)}
        return record

    def __str__(self) -> str:
        parts = [] if self.box is None else ["box " + ",".join(f"{value:g}" for value in self.box)]
        if self.points:
            parts.append(f"{len(self.points)} point" + "s" * (len(self.points) > 1))
        return " + ".join(parts)


@dataclass(frozen=True)
class Segment:
    """One mask (H, W) bool, the IoU that the model predicts for it, its prompt, and the decoder's milliseconds."""

    mask: np.ndarray
    predicted_iou: float
    prompt: Prompt
    decoder_ms: float


EXAMPLES = """\
examples:
  sam-bigltl segment photo.jpg --box 20,30,200,180 --keep-ratio 0.5 --out out
  sam-bigltl segment photo.jpg --point 120,90 --point 10,10,0
  sam-bigltl segment photos/ --prompts prompts.json --workers 2 --out out

prompts.json holds what to segment in each photograph of the folder, one entry an object, in pixels:
  {"street.jpg": [{"box": [20, 30, 200, 180]}, {"point_coords": [[120, 90], [10, 10]], "point_labels": [1, 0]}]}
The folder's masks go to OUT/street_masks.json and so on. Interrupted, the same command goes on where it stopped."""


def add_segment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sam-bigltl segment`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("image", help="photograph (JPEG, PNG or another format that Pillow reads), or a folder of them")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights (default: bigltl_mini, which is shipped)")
    parser.add_argument(
        "--box", action="append", default=[], metavar="X0,Y0,X1,Y1",
        help="corners of a box around an object, in pixels; give it again for another object",
    )  # fmt: skip
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,LABEL]",
        help="a point on the object, in pixels; label 0: a point that is not on it. All points are for one object",
    )  # fmt: skip
    parser.add_argument(
        "--keep-ratio", metavar="RATIO",
        help="share of the image that the big path computes: a number in (0, 1], one number a stage as in "
        "1,0.5,0.5,0.25, or auto (default: that of the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--focus", action="store_true",
        help="encode once for each box, with the big tokens sought in it first: better masks at a small --keep-ratio",
    )  # fmt: skip
    parser.add_argument("--all-masks", action="store_true", help="keep all three masks of a prompt, not the best one")
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the results (default: %(default)s)")
    folder = parser.add_argument_group("a folder of photographs")
    folder.add_argument("--prompts", metavar="JSON", help="what to segment in each of its photographs, see below")
    folder.add_argument(
        "--workers", type=int, default=2, metavar="N",
        help="threads that read photographs ahead and write results behind the model; any number gives the same masks "
        "(default: %(default)s)",
    )  # fmt: skip
    folder.add_argument("--pictures", action="store_true", help="write overlay, masks and routing as pictures too")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--dtype", default="float32", metavar="|".join(PRECISIONS), help="of the encoder (default: %(default)s)"
    )
    parser.add_argument(
        "--native", action="store_true", help="run a bfloat16 or int8 encoder in this project's C++ kernels (CPU)"
    )


def run_segment(args: argparse.Namespace) -> None:
    """Segment `args.image`, write the results to `args.out`, and print a table.

    Exits with code 1 if some of the prompts cannot be used. Raises InputError on bad input, or if none of them can.
    """
    if Path(args.image).is_dir():
        from .segment_folder import run_folder

        return run_folder(args)
    if args.prompts is not None:
        raise InputError(f"--prompts is for a folder of photographs, and {args.image} is none")
    prompts = parse_prompts(args.box, args.point)
    keep_ratio = None if args.keep_ratio is None else parse_keep_ratio(args.keep_ratio)
    device = parse_device(args.device)
    check_precision(args.dtype, device)
    if args.focus and prompts[0].box is None:
        raise InputError("--focus seeks the big tokens in a box: give one with --box")
    image = read_image(args.image)
    prompts, unusable = usable(prompts, image.shape[:2])
    if not prompts:
        raise unusable[0]
    predictor = load_predictor(args.checkpoint, device, args.dtype, args.native)
    set_routing(predictor, keep_ratio, args.focus)

    def answer(some: Sequence[Prompt]) -> list[list[Segment]]:
        return [segment_prompt(predictor, prompt, args.all_masks) for prompt in some]

    segments, routes, encoder_ms = segment_image(predictor, image, prompts, answer, args.focus)
    out, name = Path(args.out), Path(args.image).name
    paths = [*write_pictures(out, name, image, routes, segments), write_masks(out, name, segments)]
    print(table(segments))
    where = f"on {device} in {args.dtype}" + " native" * args.native
    print(f"encoder {encoder_ms:.1f} ms (first call), decoder {sum_ms(segments):.1f} ms, {where}")
    print("wrote " + ", ".join(str(path) for path in paths))
    if unusable:
        name_and_exit({f"{len(unusable)} of {len(unusable) + len(prompts)} prompts could not be used": unusable})


def parse_prompts(boxes: Sequence[str], points: Sequence[str]) -> list[Prompt]:
    """One prompt per box, or one of all points, with the box if there is exactly one."""
    if not boxes and not points:
        raise InputError("nothing to segment: give --box X0,Y0,X1,Y1 or --point X,Y")
    if len(boxes) > 1 and points:
        raise InputError("points belong to one object: give them with one --box at most, or leave them out")
    parsed_boxes = []
    for text in boxes:
        values = _numbers(text)
        if values is None or len(values) != 4:
            raise InputError(f"--box {text!r} is not a box: write X0,Y0,X1,Y1, as in --box 10,20,200,180")
        if values[2] <= values[0] or values[3] <= values[1]:
            raise InputError(f"--box {text} has no area: give the top left corner, then the bottom right one")
        parsed_boxes.append(tuple(values))
    coords, labels = [], []
    for text in points:
        values = _numbers(text)
        if values is None or len(values) not in (2, 3) or (len(values) == 3 and values[2] not in (0, 1)):
            raise InputError(f"--point {text!r} is not a point: write X,Y or X,Y,0 (0: not on the object)")
        coords.append((values[0], values[1]))
        labels.append(int(values[2]) if len(values) == 3 else 1)
    if coords:
        return [Prompt(parsed_boxes[0] if parsed_boxes else None, tuple(coords), tuple(labels))]
    return [Prompt(box) for box in parsed_boxes]


def parse_keep_ratio(text: str) -> float | tuple[float, ...] | str:
    """`auto`, a number in (0, 1], or several separated by commas, one a stage."""
    if text == "auto":
        return text
    values = _numbers(text)
    if values is None or not all(0 < value <= 1 for value in values):
        raise InputError(f"--keep-ratio {text!r}: give a number in (0, 1], one number a stage as in 1,0.5,0.5, or auto")
    return values[0] if len(values) == 1 else tuple(values)


def usable(
    prompts: Sequence[Prompt | InputError], size: tuple[int, int], where: str = ""
) -> tuple[list[Prompt], list[InputError]]:
    """Of the prompts of an image of size (H, W) those that can be used, and what is wrong with the others.

    `where` is the image's name, for messages. A prompt that is known to be wrong is an InputError already.
    """
    good, bad = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            if isinstance(prompt, InputError):
                raise prompt
            prompt.clipped(size)
            good.append(prompt)
        except InputError as error:
            bad.append(InputError(f"{where}, prompt {number}: {error}") if where else error)
    return good, bad


def name_and_exit(wrong: dict[str, Iterable[InputError]]) -> NoReturn:
    """Name what could not be done, under a line on each kind of it, and end the process with code 1."""
    for line, errors in wrong.items():
        print(f"{line}:", file=sys.stderr)
        for error in errors:
            print("  " + in_one_line(str(error)), file=sys.stderr)
    sys.exit(1)


def load_predictor(checkpoint: str | None, device: torch.device, precision: str, native: bool = False) -> SamPredictor:
    """A predictor of the given weights (None: the shipped ones), its encoder in `precision` (a key of PRECISIONS)."""
    from .convert import load_sam
    from .registry import default_checkpoint

    sam = load_sam(checkpoint or default_checkpoint()).to(device)
    sam.image_encoder.optimize(precision, native=native)
    return SamPredictor(sam)


def set_routing(
    predictor: SamPredictor, keep_ratio: float | tuple[float, ...] | str | None, focus: bool = False
) -> None:
    """Set the encoder's keep_ratio (None: as it is); InputError where it, or `focus`, is not for this encoder."""
    encoder = predictor.model.image_encoder
    if keep_ratio is not None:
        if not hasattr(encoder, "keep_ratio"):
            raise InputError("this checkpoint has a plain ViT encoder: leave --keep-ratio out, or convert it first")
        encoder.keep_ratio = keep_ratio
    if focus and getattr(encoder, "is_dense", True):
        raise InputError("this checkpoint's encoder computes every token: leave --focus out, or convert it first")


def segment_image(
    predictor: SamPredictor,
    image: np.ndarray,
    prompts: Sequence[Prompt],
    answer: Callable[[Sequence[Prompt]], list[list[Segment]]],
    focus: bool,
) -> tuple[list[Segment], list[Route], float]:
    """Encode `image` and let `answer` segment what the prompts ask for; with `focus` anew for every box.

    Returns:
        the segments in the order of the prompts; the route of every encoding, where the encoder routes; their milliseconds.
    """
    shared: dict[Any, list[int]] = {}  # the prompts of an encoding
    for index, prompt in enumerate(prompts):
        shared.setdefault(prompt.box if focus else None, []).append(index)
    found: dict[int, list[Segment]] = {}
    routes, milliseconds = [], 0.0
    for box, indices in shared.items():
        encode = partial(predictor.set_image, image, boxes=None if box is None else [box])
        milliseconds += timed(encode, predictor.device)[0]
        routes += [] if predictor.route is None else [predictor.route]
        found |= zip(indices, answer([prompts[index] for index in indices]), strict=True)
    return [segment for index in sorted(found) for segment in found[index]], routes, milliseconds


def segment_prompt(predictor: SamPredictor, prompt: Prompt, all_masks: bool = False) -> list[Segment]:
    """The mask with the highest predicted IoU of the image that is set, or all three, best first."""
    arguments = prompt.clipped(predictor.original_size).arguments()
    milliseconds, (masks, scores, _) = timed(lambda: predictor.predict(**arguments), predictor.device)
    return ranked(masks, scores, prompt, milliseconds, all_masks)


def ranked(
    masks: np.ndarray, scores: np.ndarray, prompt: Prompt, milliseconds: float, all_masks: bool
) -> list[Segment]:
    """Of masks (3, H, W) with predicted IoUs (3,) the best one, or all, best first."""
    order = np.argsort(-scores, kind="stable")[: None if all_masks else 1]
    return [Segment(masks[i].copy(), float(scores[i]), prompt, milliseconds) for i in order]  # lets the others go


def write_pictures(
    folder: Path, file_name: str, image: np.ndarray, routes: Sequence[Route], segments: Sequence[Segment]
) -> list[Path]:
    """Write overlay, masks and a picture of every route. Returns the paths."""
    stem = Path(file_name).stem
    pictures = {f"{stem}_overlay.png": draw_segments(image, segments)}
    for number, segment in enumerate(segments, start=1):
        pictures[f"{stem}_mask_{number}.png"] = segment.mask.astype(np.uint8) * 255
    for number, route in enumerate(routes, start=1):
        pictures[f"{stem}_routing{f'_{number}' * (len(routes) > 1)}.png"] = routing_picture(image, route)
    for name, picture in pictures.items():
        write_image(folder / name, picture)
    return [folder / name for name in pictures]


def masks_path(folder: Path, file_name: str) -> Path:
    """Where the masks of a photograph go."""
    return folder / f"{Path(file_name).stem}_masks.json"


def write_masks(folder: Path, file_name: str, segments: Sequence[Segment]) -> Path:
    """Write the masks as COCO-style records, whole or not at all. Returns the path."""
    path = masks_path(folder, file_name)
    with whole_file(path) as file:
        file.write(json.dumps([annotation(file_name, segment) for segment in segments], indent=2) + "\n")
    return path


def draw_segments(image: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """The photograph with the masks and the prompts that gave them."""
    first = {segment.prompt: index for index, segment in reversed(list(enumerate(segments)))}
    boxes = [s.prompt.box if first[s.prompt] == index else None for index, s in enumerate(segments)]
    points = [point for prompt in first for point in prompt.points]
    labels = [label for prompt in first for label in prompt.labels]
    return overlay(image, [segment.mask for segment in segments], boxes, points, labels)


def annotation(file_name: str, segment: Segment) -> dict[str, Any]:
    """One mask as a COCO-style record; `size` is [height, width], `bbox` x, y, width, height in pixels."""
    rle = mask_utils.encode(np.asfortranarray(segment.mask.astype(np.uint8)))
    size = [int(value) for value in rle["size"]]
    return {
        "file_name": file_name,
        "size": size,
        "segmentation": {"size": size, "counts": rle["counts"].decode("ascii")},
        "bbox": [float(value) for value in mask_utils.toBbox(rle)],
        "area": int(mask_utils.area(rle)),
        "predicted_iou": segment.predicted_iou,
        "prompt": segment.prompt.record(),
    }


def table(segments: Sequence[Segment]) -> str:
    """One aligned line per mask."""
    rows = [("mask", "prompt", "predicted IoU", "area px", "decoder ms")]
    for number, s in enumerate(segments, start=1):
        rows.append((str(number), str(s.prompt), f"{s.predicted_iou:.3f}", str(s.mask.sum()), f"{s.decoder_ms:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if column == 1 else cell.rjust(w) for column, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def sum_ms(segments: Sequence[Segment]) -> float:
    """Decoder time over all prompts; the masks of one prompt share one call."""
    return sum({segment.prompt: segment.decoder_ms for segment in segments}.values())


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Milliseconds that `function()` took, work queued on `device` included, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3, result


def _numbers(text: str) -> list[float] | None:
    """Comma-separated finite numbers, or None where `text` is anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return values if all(math.isfinite(value) for value in values) else None
