"""`sam-bigltl bulk`: masks of very many photographs, on Ray Data, resumed where an earlier run stopped."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from segment_anything.modeling import Sam
from tqdm import tqdm

from ..bulk import results
from ..bulk.config import COLUMNS, BulkConfig, Everything
from ..bulk.folder import Folder
from ..bulk.inputs import CHUNK, FILES, SHARD_SIZE, Shard, digest, find_shards
from ..bulk.prompt_files import check_names, read_prompts
from ..bulk.prompts import ByName
from ..bulk.reading import read_chunks
from ..bulk.run import Report, Summary, segment_shards
from ..convert.registry import default_checkpoint
from ..convert.sam import load_sam
from ..convert.tuned import Setting
from ..convert.weight_files import weights_sha256
from ..data.files import cannot_write, sha256
from ..errors import InputError, in_one_line
from ..fast.devices import parse_device
from ..predict.predictor import SamPredictor
from ..predict.segment import set_routing
from ..predict.thresholds import find_thresholds
from . import flag_checks
from .prompts import parse_keep_ratio
from .tuned import add_format, add_tuned, encoder_setting

EXAMPLES = """\
examples:
  sam-bigltl bulk photos/ --output masks --prompts boxes.json
  sam-bigltl bulk 's3://bucket/sa_{000000..000019}.tar' --output s3://bucket/masks --everything
  sam-bigltl bulk photos.parquet --output masks --prompts columns --address auto

INPUT is a folder of photographs, tar shards or Parquet files, a .txt list with one photograph a line, or one such file
or a pattern of them, on this machine or at an address that fsspec opens (s3://, gs://, https:// and others).
Interrupted, the same command goes on where it stopped. See docs/bulk.md."""

_MEASURED = 8  # photographs from which the thresholds of everything mode are found
_COUNTS = ("actors", "threads", "batch_size", "shard_size", "points_per_side")
_SHOWN = 20  # errors that are printed; errors.csv has all
_A_LINE = 60.0  # seconds between lines of a run without a terminal
_STORE = 2 * 2**30  # bytes of Ray's object store, where this command starts it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sam-bigltl bulk`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", metavar="INPUT", help="photographs, see below")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the results: a path or an address")
    asked = parser.add_argument_group("what is computed")
    asked.add_argument(
        "--prompts", metavar="columns|FILE",
        help="columns: boxes, points and labels that come with the photographs; else a detector's COCO results, COCO "
        "instances, a JSON as for `segment FOLDER`, or Parquet",
    )  # fmt: skip
    asked.add_argument("--annotations", metavar="JSON", help="COCO JSON with the names of the images of COCO results")
    asked.add_argument("--all-masks", action="store_true", help="keep all three masks of a prompt, not the best one")
    asked.add_argument("--everything", action="store_true", help="masks of everything, without prompts")
    asked.add_argument("--points-per-side", type=int, default=32, metavar="N", help="its grid (default: %(default)s)")
    asked.add_argument("--pred-iou-thresh", type=float, metavar="T",
                       help="least predicted IoU (found from the weights and the first photographs)")  # fmt: skip
    asked.add_argument("--stability-score-thresh", type=float, metavar="T", help="least stability (found likewise)")
    asked.add_argument("--embeddings", action="store_true",
                       help="write embeddings, too, for SamPredictor.load_embedding; alone, nothing else")  # fmt: skip
    asked.add_argument("--coco", action="store_true", help="write all masks as DIR/annotations.json, too")
    model = parser.add_argument_group("the model")
    model.add_argument("--checkpoint", metavar="PATH", help="weights, on every node (default: bigltl_mini, shipped)")
    model.add_argument("--keep-ratio", metavar="RATIO", help="as in `sam-bigltl segment`")
    model.add_argument("--device", help="cpu or cuda, of every worker (default: cuda if there is one here, else cpu)")
    add_format(model)
    add_tuned(model)
    work = parser.add_argument_group("how the work is spread; none of it changes a mask")
    work.add_argument("--address", help="of a Ray cluster: auto, or HOST:PORT (default: Ray is started here)")
    work.add_argument("--actors", type=int, metavar="N",
                      help="workers with the model (default: one a GPU, or one for every --threads cores)")  # fmt: skip
    work.add_argument("--threads", type=int, default=1, metavar="N", help="of a worker, on the CPU (%(default)s)")
    work.add_argument("--batch-size", type=int, metavar="N",
                      help=f"photographs of a call of the encoder, at most {CHUNK} (8 on a GPU, else 1)")  # fmt: skip
    work.add_argument("--shard-size", type=int, default=SHARD_SIZE, metavar="N",
                      help="photographs of a file of results, unless tar or Parquet files divide them "
                      "(default: %(default)s)")  # fmt: skip
    work.add_argument("--image-column", metavar="NAME", help="of Parquet (default: image, or another usual name)")
    work.add_argument("--retry-errors", action="store_true", help="do shards anew in which something could not be used")


def run(args: argparse.Namespace) -> None:
    """Segment `args.input` into `args.output`.

    Exits with code 1 if some photographs, prompts or shards could not be done. Raises InputError on bad arguments, or
    results of other settings in `args.output`.
    """
    flag_checks.at_least_one(args, [name for name in _COUNTS if getattr(args, name) is not None])
    if args.prompts is None and not args.everything and not args.embeddings:
        raise InputError("nothing to do: give --prompts, --everything or --embeddings")
    if args.prompts is not None and args.everything:
        raise InputError("prompts or everything: give one of the two")
    if args.annotations is not None and args.prompts in (None, COLUMNS):
        raise InputError("--annotations names the images of a detector's results: give them with --prompts")
    device = parse_device(args.device)
    if device.type not in ("cpu", "cuda") or device.index is not None:
        raise InputError(f"--device {args.device}: workers run on cpu or cuda, and Ray chooses which GPU")
    shards = find_shards(args.input, args.shard_size)
    folder = Folder(args.output)
    source = Folder(args.input)
    if type(source.fs) is type(folder.fs) and folder.path("").startswith(source.path("")):
        raise InputError(f"{args.output} is inside {args.input}, whose photographs are read: give another --output")
    if args.coco and folder.local is None:
        raise InputError("--coco writes one file on this machine: give a path as --output")
    prompts = None if args.prompts in (None, COLUMNS) else read_prompts(args.prompts, args.annotations)
    unknown = _unknown(prompts, shards, args.prompts)
    with folder.alone():
        config = _config(args, device, shards, folder)
        folder.keep_settings(config.settings() | {"input": digest(shards), "image_column": args.image_column})
        folder.clean("", *(f"{results.PARTS}/{shard.name}" for shard in shards), results.EMBEDDINGS)
        if args.retry_errors:
            _forget_errors(folder, shards)
        with _connected(args.address), _bar(shards) as report:
            summary = segment_shards(shards, folder, config, prompts, args.actors, args.image_column, report)
        _finish(args, folder, shards, summary, unknown)


def _config(args: argparse.Namespace, device: Any, shards: list[Shard], folder: Folder) -> BulkConfig:
    """What is computed. The model is loaded here once, so that what is wrong with it is said before Ray starts."""
    keep_ratio = None if args.keep_ratio is None else parse_keep_ratio(args.keep_ratio)
    chosen, setting = encoder_setting(args, device)
    if setting is not None and keep_ratio is None:
        keep_ratio = setting.keep_ratio
    checkpoint = Path(args.checkpoint or default_checkpoint()).absolute()
    sam = load_sam(checkpoint)
    set_routing(SamPredictor(sam), keep_ratio)
    ratio = getattr(sam.image_encoder, "keep_ratio", 1.0)
    config = BulkConfig(
        str(checkpoint), weights_sha256(checkpoint), sam.image_encoder.img_size,
        Setting(chosen.dtype, chosen.native, ratio),
        args.prompts if args.prompts in (None, COLUMNS) else sha256(args.prompts),
        _everything(args, sam, shards, folder) if args.everything else None, args.all_masks, args.embeddings,
        device.type, args.batch_size or (1 if device.type == "cpu" else 8), args.threads,
    )  # fmt: skip
    chosen.say()
    return config


def _everything(args: argparse.Namespace, sam: Sam, shards: list[Shard], folder: Folder) -> Everything:
    """The grid and its thresholds; those that are not given are the earlier run's, or found anew."""
    iou, stability = args.pred_iou_thresh, args.stability_score_thresh
    if iou is None or stability is None:
        before = ((folder.settings() or {}).get("everything")) or {}
        found = tuple(before.get(name) for name in ("pred_iou_thresh", "stability_score_thresh"))
        if None in found:
            chunks = (photographs for shard in shards for _, photographs in read_chunks(shard, lambda *_: []))
            pixels = (each.pixels for chunk in chunks for each in chunk or () if each.pixels is not None)
            found = find_thresholds(sam, islice(pixels, _MEASURED))
        iou = found[0] if iou is None else iou
        stability = found[1] if stability is None else stability
    print(f"everything mode: predicted IoU at least {iou:g}, stability at least {stability:g}")
    return Everything(args.points_per_side, iou, stability)


def _unknown(prompts: ByName | None, shards: list[Shard], path: str) -> int:
    """How many photographs of the prompts are not in the input, where it can be known beforehand."""
    if prompts is None or any(shard.kind != FILES for shard in shards):
        return 0
    return check_names(prompts, (key for shard in shards for key in shard.keys), path)


def _forget_errors(folder: Folder, shards: list[Shard]) -> None:
    present = set(folder.names())
    for shard in shards:
        if results.errors_name(shard.name) in present:
            folder.remove(results.masks_name(shard.name))  # first, because it says that all is there
            folder.remove(results.errors_name(shard.name))


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Ray, on a cluster or on this machine, without its own talk."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():  # by whoever calls this command from Python
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"address": address}
    if address is None:
        own = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE}
    else:
        _check_reachable(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"ray\.")  # advice to those who write pipelines
    try:
        with _silent():
            ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        hint = "" if address is None else "; a cluster with token authentication needs RAY_AUTH_MODE=token here, too"
        raise InputError(f"Ray cannot be reached or started: {error}{hint}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise InputError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return  # auto, or ray://
    try:
        socket.create_connection((host.strip("[]"), int(port)), 10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray at {address} ({error}): start it there with `ray start --head`") from None


@contextmanager
def _silent() -> Iterator[None]:
    """What Ray's C++ writes to stderr goes nowhere: what is wrong comes as an exception, too."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@contextmanager
def _bar(shards: list[Shard]) -> Iterator[Report]:
    """Reports as a line that is written anew, or, where no terminal shows it, as one a minute."""
    total = sum(len(shard.keys) for shard in shards) if all(shard.kind == FILES for shard in shards) else None
    with tqdm(total=total, unit="photo", disable=None, smoothing=0) as bar:
        progress = _Progress(total, bar)
        yield progress.report


class _Progress:
    """How far a run is, in words.

    Args:
        total: photographs, or None where shards have to be read to know.
    """

    def __init__(self, total: int | None, bar: tqdm) -> None:
        self.total, self.bar = total, bar
        self.before: tuple[int, int] | None = None  # photographs and shards of earlier runs
        self.said = time.monotonic()

    def report(self, summary: Summary) -> None:
        """Show a summary."""
        if self.before is None:
            self.before = summary.photographs, summary.done
            self.bar.initial = self.bar.n = self.bar.last_print_n = summary.photographs
        words = f"shards {summary.done}/{summary.shards}, errors {summary.errors}"
        left = self._left(summary, self.before[1])
        if left is not None and (self.total is None or self.bar.disable):
            words += f", about {tqdm.format_interval(left)} left"
        if self.bar.disable:
            if time.monotonic() - self.said >= _A_LINE:
                self.said = time.monotonic()
                print(f"{summary.photographs} photographs, {summary.rate:.2f} a second, {words}", flush=True)
            return
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(summary.new + self.before[0] - self.bar.n)

    def _left(self, summary: Summary, shards_before: int) -> float | None:
        """Seconds that the rest will take, by photographs where their number is known, else by shards."""
        if self.total is not None and summary.new:
            return (self.total - summary.photographs) / summary.rate
        fresh = summary.done - shards_before
        return summary.seconds * (summary.shards - summary.done) / fresh if fresh else None


def _finish(
    args: argparse.Namespace, folder: Folder, shards: list[Shard], summary: Summary, unknown: int
) -> None:  # fmt: skip
    """Write what is made of all shards, and say what was done; exit with code 1 where something was not."""
    done = [shard.name for shard in shards if shard.name not in summary.failed]
    print(
        f"{summary.photographs} photographs, {summary.masks} masks in {folder.address} ({summary.done} of "
        f"{summary.shards} shards); this run went through {summary.new} in "
        f"{summary.seconds:.0f} s" + f", {summary.rate:.1f} a second" * (summary.new > 0)
    )
    if unknown:
        print(f"not in the input: {unknown} photographs of {args.prompts}")
    if summary.failed:
        print(f"{len(summary.failed)} shards are not done, the same command goes on with them:", file=sys.stderr)
        for name, reason in list(summary.failed.items())[:_SHOWN]:
            print(f"  shard {name}: {in_one_line(reason)}", file=sys.stderr)
    errors = list(results.read_errors(folder, done))
    try:
        results.write_errors(folder, errors)
    except OSError as error:
        raise cannot_write(folder.path("errors.csv"), error) from None
    if args.coco and not summary.failed and folder.local is not None:
        results.write_coco(folder, folder.local / "annotations.json", done)
    if errors:
        print(
            f"{len(errors)} photographs, prompts or shards could not be used (all in {folder.path('errors.csv')}):",
            file=sys.stderr,
        )
        for each in errors[:_SHOWN]:
            print(f"  {in_one_line(each['key'])}: {in_one_line(each['reason'])}", file=sys.stderr)
    if errors or summary.failed:
        sys.exit(1)
