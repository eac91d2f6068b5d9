"""The pipeline on Ray Data: shards, read by tasks, segmented by actors that hold the model, joined as they finish.

A shard is a row of the data set. Reading it gives chunks, and each chunk is segmented and written as a part by one
actor. What is done is what lies in the folder, so that tasks may be repeated: Ray does it where a worker dies, and
another run does it where this one was stopped.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from ..errors import InputError
from ..memory import keep_freed_memory
from . import results
from .config import COLUMNS, BulkConfig
from .folder import Folder
from .inputs import CHUNK, FILES, Shard
from .prompts import ByName
from .reading import END, read_task
from .segmenter import Segmenter

_GIVE_UP = 50  # chunks in a row that cannot be written
_TRIES = 4  # of a chunk whose worker dies, which Ray begins anew for ever: a photograph may be what kills it
# Of a core, on a machine without a GPU: a reader finds room beside every actor.
_ACTOR_CPUS, _READER_CPUS = 0.75, 0.25

Report = Callable[["Summary"], None]


@dataclass
class Summary:
    """How far a run is.

    Attributes:
        shards: of the input. done: of these, before this run and by it.
        photographs, masks, errors: of this run and the runs before it; `errors` are photographs and prompts that could
            not be used.
        new: photographs that this run has been through.
        seconds: since it began.
        failed: shards that are not done, and why.
    """

    shards: int
    done: int = 0
    photographs: int = 0
    masks: int = 0
    errors: int = 0
    new: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Photographs a second of this run."""
        return self.new / self.seconds if self.seconds else 0.0

    def add(self, photographs: int, masks: int, errors: int, sign: int = 1) -> None:
        """Count a shard or a chunk, or with `sign` -1 take it back."""
        self.photographs += sign * photographs
        self.masks += sign * masks
        self.errors += sign * errors


def segment_shards(
    shards: Sequence[Shard],
    folder: Folder,
    config: BulkConfig,
    prompts: ByName | None = None,
    actors: int | None = None,
    image_column: str | None = None,
    report: Report | None = None,
) -> Summary:
    """Segment what is missing of the shards, on the Ray that this process is connected to.

    Args:
        folder: of the results; those that are there are not computed again.
        prompts: by photograph, where `config.prompts` is a file's.
        actors: workers with the model; by default one a GPU, or as many as the cores have threads for.
        report: called whenever a chunk or a shard is done.

    Raises:
        InputError: no worker can start, or nothing can be written any more.
    """
    summary = Summary(len(shards))
    missing = []
    present = set(folder.names())
    for shard in shards:
        if results.masks_name(shard.name) in present:
            summary.add(*results.counts_of(folder, shard.name))
            summary.done += 1
        else:
            missing.append(shard)
    if missing:
        run = _Run(summary, folder, report or (lambda _: None))
        try:
            for status in _statuses(missing, folder, config, prompts, actors, image_column):
                run.take(status)
            run.finish(missing)
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray ended the run: {_cause(error)}; the same command goes on") from None
    return summary


class _Run:
    """Counts chunks, and joins the parts of shards as they become whole."""

    def __init__(self, summary: Summary, folder: Folder, report: Report) -> None:
        self.summary, self.folder, self.report = summary, folder, report
        self.began = time.monotonic()
        self.chunks: dict[str, int] = {}  # of a shard, once that is known
        self.seen: dict[str, dict[int, tuple[int, int, int]]] = {}  # counts by shard and chunk
        self.joining: dict[Any, str] = {}
        self.whole: set[str] = set()  # shards whose chunks are all there
        self.refused = 0  # chunks in a row that could not be written
        self.join = ray.remote(num_cpus=0)(results.join_parts)

    def take(self, status: dict[str, Any]) -> None:
        """Count a row of `_Worker`."""
        name, chunk = status["shard"], status["chunk"]
        if name in self.whole:  # said twice, by a worker that died after it
            return
        seen = self.seen.setdefault(name, {})
        if chunk == END:
            self.chunks[name] = status["photographs"]
        elif status["failed"]:
            self.summary.failed[name] = status["failed"]
            self.refused += 1
            if self.refused >= _GIVE_UP:
                raise InputError(f"{_GIVE_UP} chunks in a row failed, the last: {status['failed']}")
        else:
            self.refused = 0
            if chunk not in seen:
                seen[chunk] = status["photographs"] - status["unreadable"], status["masks"], status["errors"]
                self.summary.add(*seen[chunk])
                self.summary.new += status["photographs"]
        if self.chunks.get(name) == len(seen) and name not in self.summary.failed:
            self.whole.add(name)
            self.joining[self.join.remote(self.folder, name, self.chunks[name])] = name
        self._joined(0.0)

    def finish(self, shards: Sequence[Shard]) -> None:
        """Wait for the last joins, and name what is not done."""
        while self.joining:
            self._joined(None)
        present = set(self.folder.names())
        for shard in shards:
            if results.masks_name(shard.name) not in present:
                self.summary.failed.setdefault(shard.name, "the processes that read it died, at one of its photographs")

    def _joined(self, timeout: float | None) -> None:
        if self.joining:
            ready, _ = ray.wait(list(self.joining), num_returns=1, timeout=timeout)
            for reference in ready:
                name = self.joining.pop(reference)
                try:
                    counts = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    self.summary.failed[name] = _cause(error)
                    continue
                for each in self.seen.pop(name).values():
                    self.summary.add(*each, sign=-1)
                self.summary.add(*counts)
                self.summary.done += 1
        self.summary.seconds = time.monotonic() - self.began
        self.report(self.summary)


def _statuses(
    shards: Sequence[Shard], folder: Folder, config: BulkConfig, prompts: ByName | None, actors: int | None,
    image_column: str | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of `_Worker`, as they come."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # a chunk is handed on as soon as it is read
    context.max_errored_blocks = -1  # a chunk that cannot be done does not end the run
    gpu = config.device != "cpu"
    count = min(actors or _room(gpu, config.threads), _most_chunks(shards))
    begun = set(folder.names(results.PARTS))
    waiting = [_packed(shard, folder, shard.name in begun, prompts) for shard in shards]
    task: Any = read_task
    # What a tar or Parquet file holds is known only where it is read.
    shared = None if prompts is None or shards[0].kind == FILES else ray.put(prompts)
    chunks = ray.data.from_items(waiting, override_num_blocks=len(waiting)).map_batches(
        task, batch_size=1, batch_format="pyarrow", num_cpus=1 if gpu else _READER_CPUS,
        compute=TaskPoolStrategy(size=4 * count if gpu else count),
        fn_kwargs={
            "columns": config.prompts == COLUMNS, "side": config.frame, "image_column": image_column, "shared": shared
        },
    )  # fmt: skip
    statuses = chunks.map_batches(
        _Worker, batch_size=1, batch_format="pyarrow", num_cpus=_ACTOR_CPUS * (1 if gpu else config.threads),
        num_gpus=1 if gpu else None, compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        fn_constructor_kwargs={"config": config, "folder": folder},
    )  # fmt: skip
    batches: Iterator[Any] = iter(statuses.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    for batch in batches:
        yield from batch.to_pylist()


def _room(gpu: bool, threads: int) -> int:
    """How many workers the nodes have room for, together."""
    kind, each = ("GPU", 1) if gpu else ("CPU", threads)
    most = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    found = sum(count // each for count in most)
    if not found:
        has = "no node has a GPU" if gpu else f"the largest node has {max(most, default=0)} cores, a worker {threads}"
        repair = "--device cpu" if gpu else "fewer --threads"
        raise InputError(f"{has}: give {repair}, or --actors to wait for nodes that are still to come")
    return found


def _most_chunks(shards: Sequence[Shard]) -> int:
    """How many chunks there can be: more workers than that would load the model for nothing."""
    if any(shard.kind != FILES for shard in shards):
        return sys.maxsize
    return sum(-(-len(shard.keys) // CHUNK) for shard in shards)


def _packed(shard: Shard, folder: Folder, begun: bool, prompts: ByName | None) -> dict[str, bytes]:
    """A row of the data set: a shard, its chunks that are there, and its prompts, where a file has them."""
    done: set[int] = set()
    if begun:
        done = results.parts_done(folder, shard.name)
        results.forget_tries(folder, shard.name)
    own: ByName | None = None
    if prompts is not None and shard.kind == FILES:
        own = {key: prompts[key] for key in shard.keys if key in prompts}
    return {"shard": pickle.dumps((shard, done, own))}


class _Worker:
    """A Segmenter that writes what it finds, and says how much that was."""

    def __init__(self, config: BulkConfig, folder: Folder) -> None:
        keep_freed_memory()  # the process is Ray's, and ours alone
        self.segmenter, self.folder = Segmenter(config), folder

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        rows = [
            self._done(shard.as_py(), chunk.as_py(), content.as_buffer())
            for shard, chunk, content in zip(batch["shard"], batch["chunk"], batch["content"])
        ]
        return pyarrow.Table.from_pylist(rows)

    def _done(self, shard: str, chunk: int, content: pyarrow.Buffer) -> dict[str, Any]:
        counts = dict.fromkeys(("photographs", "unreadable", "masks", "errors"), 0)
        status: dict[str, Any] = {"shard": shard, "chunk": chunk, "failed": ""} | counts
        if chunk == END:
            return status | {"photographs": int(content.to_pybytes())}
        if not content.size:  # it is there
            return status
        photographs = pickle.loads(content)
        try:
            if not results.tried(self.folder, shard, chunk, _TRIES):
                names = f"{photographs[0].key} to {photographs[-1].key}"
                return status | {"failed": f"{_TRIES} workers died at it, with the photographs {names}"}
            rows, embeddings = self.segmenter.segment(photographs)
            if embeddings:
                name = results.embeddings_name(shard, chunk)
                self.folder.write(name, self.segmenter.packed(embeddings))
                for row in rows:
                    row["embedding"] = name if row["key"] in embeddings else None
            results.write_part(self.folder, shard, chunk, rows)
        except Exception as error:  # of a disk, a network or a GPU: the other chunks are not to be lost with this one
            return status | {"failed": f"{type(error).__name__}: {error}"}
        return status | {
            "photographs": len(rows),
            "unreadable": sum(row["height"] is None for row in rows),
            "masks": sum(len(row["masks"]) for row in rows),
            "errors": sum(len(row["errors"]) for row in rows),
        }


def _cause(error: BaseException) -> str:
    """What lies behind an error of Ray's, in one line."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return " ".join(str(error).split())[-500:] or type(error).__name__
