"""The demo's command line: what it refuses, logins, addresses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from sam_bigltl.cli import demo as demo_cli
from sam_bigltl.errors import InputError

SCRIPT = Path(__file__).parents[1] / "demo" / "app.py"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-ratio", "2"], "keep"), (["--keep-ratio", "1,0.5,0.5,0.5"], "one --keep-ratio"),
        (["--port", "0"], "no port"), (["--auth", "ann"], "NAME:PASSWORD"), (["--auth", ":x"], "NAME:PASSWORD"),
        (["--auth-file", "none.txt"], "none.txt cannot be read"), (["--memory", "63"], "64 MB at least"),
        (["--memory", "-1"], "64 MB at least"), (["--max-side", "0"], "at least 1"),
        (["--allow-host", "http://a.org/x"], "a name alone"), (["--allow-host", ""], "a name alone"),
        (["--checkpoint", "none.pth"], "none.pth"), (["--host", "256.0.0.1"], "cannot listen"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        demo_cli.main(options)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and len(error.strip().splitlines()) == 1, error


def test_the_script_says_what_is_wrong():
    done = subprocess.run([sys.executable, SCRIPT, "--dtype", "float16"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "float16" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_logins(tmp_path):
    file = tmp_path / "logins.txt"
    file.write_text("# who may\nann:se:cret\n\n  bob:x y \n")
    found = demo_cli.logins(["cid:1"], file, "dan:2 eve:3")
    assert found == [("cid", "1"), ("ann", "se:cret"), ("bob", "x y"), ("dan", "2"), ("eve", "3")]
    assert demo_cli.logins([], None, None) == []
    file.write_text("ann:secret\nhunter2\n")
    with pytest.raises(InputError, match="NAME:PASSWORD") as error:
        demo_cli.logins([], file, None)
    assert "hunter2" not in str(error.value)  # what is secret is not repeated
    file.write_text("# nobody\n")
    with pytest.raises(InputError, match="names nobody"):
        demo_cli.logins([], file, None)
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        demo_cli.logins([], file, None)
    with pytest.raises(InputError, match="SAM_BIGLTL_AUTH"):
        demo_cli.logins([], None, "hunter2")


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.1.2.3", False)],
)
def test_who_can_reach_an_address(host, own):
    assert demo_cli._is_own(host) is own


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def served(options: list[str], environment: dict[str, str] | None = None) -> tuple[str, subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-u", SCRIPT, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if "the demo is at" in line:
            break
    return said, process


def status(address: str, host: str | None = None) -> int:
    request = urllib.request.Request(address, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_it_serves_on_ipv6_and_asks_whom_the_environment_names():
    """An address with colons needs brackets."""
    said, process = served(["--host", "::1", "--dtype", "float32"], {"SAM_BIGLTL_AUTH": "ann:secret"})
    try:
        address = re.search(r"the demo is at (http://\[::1\]:\d+/)", said)
        assert address, said
        assert "warning" not in said
        assert status(address[1]) == 200 and status(address[1] + "sam_bigltl/info") == 401
        assert status(address[1] + "sam_bigltl/info", "evil.example") == 403
    finally:
        process.terminate()
        process.wait(30)


def test_everybody_can_reach_it_and_is_warned_of():
    said, process = served(["--host", "0.0.0.0", "--keep-ratio", "0.02", "--dtype", "float32"])
    try:
        address = re.search(r"http://localhost:\d+/", said)
        assert address and said.count("warning: everybody") == 1, said
        with urllib.request.urlopen(address[0] + "sam_bigltl/info", timeout=60) as answer:
            told = answer.read().decode()
        assert '"keep_ratio":0.02' in told and '"min_keep_ratio":0.02' in told
    finally:
        process.terminate()
        process.wait(30)
