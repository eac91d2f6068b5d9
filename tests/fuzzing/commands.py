"""Command lines. Each one ends in something that is refused before long work starts, whatever the words before it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from .mutate import mutate_words

_TRAIN = (
    "--data d.json --images i --model vit_mini --output o --steps 3 --lr 1e-3 --keep-ratios 1 0.5 --crop 64 "
    "--scale 0.5 2"
)
_CLASSIFY = "--output o --steps 3 --model bigltl_tiny_patch16_224 --keep-ratios 1 0.5 --mixup 0.8 --scale 0.5 1"
_EVAL = (
    "--images i --checkpoint c --keep-ratio 1.0 0.5 --prompts box point --clicks 1 3 --output o --min-area 2 --limit 3"
)
_BENCH = "--keep-ratio 1.0 0.5 --runs 2 --batch 1 2 --dtype bfloat16 --threads 1 --output o --image-size 64"
_ANY = "--output o --limit 3 --batch-size 2"

# (module, some of them of eval/, words before the mutated ones, mutated words, words at the end)
COMMANDS: tuple[tuple[str, str, str, str], ...] = (
    ("sam_bigltl.cli", "", "segment a.jpg --box 1,2,30,40 --point 3,4,1 --keep-ratio 0.5 --dtype bfloat16",
     "--checkpoint none"),
    ("sam_bigltl.cli", "segment", "a.jpg --box 1,2,30,40 --box 5,5,9,9 --all-masks --out o --device cpu",
     "--checkpoint none"),
    ("sam_bigltl.cli", "convert",
     "a.pth b.safetensors --little-dim 8 --route-every 2 --warm-start d --max-images 4 --seed 1", ""),
    ("sam_bigltl.cli", "export", "--format onnx --keep-ratio 0.5 --output o --batch 2", "--checkpoint none"),
    ("sam_bigltl.cli", "download", "vit_b --output o", "--url none"),
    ("sam_bigltl.cli", "quickstart", "--out o --runs 3 --device cpu", "--checkpoint none"),
    ("sam_bigltl.cli", "train", _TRAIN, "--init none"),
    ("sam_bigltl.cli", "train --task classify", _CLASSIFY, "--data-dir none"),
    ("sam_bigltl.cli", "distill", "--images i --student bigltl_mini --output o --steps 2 --stages 1,2",
     "--data none --teacher none"),
    ("sam_bigltl.cli", "eval", _EVAL, "--annotations none"),
    ("sam_bigltl.cli", "eval", "--compare a b", "--annotations none"),
    ("sam_bigltl.cli", "demo",
     "--keep-ratio 0.5 --host 127.0.0.1 --max-side 640 --memory 64 --allow-host a.org --auth a:b", "--port 0"),
    ("sam_bigltl.cli", "bench", _BENCH, "--models none"),
    ("sam_bigltl.bench.exactness", "", "--model vit_b", "--model none"),
    ("sam_bigltl.bench.layer_cost", "", "--model vit_b --keep-ratio 1.0 0.5", "--model none"),
    ("sam_bigltl.bench.clicks", "", "--tasks everything --points-per-side 2 --runs 2 --threads 1 --output o",
     "--image none"),
    ("sam_bigltl.evaluation.imagenet", "", "--keep-ratio 1 0.5 --num-classes 3 --model-kwargs img_size=32 " + _ANY,
     "--data-dir none"),
    ("sam_bigltl.evaluation.throughput", "", "--images i --checkpoint c --keep-ratio 0.5 --clicks 2",
     "--annotations none"),
    ("sam_bigltl.data.crops", "", "--images i --output o --side 32 --margin 0.2 --by name --most 3",
     "--annotations none"),
    ("research.study", "", "--runs r --table t --times s --page p --steps 3 --cells teacher",
     "--data none --teacher none"),
    ("research.classify_study", "", "--val-dir v --output o --seeds 1 --depth 2 --steps 3 --lr 1e-3",
     "--data-dir none"),
    ("memory", "", "--rounds 3 --every 1 --longest 32 --csv c.csv --plot p.png", "--checkpoint none"),
)  # fmt: skip


def make(folder: Path) -> Callable[[Random], None]:
    """A function that runs one damaged command line in this process; the current folder is `folder`."""

    def case(rng: Random) -> None:
        module, first, middle, last = rng.choice(COMMANDS)
        words = [*first.split(), *mutate_words(rng, middle.split()), *last.split()]
        importlib.import_module(module).main(words)

    return case
