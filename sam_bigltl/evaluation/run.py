"""One evaluation from files to files: load, measure with a journal, write results, tables and the report."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..convert.weight_files import weights_sha256
from ..data.coco import CocoImage, Usage, check_image_files, read_coco
from ..data.files import csv_cell, sha256, whole_file
from ..data.tables import aligned
from ..errors import InputError
from ..fast.devices import device_name
from .detections import Detection, Truth, load_detections, write_results
from .journal import ImageRecord, Journal, remove_journals
from .models import predictor_of_callable, predictor_of_checkpoint
from .report import check_matplotlib, write_report
from .results import InstanceResult
from .runner import Plan, check_keep_ratios, evaluate, summary_rows
from .shards import Shard


@dataclass(frozen=True)
class Job:
    """Files and settings of one evaluation; `sam_bigltl.cli.evaluate` says what each is.

    `style` is "coco" or "lvis" (for AP). At least one of `checkpoint` and `model` is given.
    """

    annotations: Path
    images: Path
    output: Path
    plan: Plan
    device: torch.device
    checkpoint: str | None
    model: str | None
    precision: str
    native: bool
    detections: Path | None = None
    limit: int | None = None
    style: str = "coco"
    restart: bool = False
    report: bool = True
    ignore_exif: bool = False
    sources: tuple[str, ...] = ()


def run_job(job: Job) -> None:
    """Measure what is not on record yet, then write the results and print the table (the first process only).

    Raises:
        InputError: something cannot be used; unreadable images are named after the results of the others are written.
    """
    if job.report:
        check_matplotlib()
    protocol, detections, unknown = job.plan.protocol, None, 0
    # A detector's boxes count on images without any annotation, too.
    images, usage = read_coco(
        job.annotations, protocol.crowds, protocol.min_area, job.detections is not None, job.images, job.ignore_exif
    )
    if job.detections is not None:
        detections, unknown = load_detections(job.detections, images)
    images = images[: job.limit]
    usage = usage.of(images, "of images beyond --limit")
    check_image_files(images, job.images)
    if missing := [name for name in job.sources if name not in {image.source for image in images}]:
        raise InputError(f"--sources {missing[0]}: no image of {job.annotations} has this source")
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {job.output} cannot be a folder ({error.strerror}); give another path") from error
    if job.model:
        predictor = predictor_of_callable(job.model, job.checkpoint, job.device)
    else:
        assert job.checkpoint is not None
        predictor = predictor_of_checkpoint(job.checkpoint, job.device, job.precision, job.native)
    check_keep_ratios(predictor, job.plan.keep_ratios)

    shard = Shard.from_environment()
    if job.restart and shard.first:
        remove_journals(job.output)
    shard.wait()
    settings = _settings(job)
    journal = Journal(job.output, settings, shard.rank)
    done = journal.records()
    truth = None
    if detections is not None and shard.first:  # before the work: what AP cannot use is refused now
        truth = Truth(job.annotations, job.style, [image.id for image in images], job.images, job.ignore_exif)
    shard.wait()  # nobody writes before everybody has read
    mine = [image for image in images if image.id not in done][shard.rank :: shard.count]
    start = time.perf_counter()
    evaluate(predictor, mine, job.images, job.plan, journal.append, detections, progress=shard.first)
    shard.wait()
    if shard.first:
        found = _Found(images, usage, detections, unknown, truth)
        records = journal.records()
        pace = _Pace.of([record for key, record in records.items() if key not in done], time.perf_counter() - start)
        _finish(job, found, records, settings | _circumstances(job, shard), pace)
    shard.leave()


@dataclass(frozen=True)
class _Found:
    """What the input files hold: `unknown` detections are of no image of the annotations, `truth` is what AP needs."""

    images: Sequence[CocoImage]
    usage: Usage
    detections: dict[int | str, list[Detection]] | None
    unknown: int
    truth: Truth | None


@dataclass(frozen=True)
class _Pace:
    """What this run has measured itself, on all processes: images, masks and wall-clock seconds without loading."""

    images: int
    masks: int
    seconds: float

    @classmethod
    def of(cls, records: Sequence[ImageRecord], seconds: float) -> _Pace:
        return cls(len(records), sum(len(r.results) + len(r.detections) for r in records), seconds)

    def __str__(self) -> str:
        rate = self.masks / self.seconds
        return f"{self.masks} masks of {self.images} images in {self.seconds:.1f} s: {rate:.1f} a second"


def _finish(
    job: Job, found: _Found, on_record: dict[int | str, ImageRecord], settings: dict[str, Any], pace: _Pace
) -> None:
    """Write and print the results of all images."""
    records = [on_record[image.id] for image in found.images]
    results = [result for record in records for result in record.results]
    summary = summary_rows(records, job.plan)
    unread = [record for record in records if record.error]
    usage = _usage(found, unread, summary)
    report: dict[str, Any] = {
        "settings": settings, "summary": summary, "this_run": asdict(pace), "annotations": asdict(usage),
        "skipped": {"detections": found.unknown},
        "unreadable": {str(record.image_id): record.error for record in unread},
    }  # fmt: skip
    if job.sources:
        mine = [record for record, image in zip(records, found.images) if image.source in job.sources]
        report["sources"] = {"names": job.sources, "summary": summary_rows(mine, job.plan)}
    if found.detections is not None:
        report["average_precision"] = _write_detections(job, records, found)
    _write_instances(job.output / "instances.csv", results)
    with whole_file(job.output / "results.json") as stream:
        stream.write(json.dumps(report, indent=2) + "\n")
    if summary:
        print(format_table(summary))
        if job.sources:
            print(f"of these, from {', '.join(job.sources)}:\n{format_table(report['sources']['summary'])}")
    if found.detections is not None:
        print(format_table(report["average_precision"]))
    if pace.images:
        print(pace)
    if summary:
        print(usage)
    if found.detections is not None:
        print(found.truth)
    if found.unknown:
        print(f"left out: {found.unknown} detections of images that the annotations do not know")
    if job.report and results:
        write_report(job.output / "report.html", settings, summary, results, found.images, job.images)
    if unread:
        raise InputError(
            f"{len(unread)} of {len(records)} images could not be read, the results are those of the others; "
            f"the first: {unread[0].error}"
        )


def _usage(found: _Found, unread: Sequence[ImageRecord], summary: Sequence[dict[str, Any]]) -> Usage:
    """How many annotations the summary is of, and what became of the others."""
    failed = {record.image_id for record in unread}
    of_failed = sum(len(image.annotations) for image in found.images if image.id in failed)
    usage = found.usage.without("of images that cannot be read", of_failed)
    # No protocol that needs a pixel of the mask can prompt for such, and EdgeSAM's does not score them.
    return usage.without("without a pixel", usage.used - min((row["instances"] for row in summary), default=usage.used))


def _weights_sha256(path: Path) -> str:
    several = path.is_dir() or path.name.endswith(".index.json")
    return weights_sha256(path) if several else sha256(path)


def _settings(job: Job) -> dict[str, Any]:
    """Everything that a result depends on."""
    plan = job.plan
    return {
        "annotations": job.annotations.name,
        "annotations_sha256": sha256(job.annotations),
        "model": job.model or Path(job.checkpoint or "").name,
        "checkpoint_sha256": None if job.checkpoint is None else _weights_sha256(Path(job.checkpoint)),
        "detections_sha256": None if job.detections is None else sha256(job.detections),
        "keep_ratio": list(plan.keep_ratios),
        "prompts": list(plan.prompts),
        "clicks": list(plan.clicks),
        "protocol": plan.protocol.name,
        "ingredients": {key: value for key, value in asdict(plan.protocol).items() if key not in ("name", "source")},
        "limit": job.limit,
        "seed": plan.seed,
        "dtype": job.precision + " native" * job.native,
        "batch_size": plan.batch_size,
        "focus": plan.focus,
    } | ({"ignore_exif": True} if job.ignore_exif else {})  # absent in journals of before


def _circumstances(job: Job, shard: Shard) -> dict[str, Any]:
    """What times depend on besides."""
    return {
        "device": str(job.device),
        "device_name": device_name(job.device),
        "processes": shard.count,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _write_detections(job: Job, records: Sequence[ImageRecord], found: _Found) -> list[dict[str, Any]]:
    """A results JSON for each keep_ratio, and its AP."""
    detections, truth = found.detections, found.truth
    assert detections is not None and truth is not None
    sizes = {image.id: image.size for image in found.images}
    rows = []
    for ratio in job.plan.keep_ratios:
        masks = [
            (detections[record.image_id][index], sizes[record.image_id], counts)
            for record in records for own_ratio, index, _, counts in record.detections if own_ratio == ratio
        ]  # fmt: skip
        path = job.output / f"segmentations_keep_{ratio}.json"
        write_results(path, masks)
        rows.append({"keep_ratio": ratio, "detections": len(masks), **truth.average_precision(path)})
    return rows


def _write_instances(path: Path, results: Sequence[InstanceResult]) -> None:
    names = [column.name for column in fields(InstanceResult) if column.name != "counts"]
    with whole_file(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([csv_cell(getattr(result, name)) for name in names] for result in results)


def format_table(summary: Sequence[dict[str, Any]]) -> str:
    """The summary's rows as aligned plain text, percentages with one decimal and "-" for an empty split."""
    header = list(summary[0])
    cells = [header] + [[_cell(name, row[name]) for name in header] for row in summary]
    return aligned(cells)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) and name != "keep_ratio" else str(value)
