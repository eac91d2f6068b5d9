"""Random damage to words, JSON documents and bytes."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

WORDS = (
    "", "-", "--", "-1", "0", "1", "2.5", "nan", "inf", "-inf", "1e999", "1e-999", "auto", "None", "1,2", "1,2,3,4",
    ",", "1,", "10,10,20,20", "9" * 400, "x" * 5000, "/", ".", "..", "/dev/null", "missing.json", "missing/folder",
    "a:b", "os:system", "é", "\udcff", "\U0001f600", "a b", "*", "{0..3}.tar", "{", "cuda:99", "cpu", "meta", "mps",
    "float16", "int8", "--help", "-h", "=", "k=v", "k=__import__('os')", "--box", "--point", "--keep-ratio",
    "--no-such-flag", "0x10", "1_000", "\n", "%s",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "1", "\0",
    "\ud800", "../../etc/passwd", "é" * 300, [], [[]], {}, {"size": [2, 2], "counts": "04"}, [1, 2, 3], [None], ["a"],
    [[1, 2, 3, 4]], {"size": [24, 32], "counts": [768]}, {"counts": "PP"}, [0, 0, 1e9, 1e9], [[0.0] * 6],
    [[1e6, 0, 0, 1e6, 5, 5]],
)  # fmt: skip


def mutate_words(rng: Random, words: list[str]) -> list[str]:
    """A command line with one to four words dropped, doubled, exchanged, cut, or replaced."""
    words = list(words)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(words) + 1)
        if place == len(words) or rng.random() < 0.15:
            words.insert(place, rng.choice(WORDS))
            continue
        action = rng.randrange(6)
        if action == 0:
            del words[place]
        elif action == 1:
            words.insert(place, words[place])
        elif action == 2:
            words[place] = words[place][: rng.randint(0, len(words[place]))]
        elif action == 3:
            words[place] += rng.choice(WORDS)
        else:
            words[place] = rng.choice(WORDS)
    return words


def mutate_json(rng: Random, document: Any) -> Any:
    """A copy of `document` with one to three of its nodes replaced, dropped, doubled or renamed."""
    box = [copy.deepcopy(document)]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(box))
        parent, key = rng.choice(places)
        action = rng.randrange(5)
        if action == 0 and parent is not box:
            del parent[key]
        elif action == 1 and isinstance(parent, list) and parent is not box:
            parent.append(copy.deepcopy(parent[key]))
        elif action == 2 and isinstance(parent, dict):
            parent[rng.choice(("", "id", "x", "__key__", "1"))] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return box[0]


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """`content` with some bytes replaced, most of them near its beginning, and cut in one of four cases."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        end = min(len(damaged), rng.choice((16, 64, 400, 10**9)))
        if end:
            damaged[rng.randrange(end)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    if rng.random() < 0.25:
        del damaged[rng.randint(0, len(damaged)) :]
    return bytes(damaged)


def mutate_text(rng: Random, document: Any) -> bytes:
    """`document` as JSON, damaged as a document or, in one of five cases, as text."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, json.dumps(document).encode())
    return json.dumps(mutate_json(rng, document)).encode()


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a document."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    found = [(node, key) for key in keys]
    for key in keys:
        found += _places(node[key])
    return found
