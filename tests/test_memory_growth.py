"""A process that segments many photographs does not grow, and one that leaks is seen to."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import memory
import pytest
from little_models import dense_sam
from PIL import Image

from sam_bigltl import convert_sam, save_sam

# In a process of its own: in one that has freed much before, a leak would not be seen.
SCRIPT = """
import numpy as np
from little_models import dense_sam
from sam_bigltl import SamPredictor, convert_sam
from sam_bigltl.bench.memory_growth import rounds
sam = convert_sam(dense_sam(), little_dim=16)
for leaking in (False, True):
    if leaking:
        kept, set_image = [], SamPredictor.set_image
        SamPredictor.set_image = lambda self, image: (kept.append(image.astype(np.float32)), set_image(self, image))
    sizes = list(rounds(sam, 60, 512))
    print((max(sizes[20:]) - max(sizes[:20])) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc, which only Linux has")
def test_memory_is_flat():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    flat, leaking = map(float, done.stdout.split())
    assert flat < 4 < 12 < leaking  # MB; what is kept has about 40


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc, which only Linux has")
def test_the_command_writes_rows_and_a_picture(tmp_path, capsys):
    save_sam(convert_sam(dense_sam(), little_dim=16), tmp_path / "a.safetensors")
    words = ["--checkpoint", tmp_path / "a.safetensors", "--rounds", 7, "--every", 3, "--longest", 40]
    words += ["--csv", tmp_path / "r" / "memory.csv", "--plot", tmp_path / "memory.png"]
    memory.main(list(map(str, words)))
    with open(tmp_path / "r" / "memory.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [1, 3, 6, 7]
    assert all(float(row["resident_mb"]) > 50 for row in rows)
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.width > 300
    with pytest.raises(SystemExit) as end:
        memory.main(["--rounds", "0"])
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) >= 1
