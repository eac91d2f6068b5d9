"""Files of prompts, by the names of photographs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from ..data.coco import CocoImage
from ..data.files import load_json
from ..errors import InputError
from ..evaluation.detections import load_detections
from ..predict.segment_folder import prompts_of
from .prompts import NAMES, Asked, ByName, asked_for, of_columns

_FORM = (
    "give COCO results (with --annotations), COCO instances, a JSON of file names with prompts each, or Parquet with "
    "the columns key, boxes and points"
)


def read_prompts(path: str | Path, annotations: str | Path | None = None) -> ByName:
    """The prompts of a file, by the names of photographs.

    Args:
        path: a detector's COCO results, COCO instances (whose boxes are the prompts), a JSON as `sam-bigltl segment
            FOLDER --prompts` takes, or a Parquet file with columns as `of_columns` takes them.
        annotations: COCO JSON with the names of the images of COCO results.

    Raises:
        InputError: the file is missing, of another form, or holds no prompt.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        found = _of_parquet(path)
    else:
        content = load_json(path, "prompts", _FORM, _FORM)
        if isinstance(content, list):
            found = _of_results(path, annotations)
        elif isinstance(content, dict) and "images" in content:
            found = _of_instances(content, path)
        else:
            found = {
                name: [Asked(each) for each in prompts_of(records, f"{path}: {name}")]
                for name, records in (content.items() if isinstance(content, dict) else ())
            }
    if not any(found.values()):
        raise InputError(f"{path} holds no prompts: {_FORM}")
    return found


def _of_results(path: Path, annotations: str | Path | None) -> ByName:
    if annotations is None:
        raise InputError(f"{path} is a detector's COCO results: give the JSON that names its images with --annotations")
    names = _names(load_json(annotations, "annotations", "give COCO's images", "give COCO's images"), annotations)
    found, _ = load_detections(path, [CocoImage(identity, name, (0, 0)) for identity, name in names.items()])
    return {
        name: [asked_for(xywh=each.bbox, category=each.category_id) for each in found[identity]]
        for identity, name in names.items()
    }


def _of_instances(content: dict[str, Any], path: Path) -> ByName:
    names = _names(content, path)
    found: dict[str, list[Asked]] = {name: [] for name in names.values()}
    annotations = content.get("annotations")
    for number, each in enumerate(annotations if isinstance(annotations, list) else []):
        if not isinstance(each, dict) or each.get("image_id") not in names:
            raise InputError(f"{path}: annotation {number} is of no image of the file")
        if each.get("bbox") is not None and not each.get("iscrowd"):
            found[names[each["image_id"]]].append(asked_for(xywh=each["bbox"], category=each.get("category_id")))
    return found


def _names(content: Any, path: str | Path) -> dict[int | str, str]:
    """File names of COCO's images by their ids; annotations are not looked at."""
    images = content.get("images") if isinstance(content, dict) else None
    names: dict[int | str, str] = {}
    for number, image in enumerate(images if isinstance(images, list) else []):
        identity, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if not isinstance(identity, int | str) or not isinstance(name, str) or identity in names:
            raise InputError(f"{path}: image {number} has no 'id' of its own, or no 'file_name'")
        names[identity] = name
    if not names:
        raise InputError(f"{path} names no images: give a COCO JSON with 'images'")
    return names


def _of_parquet(path: Path) -> ByName:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(BytesIO(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is not readable Parquet: {error}") from None
    key = next((name for name in NAMES if name in table.column_names), None)
    if key is None or not {"boxes", "points"} & set(table.column_names):
        raise InputError(f"{path} has the columns {', '.join(table.column_names)}: it needs key, and boxes or points")
    found: dict[str, list[Asked]] = defaultdict(list)
    for row in table.to_pylist():
        found[str(row[key])] += of_columns(row.get("boxes"), row.get("points"), row.get("labels"))
    return found


def check_names(prompts: ByName, keys: Iterable[str], path: str | Path) -> int:
    """How many of the prompts' photographs are not among `keys`. Raises InputError where all of them are not."""
    keys = set(keys)
    unknown = [name for name in prompts if name not in keys]
    if len(unknown) == len(prompts) and keys:
        raise InputError(
            f"{path} names none of the photographs: it has {unknown[0]!r} and so on, the input {min(keys)!r} and so on"
        )
    return len(unknown)
