"""`sam-bigltl bulk` where something is broken, refused or killed: it is named, and the rest is as without it."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bulk_toy import SETTING, contents, errors, made_tars, names, rows, written

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")


def test_what_is_broken_is_named_and_the_rest_done(bulk, bulk_photos, tmp_path):
    """A photograph cut off, one of 0 bytes, one that is missing, and prompts that no photograph can be asked."""
    good = names(bulk_photos)[:4]
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((bulk_photos / names(bulk_photos)[1]).read_bytes()[:300])
    (tmp_path / "empty.png").touch()
    listed = [*(str(bulk_photos / name) for name in good), "cut.jpg", "empty.png", "missing.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    asked = {name: [{"box": [1, 1, 30, 30]}] for name in listed}
    asked[listed[0]].append({"box": [900, 900, 950, 950]})
    code, said, out = bulk(tmp_path / "list.txt", "--prompts", written(asked, tmp_path))
    assert code == 1
    assert [(row["key"], len(row["masks"])) for row in rows(out)] == [(name, 1) for name in listed[:4]]
    found = dict(errors(out))
    assert found.keys() == {listed[0], "cut.jpg", "empty.png", "missing.jpg"}
    assert "prompt 1: box 900" in found[listed[0]] and "0 bytes" in found["empty.png"]
    assert all(name in said for name in found) and "Traceback" not in said
    cut.write_bytes((bulk_photos / good[1]).read_bytes())  # it is mended, and asked for again
    code, said, out = bulk(tmp_path / "list.txt", "--prompts", tmp_path / "prompts.json", "--retry-errors")
    assert code == 1 and "cut.jpg" not in dict(errors(out)) and "cut.jpg" in [row["key"] for row in rows(out)]


def test_a_broken_shard_gives_what_is_whole(bulk, bulk_photos, tmp_path):
    made_tars(bulk_photos, tmp_path, {})
    whole = (tmp_path / "shard_0.tar").read_bytes()
    (tmp_path / "shard_0.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "shard_1.tar").write_bytes(b"")
    code, said, out = bulk(tmp_path / "shard_{0..1}.tar", "--embeddings")
    assert code == 1 and "Traceback" not in said
    assert 5 <= len(rows(out)) < 20
    assert [name for name, _ in errors(out)] == ["shard_0.tar", "shard_1.tar"]


def test_what_cannot_be_written_is_named_and_the_rest_done(bulk, bulk_photos, tmp_path):
    out = tmp_path / "out"
    (out / ".parts").mkdir(parents=True)
    (out / ".parts" / "00001").touch()  # a file where a folder must be
    code, said, out = bulk(bulk_photos, "--embeddings", "--shard-size", 16)
    assert code == 1 and "1 shards are not done" in said and "shard 00001" in said and "Traceback" not in said
    assert sorted(path.name for path in out.glob("masks-*")) == ["masks-00000.parquet", "masks-00002.parquet"]
    (out / ".parts" / "00001").unlink()
    code, said, out = bulk(bulk_photos, "--embeddings", "--shard-size", 16)
    assert code == 0 and [row["key"] for row in rows(out)] == names(bulk_photos)


def test_other_settings_and_other_photographs_are_refused(bulk, bulk_photos, tmp_path):
    bulk(bulk_photos, "--embeddings")
    for source, options, words in (
        (bulk_photos, ["--embeddings", "--keep-ratio", "0.25"], "keep_ratio was 0.5 and is 0.25"),
        (bulk_photos / "sub", ["--embeddings"], "input was"),
    ):
        code, said, _ = bulk(source, *options)
        assert code == 2 and "results of other settings" in said and words in said
        assert said.count("\n") == 1 or "\n" not in said.strip().partition("error:")[2]


def started(bulk_photos: Path, asked: Path, bulk_checkpoint: Path, out: Path, address: str | None) -> subprocess.Popen:
    options = ["--output", out, "--prompts", asked, "--checkpoint", bulk_checkpoint, "--shard-size", 20, *SETTING]
    options += ["--address", address] if address else []
    command = [sys.executable, "-m", "sam_bigltl.cli", "bulk", bulk_photos, *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(what, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def workers() -> list:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if words.startswith("ray::") and "_Worker" in words:
            found.append(process)
    return found


def killed(draw: random.Random, bulk_photos, asked, bulk_checkpoint, out: Path, ray_cluster: str, times: int) -> None:
    """Kill the command at random moments, then let it end; every second time kill one of its workers instead."""
    for number in range(times):
        process = started(bulk_photos, asked, bulk_checkpoint, out, ray_cluster)
        assert wait_for(lambda process=process: workers() or process.poll() is not None)
        time.sleep(draw.uniform(0, 4))
        if number % 2:
            for worker in draw.sample(found := workers(), min(1, len(found))):
                worker.kill()
            assert process.wait(300) == 0, process.stdout.read().decode()
            return
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = started(bulk_photos, asked, bulk_checkpoint, out, ray_cluster)
    assert process.wait(300) == 0, process.stdout.read().decode()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_started_again_it_ends_with_the_same_files(
    bulk, ray_cluster, bulk_photos, bulk_prompts, bulk_checkpoint, tmp_path, times
):
    asked = written(bulk_prompts, tmp_path)
    _, _, expected = bulk(bulk_photos, "--prompts", asked, "--shard-size", 20, out="expected")
    draw = random.Random(0)
    for number in range(times // 2):
        out = tmp_path / f"out{number}"
        killed(draw, bulk_photos, asked, bulk_checkpoint, out, ray_cluster, 2)
        assert contents(out) == contents(expected)


def test_workers_that_fit_nowhere_are_refused(bulk, bulk_photos):
    code, said, _ = bulk(bulk_photos, "--embeddings", "--threads", 3, actors=None)
    assert code == 2 and "the largest node has 2 cores, a worker 3" in said


def test_on_this_machine_alone_and_two_runs_at_once(bulk_photos, bulk_prompts, bulk_checkpoint, tmp_path):
    asked, out = written(bulk_prompts, tmp_path), tmp_path / "out"
    first = started(bulk_photos, asked, bulk_checkpoint, out, None)
    assert wait_for((out / ".lock").exists)
    second = started(bulk_photos, asked, bulk_checkpoint, out, None)
    said = second.communicate(timeout=120)[0].decode()
    assert second.returncode == 2 and "another run is writing" in said and "Traceback" not in said
    said = first.communicate(timeout=300)[0].decode()
    assert first.returncode == 0 and "Traceback" not in said and "Warning" not in said, said
    assert [row["key"] for row in rows(out)] == names(bulk_photos)
    assert not (out / ".parts").exists() or not list((out / ".parts").iterdir())
