"""`sam-bigltl segment FOLDER --prompts JSON`: masks of many photographs, resumed where an earlier run stopped."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.fields import located
from ..data.files import load_json, whole_file
from ..data.images import read_image
from ..errors import InputError
from ..modeling.routing import Route
from . import segment
from .predictor import SamPredictor
from .prompt import Prompt, usable
from .prompt_checks import check_box, check_points
from .segment import Segment, masks_path, ranked, timed

# Of the masks that a call of the decoder brings to the image's size, in float32 for a moment: 400 MB.
_PIXELS = 2**25

_FORM = 'write {"photo.jpg": [{"box": [x0, y0, x1, y1]}, {"point_coords": [[x, y]], "point_labels": [1]}]}'

Prompts = dict[str, list[Prompt | InputError]]  # by file name, relative to the folder; the errors are of single prompts


def load_prompts(path: str | Path, folder: str | Path = ".") -> Prompts:
    """Read what to segment: a JSON object of file names, each with a list of prompts as `Prompt.record` writes them.

    Names are relative to `folder`, with / or, as Windows has them, with \\. A prompt that no photograph can be asked,
    such as a box without an area, becomes the InputError that says so.

    Raises:
        InputError: no such file, one of another form, or one without any prompt to use; the message names the entry.
    """
    content = load_json(path, "prompts", _FORM, _FORM)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no prompts: {_FORM}")
    prompts: Prompts = {}
    stems: dict[Path, str] = {}
    first_error: InputError | None = None
    for name, records in content.items():
        name = located(name, Path(folder))
        pure = PurePath(name)
        if not pure.name or pure.anchor or ".." in pure.parts:
            raise InputError(f"{path}: {name!r} is no file of the folder: give names relative to it")
        if name in prompts:
            raise InputError(f"{path} has {name} twice, with / and with \\: make it one entry")
        if (other := stems.setdefault(masks_path(Path(pure.parent), name), name)) != name:
            raise InputError(f"{path}: the results of {other} and {name} would have one name: rename one of them")
        prompts[name] = prompts_of(records, where := f"{path}: {name}")
        wrong = next((i for i, each in enumerate(prompts[name], start=1) if isinstance(each, InputError)), None)
        if wrong is not None and first_error is None:
            first_error = InputError(f"{where}, prompt {wrong}: {prompts[name][wrong - 1]}")
    usable_ones = any(isinstance(prompt, Prompt) for asked in prompts.values() for prompt in asked)
    if first_error is not None and not usable_ones:
        raise first_error
    return prompts


def prompts_of(records: Any, where: str) -> list[Prompt | InputError]:
    """The prompts of one photograph, from a list of what `Prompt.record` gives; a wrong one is what is wrong with it.

    Raises InputError, which begins with `where`, for what is no such list.
    """
    if not isinstance(records, list) or not records:
        raise InputError(f"{where} has no list of prompts: {_FORM}")
    prompts: list[Prompt | InputError] = []
    for number, record in enumerate(records, start=1):
        try:
            prompts.append(_prompt(record, f"{where}, prompt {number}"))
        except _Unusable as error:
            prompts.append(error)
    return prompts


class _Unusable(InputError):
    """One prompt's values are wrong, which says nothing against the others."""


def _prompt(record: Any, where: str) -> Prompt:
    """The inverse of `Prompt.record`. Raises _Unusable for wrong values, InputError for what is no prompt."""
    keys = {"box", "point_coords", "point_labels"}
    if not isinstance(record, dict) or not record or not record.keys() <= keys:
        raise InputError(f"{where} has other entries than box, point_coords and point_labels, or none")
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    try:
        if "box" in record:
            x0, y0, x1, y1 = (float(value) for value in check_box(record["box"]))
            box = (x0, y0, x1, y1)
        if "point_coords" in record or "point_labels" in record:
            coords, kinds = check_points(record.get("point_coords", []), record.get("point_labels"))
            points = tuple((float(x), float(y)) for x, y in coords)
            labels = tuple(int(kind) for kind in kinds)
    except InputError as error:
        raise _Unusable(str(error)) from None
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
    with whole_file(path) as file:
        file.write(json.dumps(settings, indent=2) + "\n")
    return False


def answered_size(
    out: Path, name: str, asked: Sequence[Prompt | InputError], all_masks: bool
) -> tuple[int, int] | None:
    """(H, W) of a photograph whose result is there, whole, and answers what can be used of these prompts; else None."""
    try:
        records = json.loads(masks_path(out / PurePosixPath(name).parent, name).read_text(encoding="utf-8"))
        answered = [record["prompt"] for record in records]
        height, width = records[0]["size"]
        prompts, _ = usable(asked, (int(height), int(width)))
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None
    same = answered == [prompt.record() for prompt in prompts for _ in range(3 if all_masks else 1)]
    return (height, width) if same else None


def segment_photos(
    predictor: SamPredictor,
    folder: Path,
    out: Path,
    prompts: Prompts,
    workers: int,
    all_masks: bool,
    pictures: bool,
    focus: bool = False,
) -> tuple[dict[str, InputError], list[InputError]]:
    """Write the masks of every photograph into `out`.

    Returns what is wrong with the photographs that could not be segmented, and with prompts of those that could.

    `workers` threads read photographs ahead of the model and write results behind it. The model itself runs in this
    thread alone, with all of torch's threads, so that its results do not depend on `workers`.
    """
    failed: dict[str, InputError] = {}
    lost: list[InputError] = []
    writing: deque = deque()  # its masks are in memory: not more than the workers have in hand

    def read(name: str) -> tuple[np.ndarray, list[Prompt], list[InputError]] | InputError:
        try:
            image = read_image(folder / name)
        except InputError as error:
            return error
        good, bad = usable(prompts[name], image.shape[:2], str(folder / name))
        if not good:
            return InputError(str(bad[0]) + f" (and so on, {len(bad)} prompts)" * (len(bad) > 1))
        return image, good, bad

    def write(name: str, image: np.ndarray, routes: list[Route], segments: list[Segment]) -> None:
        target = out / PurePosixPath(name).parent
        if pictures:
            segment.write_pictures(target, name, image, routes, segments)
        segment.write_masks(target, name, segments)  # the last, because it says that all is there

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(prompts), unit="photo", disable=None) as bar:
        for name, found in _ahead(pool, read, prompts, workers):
            if isinstance(found, InputError):
                failed[name] = found
            else:
                image, good, bad = found
                lost += bad
                reply = partial(answer, predictor, all_masks=all_masks)
                segments, routes, _ = segment.segment_image(predictor, image, good, reply, focus)
                if len(writing) == workers:
                    writing.popleft().result()
                writing.append(pool.submit(write, name, image, routes, segments))
            bar.update()
        for job in writing:
            job.result()
    return failed, lost


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
            predict = partial(predictor.predict_torch, *tensors)
            milliseconds, (masks, scores, _) = timed(predict, predictor.device)
            for index, mask, score in zip(part, masks.cpu().numpy(), scores.cpu().numpy(), strict=True):
                found[index] = ranked(mask, score, prompts[index], milliseconds / len(part), all_masks)
    return found


def _tensors(
    predictor: SamPredictor, prompts: Sequence[Prompt]
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Points (B, N, 2), labels (B, N) and boxes (B, 4) of prompts of one kind, as `predict_torch` takes them."""
    size, device = predictor.original_size, predictor.device
    prompts = [prompt.clipped(size) for prompt in prompts]
    points, labels, boxes = None, None, None
    if prompts[0].points:
        coords = predictor.transform.apply_coords(np.array([prompt.points for prompt in prompts]), size)
        labels = torch.tensor([prompt.labels for prompt in prompts], dtype=torch.int32, device=device)
        points = torch.from_numpy(coords).to(device)
    if prompts[0].box is not None:
        corners = predictor.transform.apply_boxes(np.array([prompt.box for prompt in prompts]), size)
        boxes = torch.from_numpy(corners).to(device)
    return points, labels, boxes
