"""`sam-bigltl segment FOLDER --prompts JSON`: masks of many photographs, resumed where an earlier run stopped."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import flag_checks, segment
from .devices import parse_device
from .download import sha256
from .errors import InputError
from .evaluation.fields import located
from .evaluation.files import load_json, whole_file
from .images import read_image
from .precision import check_precision
from .predictor import SamPredictor
from .prompt_checks import check_box, check_points
from .registry import default_checkpoint
from .routing import Route
from .segment import Prompt, Segment, check_inside, masks_path, parse_keep_ratio, ranked, set_routing, timed
from .training.photos import SUFFIXES

# Of the masks that a call of the decoder brings to the image's size, in float32 for a moment: 400 MB.
_PIXELS = 2**25

Prompts = dict[str, list[Prompt]]  # by file name, relative to the folder


def run_folder(args: argparse.Namespace) -> None:
    """Segment the photographs that `args.prompts` names; exit with code 1 if some of them could not be.

    Raises InputError on bad arguments, bad prompts, or results of other settings in `args.out`.
    """
    folder, out = Path(args.image), Path(args.out)
    if args.prompts is None:
        raise InputError(f"{folder} is a folder: give --prompts JSON with what to segment in it (see --help)")
    if args.box or args.point:
        raise InputError("--box and --point are for one photograph: for a folder write them into the --prompts file")
    flag_checks.at_least_one(args, ("workers",))
    prompts = load_prompts(args.prompts, folder)
    keep_ratio = None if args.keep_ratio is None else parse_keep_ratio(args.keep_ratio)
    device = parse_device(args.device)
    check_precision(args.dtype, device)
    checkpoint = Path(args.checkpoint or default_checkpoint())
    predictor = segment.load_predictor(str(checkpoint), device, args.dtype, args.native)
    set_routing(predictor, keep_ratio, args.focus)
    settings = {"keep_ratio": keep_ratio, "dtype": args.dtype, "native": args.native, "focus": args.focus}
    settings |= {"all_masks": args.all_masks, "pictures": args.pictures}
    resumed = keep_settings(out, settings | {"checkpoint": sha256(checkpoint)})

    done = {name for name in prompts if resumed and is_done(out, name, prompts[name], args.all_masks)}
    todo = {name: asked for name, asked in prompts.items() if name not in done}
    failed = segment_photos(predictor, folder, out, todo, args.workers, args.all_masks, args.pictures, args.focus)
    count = f"of {len(prompts)} photographs"
    print(f"{len(todo) - len(failed)} {count} segmented into {out}, {len(done)} were there already")
    if unasked := sum(p.suffix.lower() in SUFFIXES and p.name not in prompts for p in folder.iterdir()):
        print(f"not in {args.prompts}: {unasked} photographs of {folder}")
    if failed:
        print(f"{len(failed)} {count} could not be segmented:", file=sys.stderr)
        for error in failed.values():
            print(f"  {error}", file=sys.stderr)
        sys.exit(1)


def load_prompts(path: str | Path, folder: str | Path = ".") -> Prompts:
    """Read what to segment: a JSON object of file names, each with a list of prompts as `Prompt.record` writes them.

    Backslashes in a name stand for "/" where `folder` has no file of the very name.

    Raises:
        InputError: no such file, or one of another form; the message names the entry.
    """
    form = 'write {"photo.jpg": [{"box": [x0, y0, x1, y1]}, {"point_coords": [[x, y]], "point_labels": [1]}]}'
    content = load_json(path, "prompts", form, form)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no prompts: {form}")
    prompts: Prompts = {}
    stems: dict[Path, str] = {}
    for written, records in content.items():
        name = located(written, Path(folder))
        pure = PurePosixPath(name)
        if not pure.name or pure.is_absolute() or Path(name).drive or ".." in pure.parts:
            raise InputError(f"{path}: {written!r} is no file of the folder: give names relative to it")
        if not isinstance(records, list) or not records:
            raise InputError(f"{path}: {name} has no list of prompts: {form}")
        if name in prompts:
            raise InputError(f"{path}: {name} appears twice, once with backslashes: give it one list of prompts")
        if (other := stems.setdefault(masks_path(Path(pure.parent), name), name)) != name:
            raise InputError(f"{path}: the results of {other} and {name} would have one name: rename one of them")
        prompts[name] = [_prompt(record, f"{path}: {name}, prompt {i}") for i, record in enumerate(records, start=1)]
    return prompts


def _prompt(record: Any, where: str) -> Prompt:
    """The inverse of `Prompt.record`."""
    keys = {"box", "point_coords", "point_labels"}
    if not isinstance(record, dict) or not record or not record.keys() <= keys:
        raise InputError(f"{where} has other entries than box, point_coords and point_labels, or none")
    box, points, labels = None, (), ()
    try:
        if "box" in record:
            box = tuple(float(value) for value in check_box(record["box"]))
        if "point_coords" in record or "point_labels" in record:
            coords, kinds = check_points(record.get("point_coords", []), record.get("point_labels"))
            points = tuple((float(x), float(y)) for x, y in coords)
            labels = tuple(int(kind) for kind in kinds)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Prompt(box, points, labels)


def keep_settings(out: Path, settings: dict[str, Any]) -> bool:
    """Write `settings` into the folder, or compare: results of two models or keep ratios must not stand side by side.

    Returns whether the folder is that of an earlier run, of the same settings. Raises InputError where they are others.
    """
    path = out / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        repair = "use another --out, or delete that folder"
        before = load_json(path, "settings", repair, repair)
        changed = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
        if changed:
            raise InputError(f"{out} holds results of other settings ({', '.join(changed)}): {repair}")
        return True
    try:
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    return False


def is_done(out: Path, name: str, prompts: Sequence[Prompt], all_masks: bool) -> bool:
    """Whether the result of a photograph is there, whole, and answers these prompts."""
    try:
        records = json.loads(masks_path(out / PurePosixPath(name).parent, name).read_text(encoding="utf-8"))
        answered = [record["prompt"] for record in records]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return answered == [prompt.record() for prompt in prompts for _ in range(3 if all_masks else 1)]


def segment_photos(
    predictor: SamPredictor,
    folder: Path,
    out: Path,
    prompts: Prompts,
    workers: int,
    all_masks: bool,
    pictures: bool,
    focus: bool = False,
) -> dict[str, InputError]:
    """Write the masks of every photograph into `out`; returns what is wrong with those that could not be segmented.

    `workers` threads read photographs ahead of the model and write results behind it. The model itself runs in this
    thread alone, with all of torch's threads, so that its results do not depend on `workers`.
    """
    failed: dict[str, InputError] = {}
    writing: deque = deque()  # its masks are in memory: not more than the workers have in hand

    def read(name: str) -> np.ndarray | InputError:
        try:
            image = read_image(folder / name)
        except InputError as error:
            return error
        try:
            check_inside(prompts[name], image.shape[:2])
        except InputError as error:
            return InputError(f"{folder / name}: {error}")
        return image

    def write(name: str, image: np.ndarray, routes: list[Route], segments: list[Segment]) -> None:
        target = out / PurePosixPath(name).parent
        if pictures:
            segment.write_pictures(target, name, image, routes, segments)
        segment.write_masks(target, name, segments)  # the last, because it says that all is there

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(prompts), unit="photo", disable=None) as bar:
        for name, image in _ahead(pool, read, prompts, workers):
            if isinstance(image, InputError):
                failed[name] = image
            else:
                reply = partial(answer, predictor, all_masks=all_masks)
                segments, routes, _ = segment.segment_image(predictor, image, prompts[name], reply, focus)
                if len(writing) == workers:
                    writing.popleft().result()
                writing.append(pool.submit(write, name, image, routes, segments))
            bar.update()
        for job in writing:
            job.result()
    return failed


def _ahead(
    pool: Executor, function: Callable[[str], Any], items: Iterable[str], count: int
) -> Iterator[tuple[str, Any]]:
    """Every item with `function(item)`, computed for `count` items in advance."""
    waiting: deque = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > count:
            first, result = waiting.popleft()
            yield first, result.result()
    for item, result in waiting:
        yield item, result.result()


def answer(predictor: SamPredictor, prompts: Sequence[Prompt], all_masks: bool = False) -> list[list[Segment]]:
    """The masks of each prompt of the image that is set, in their order; prompts of one kind share a call."""
    kinds = defaultdict(list)
    for index, prompt in enumerate(prompts):
        kinds[prompt.box is None, len(prompt.points)].append(index)
    height, width = predictor.original_size
    at_once = max(1, _PIXELS // (height * width))
    found: list[list[Segment]] = [[] for _ in prompts]
    for indices in kinds.values():
        for start in range(0, len(indices), at_once):
            part = indices[start : start + at_once]
            tensors = _tensors(predictor, [prompts[index] for index in part])
            milliseconds, (masks, scores, _) = timed(lambda: predictor.predict_torch(*tensors), predictor.device)
            for index, mask, score in zip(part, masks.cpu().numpy(), scores.cpu().numpy(), strict=True):
                found[index] = ranked(mask, score, prompts[index], milliseconds / len(part), all_masks)
    return found


def _tensors(predictor: SamPredictor, prompts: Sequence[Prompt]) -> tuple[torch.Tensor | None, ...]:
    """Points (B, N, 2), labels (B, N) and boxes (B, 4) of prompts of one kind, as `predict_torch` takes them."""
    size, device = predictor.original_size, predictor.device
    points, labels, boxes = None, None, None
    if prompts[0].points:
        points = predictor.transform.apply_coords(np.array([prompt.points for prompt in prompts]), size)
        labels = torch.tensor([prompt.labels for prompt in prompts], dtype=torch.int32, device=device)
        points = torch.from_numpy(points).to(device)
    if prompts[0].box is not None:
        boxes = predictor.transform.apply_boxes(np.array([prompt.box for prompt in prompts]), size)
        boxes = torch.from_numpy(boxes).to(device)
    return points, labels, boxes
