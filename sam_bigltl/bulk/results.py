"""Results as Parquet: a chunk's rows as a part, a shard's parts joined, and all shards as one COCO JSON.

Everything here writes the same bytes for the same masks, whenever and however often it is called.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow import parquet

from ..data.files import csv_cell, whole_file
from .folder import Folder

PARTS = ".parts"
EMBEDDINGS = "embeddings"
_MASK = pyarrow.struct([
    ("counts", pyarrow.string()),  # of COCO's compressed RLE; its size is the photograph's [height, width]
    ("predicted_iou", pyarrow.float32()),
    ("stability", pyarrow.float32()),  # of everything mode, else null
    ("box", pyarrow.list_(pyarrow.int32(), 4)),  # x, y, width, height
    ("area", pyarrow.int64()),
    ("prompt", pyarrow.int32()),  # its number among the photograph's; null in everything mode
    ("category_id", pyarrow.int64()),  # the detector's, else null
    ("point", pyarrow.list_(pyarrow.float32())),  # that everything mode asked with, else null
])  # fmt: skip
PHOTOGRAPH = [
    ("key", pyarrow.string()),
    ("sha256", pyarrow.string()),
    ("height", pyarrow.int32()),
    ("width", pyarrow.int32()),
    ("masks", pyarrow.list_(_MASK)),
    ("embedding", pyarrow.string()),  # the file that holds it, else null
]
MASKS = pyarrow.schema(PHOTOGRAPH)
ERRORS = pyarrow.schema([("key", pyarrow.string()), ("sha256", pyarrow.string()), ("reason", pyarrow.string())])
_PART = pyarrow.schema([*PHOTOGRAPH, ("errors", pyarrow.list_(pyarrow.string()))])


def masks_name(shard: str) -> str:
    """The file of a shard's masks; where it is, the shard is done."""
    return f"masks-{shard}.parquet"


def errors_name(shard: str) -> str:
    """The file of what could not be used in a shard, if there is anything."""
    return f"errors-{shard}.parquet"


def part_name(shard: str, chunk: int) -> str:
    """Where the rows of a chunk are until the whole shard is there."""
    return f"{PARTS}/{shard}/{chunk:06d}.parquet"


def embeddings_name(shard: str, chunk: int) -> str:
    """The file of a chunk's embeddings."""
    return f"{EMBEDDINGS}/{shard}-{chunk:06d}.safetensors"


def write_part(folder: Folder, shard: str, chunk: int, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of a chunk: `PHOTOGRAPH`'s columns, and `errors`. Raises OSError."""
    folder.write(part_name(shard, chunk), _bytes(pyarrow.Table.from_pylist(list(rows), _PART)))


def parts_done(folder: Folder, shard: str) -> set[int]:
    """The chunks of a shard that are there."""
    names = folder.names(f"{PARTS}/{shard}")
    return {int(name.partition(".")[0]) for name in names if name.endswith(".parquet")}


def tried(folder: Folder, shard: str, chunk: int, most: int) -> bool:
    """Note that a chunk is begun; False where it was begun `most` times already. Raises OSError."""
    name = f"{PARTS}/{shard}/{chunk:06d}.tried"
    before = int(folder.read(name) or 0)
    if before < most:
        folder.write(name, str(before + 1).encode())
    return before < most


def forget_tries(folder: Folder, shard: str) -> None:
    """Let the chunks of a shard be begun as if for the first time."""
    for name in folder.names(f"{PARTS}/{shard}"):
        if name.endswith(".tried"):
            folder.remove(f"{PARTS}/{shard}/{name}")


def join_parts(folder: Folder, shard: str, chunks: int) -> tuple[int, int, int]:
    """Make one file of a shard's parts, and another of its errors, if there are any; remove the parts.

    Returns the numbers of photographs, masks and errors. Raises OSError where they cannot be written.
    """
    parts = []
    for chunk in range(chunks):
        content = folder.read(part_name(shard, chunk))
        if content is None:
            raise FileNotFoundError(f"part {chunk} of shard {shard} is missing")
        parts.append(parquet.read_table(BytesIO(content), schema=_PART))
    table = pyarrow.concat_tables(parts) if parts else _PART.empty_table()
    errors = [
        {"key": row["key"], "sha256": row["sha256"], "reason": reason}
        for row in table.select(["key", "sha256", "errors"]).to_pylist() for reason in row["errors"]
    ]  # fmt: skip
    if errors:
        folder.write(errors_name(shard), _bytes(pyarrow.Table.from_pylist(errors, ERRORS)))
    good = table.filter(table["height"].is_valid()).select(MASKS.names)
    masks = pyarrow.compute.sum(pyarrow.compute.list_value_length(good["masks"])).as_py() or 0
    counts = {"masks": str(masks), "errors": str(len(errors))}
    folder.write(masks_name(shard), _bytes(good.replace_schema_metadata(counts)))
    folder.remove(f"{PARTS}/{shard}")
    return len(good), masks, len(errors)


def counts_of(folder: Folder, shard: str) -> tuple[int, int, int]:
    """What `join_parts` returned of a shard that is done, from the end of its file."""
    with folder.fs.open(folder.path(masks_name(shard)), "rb") as file:
        found = parquet.read_metadata(file)
    return found.num_rows, int(found.metadata[b"masks"]), int(found.metadata[b"errors"])


def read_masks(folder: Folder, shard: str) -> pyarrow.Table:
    """The photographs of a shard that is done."""
    content = folder.read(masks_name(shard))
    if content is None:
        raise FileNotFoundError(f"shard {shard} is not done")
    return parquet.read_table(BytesIO(content))


def read_errors(folder: Folder, shards: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What could not be used: `key`, `sha256` and `reason`."""
    for shard in shards:
        content = folder.read(errors_name(shard))
        if content is not None:
            yield from parquet.read_table(BytesIO(content)).to_pylist()


def write_errors(folder: Folder, errors: Iterable[dict[str, Any]]) -> None:
    """All errors as errors.csv. Raises OSError where that cannot be written."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "reason"))
    writer.writerows((csv_cell(each["key"]), csv_cell(each["reason"])) for each in errors)
    folder.write("errors.csv", text.getvalue().encode(errors="backslashreplace"))


def write_coco(folder: Folder, path: Path, shards: Iterable[str]) -> None:
    """All masks as one COCO JSON, a photograph at a time; ids count up from 1 in the order of the input.

    Where masks have no category it is 1, "object". Raises InputError where it cannot be written.
    """
    shards = list(shards)
    kinds: set[int] = set()
    with whole_file(path) as file:
        file.write('{"images": [')
        for number, row in enumerate(_rows(folder, shards), start=1):
            image = {"id": number, "file_name": row["key"], "height": row["height"], "width": row["width"]}
            file.write((",\n" if number > 1 else "\n") + json.dumps(image))
        file.write('],\n"annotations": [')
        identity = 0
        for number, row in enumerate(_rows(folder, shards), start=1):
            for mask in row["masks"]:
                identity += 1
                kinds.add(mask["category_id"] or 1)
                file.write((",\n" if identity > 1 else "\n") + json.dumps(_annotation(identity, number, row, mask)))
        names = [{"id": kind, "name": "object" if kinds == {1} else str(kind)} for kind in sorted(kinds or {1})]
        file.write(f'],\n"categories": {json.dumps(names)}}}\n')


def _rows(folder: Folder, shards: Iterable[str]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from read_masks(folder, shard).to_pylist()


def _annotation(identity: int, image: int, row: dict[str, Any], mask: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identity, "image_id": image, "category_id": mask["category_id"] or 1, "iscrowd": 0,
        "bbox": mask["box"], "area": mask["area"], "score": mask["predicted_iou"],
        "segmentation": {"size": [row["height"], row["width"]], "counts": mask["counts"]},
    }  # fmt: skip


def _bytes(table: pyarrow.Table) -> bytes:
    sink = BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()
