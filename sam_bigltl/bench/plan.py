"""Which encoders a benchmark times, in which settings, each in a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from tqdm import tqdm

from ..convert.registry import sam_model_registry
from ..convert.weight_files import weight_files
from ..errors import InputError
from ..fast.choice import check, is_slow
from .cases import AUTOCAST, Job
from .macs import Macs
from .models import CLASSIFIERS, SAM_MODELS, is_ours, is_timm
from .report import setting
from .worker import Worker


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for the first option that cannot be used, before any model is built."""
    known = [*SAM_MODELS, *sam_model_registry, *CLASSIFIERS]
    for name in args.models:
        if name not in known and not is_timm(name):
            theirs = ", and every model of timm" if CLASSIFIERS else ""
            raise InputError(f"unknown model {name!r}: choose from {', '.join(known)}{theirs}")
    for ratio in args.keep_ratio:
        if not 0.0 < ratio <= 1.0:
            raise InputError(f"--keep-ratio {ratio:g} is outside (0, 1]")
    for option, lowest in (("runs", 1), ("warmup", 1), ("threads", 1), ("batch", 1)):
        values = getattr(args, option)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < lowest:
                raise InputError(f"--{option} {value} is below {lowest}")
    if args.plot is not None and args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {args.plot} must end in .png, .svg or .pdf")
    if args.checkpoint is not None:
        weight_files(args.checkpoint)
        if len([name for name in args.models if name in sam_model_registry]) != 1:
            raise InputError("--checkpoint needs exactly one model of this project in --models")


def jobs(args: argparse.Namespace, device: torch.device) -> list[Job]:
    """A job for every encoder in every format, in the order of the options."""
    switch = {"off": (False,), "on": (True,), "both": (False, True)}
    kept = {"default": (False,), "kept": (True,), "both": (False, True)}[args.memory]
    common = Job(
        "", batches=tuple(dict.fromkeys(args.batch)), keep_ratios=tuple(dict.fromkeys(args.keep_ratio)),
        device=str(device), threads=args.threads,
    )  # fmt: skip
    found = []
    graphs, either = ((False, True), (False, True)) if args.best else (switch[args.compile], kept)
    for name in dict.fromkeys(args.models):
        if is_timm(name):
            found += _formats(replace(common, model=name, is_peer=True), args.dtype, graphs, (), either)
            continue
        ours = is_ours(name)
        for size in dict.fromkeys(args.image_size or [None]):
            one = replace(common, model=name, image_size=size, checkpoint=args.checkpoint if ours else None)
            found += _formats(one, args.dtype, switch[args.compile], switch[args.native] if ours else (), kept)
    for target in args.peer:
        found += _formats(replace(common, model=target, is_peer=True), args.dtype, graphs, (), either)
    return found


def _formats(
    job: Job, dtypes: Sequence[str], compiled: Sequence[bool], native: Sequence[bool], kept: Sequence[bool]
) -> list[Job]:
    """`job` in every format that its encoder has; `native` is empty where it is not this project's."""
    if native:
        found = [
            replace(job, dtype=dtype, compiled=graph, native=kernels)
            for dtype, kernels, graph in product(dict.fromkeys(dtypes), native, compiled)
            if dtype != AUTOCAST and not (graph and (kernels or dtype == "int8")) and _runs(job.device, dtype, kernels)
        ]
        return list(dict.fromkeys(found))
    return [
        replace(job, dtype=dtype, compiled=graph, keep_memory=keep)
        for dtype, keep, graph in product(dict.fromkeys(dtypes), kept, compiled)
        if dtype != "int8" and (job.is_peer or dtype != AUTOCAST)
    ]  # fmt: skip


def _runs(device: str, dtype: str, native: bool) -> bool:
    """Whether this machine runs a format of this project's."""
    try:
        check(torch.device(device), dtype, native)
    except InputError:
        return False
    return True


def start(wanted: Sequence[Job], best: bool) -> list[Worker]:
    """The processes of the jobs, each case of which has made one pass.

    What other people's encoders cannot do (a format, a compiler) is left out with a line on stderr. Where only the
    `best` format of theirs is wanted, it is the one with the fastest of three more passes of its first case.
    """
    workers: list[Worker] = []
    fastest: dict[str, tuple[float, Worker]] = {}
    for job in tqdm(wanted, desc="encoders built, first passes", unit="encoder", disable=None):
        try:
            worker = Worker(job)
            for index in range(len(worker.cases)):
                worker.seconds(index)
        except InputError as error:
            if not job.is_peer:
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        if not (best and job.is_peer):
            workers.append(worker)
            continue
        seconds = min(worker.seconds(0) for _ in range(3))
        print(
            f"tried: {job}, memory {'kept' if job.keep_memory else 'not kept'}: {1e3 * seconds:.1f} ms", file=sys.stderr
        )
        slower = fastest.get(job.model)
        if slower is not None and seconds >= slower[0]:
            worker.close()
            continue
        fastest[job.model] = seconds, worker
        if slower is not None:
            slower[1].close()
    order = list(dict.fromkeys(job.model for job in wanted))  # the first model stays the baseline
    return sorted([*workers, *(worker for _, worker in fastest.values())], key=lambda one: order.index(one.job.model))


def counted(cases: Sequence[tuple[Worker, int]]) -> dict[tuple[str, int, int, float], Macs]:
    """The products of each setting, in a format that the counter sees."""
    macs: dict[tuple[str, int, int, float], Macs] = {}

    def count(worker: Worker, index: int) -> None:
        case, job = worker.cases[index], worker.job
        if setting(case) not in macs and not (job.native or job.compiled or job.dtype == "int8"):
            macs[setting(case)] = worker.macs(index)

    for worker, index in sorted(cases, key=lambda entry: entry[0].job.dtype != "bfloat16"):  # the fast one first
        count(worker, index)
    for worker, index in cases:
        if setting(worker.cases[index]) not in macs:
            slow = worker.job.is_peer or is_slow(torch.device(worker.job.device), "bfloat16")
            dtype = "float32" if slow else "bfloat16"
            plain = Worker(replace(worker.job, dtype=dtype, native=False, compiled=False))
            for own in range(len(plain.cases)):
                count(plain, own)
            plain.close()
    return macs
