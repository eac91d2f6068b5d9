"""Downloads from a local server that breaks off, ignores ranges, sends something else, or has nothing."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from sam_bigltl import download
from sam_bigltl.errors import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
NAME = f"sam_vit_b_{hashlib.sha256(CONTENT).hexdigest()[:6]}.pth"


class Server(ThreadingHTTPServer):
    """What it answers is set by the attributes; `ranges` is what was asked for."""

    content = CONTENT
    knows_ranges = True
    stop_after: int | None = None  # bytes of the next answer
    status = 0
    says_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/models"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status or self.path != f"/models/{NAME}":
            return self.send_error(server.status or 404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.knows_ranges else 0
        if start and start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        stop, server.stop_after = server.stop_after, None
        self.wfile.write(body[:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(download.FILES, "vit_b", NAME)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server: Server, folder: Path) -> Path:
    download.download(f"{server.url}/{NAME}", folder / NAME)
    return folder / NAME


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("says_length", [True, False])
def test_whole_file(server, tmp_path, says_length):
    server.says_length = says_length
    assert fetch(server, tmp_path / "new" / "folder").read_bytes() == CONTENT
    assert names(tmp_path / "new" / "folder") == [NAME] and server.ranges == [None]


def test_goes_on_where_it_broke_off(server, tmp_path):
    server.stop_after = 1_200_000
    with pytest.raises(InputError, match="broke off .1200000 of 3000000 bytes.*run it again"):
        fetch(server, tmp_path)
    assert names(tmp_path) == [NAME + ".partial"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1200000-"] and names(tmp_path) == [NAME]


@pytest.mark.parametrize("partial", [CONTENT, CONTENT + b"more", b"x" * 2_000_000], ids=["whole", "longer", "changed"])
def test_a_partial_file_of_any_kind_ends_well(server, tmp_path, partial):
    (tmp_path / (NAME + ".partial")).write_bytes(partial)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert len(server.ranges) == (1 if partial == CONTENT else 2)


def test_a_server_without_ranges(server, tmp_path):
    server.knows_ranges = False
    (tmp_path / (NAME + ".partial")).write_bytes(b"x" * 2_000_000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=2000000-"]


def test_wrong_content_is_removed(server, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(InputError, match="not the published file .* removed") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


@pytest.mark.parametrize("status,text", [(404, r"does not exist \(404\)"), (503, "answers 503")])
def test_refusals(server, tmp_path, status, text):
    server.status = status
    (tmp_path / (NAME + ".partial")).write_bytes(CONTENT[:9])
    with pytest.raises(InputError, match=text):
        fetch(server, tmp_path)
    assert (tmp_path / (NAME + ".partial")).read_bytes() == CONTENT[:9]


def test_no_server_and_no_address(server, tmp_path):
    closed = Server()
    closed.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        fetch(closed, tmp_path)
    with pytest.raises(InputError, match="http://"):
        download.download(f"file:///{NAME}", tmp_path / NAME)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(server, tmp_path):
    (tmp_path / (NAME + ".partial")).symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot write .*No space left"):
        fetch(server, tmp_path)
    assert not (tmp_path / NAME).exists()


def test_unwritable_folder(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fetch(server, tmp_path / "file")


def command(server: Server, folder: Path) -> subprocess.CompletedProcess:
    """The command on the file of this test, whose name is not SAM's."""
    code = f"from sam_bigltl import cli, download; download.FILES['vit_b'] = {NAME!r}; cli.main()"
    return subprocess.run(
        [sys.executable, "-c", code, "download", "vit_b", "--url", server.url + "/", "--output", str(folder)],
        capture_output=True, text=True, timeout=100, env={**os.environ, "no_proxy": "*"},
    )  # fmt: skip


def test_command_line(server, tmp_path):
    server.stop_after = 10
    done = command(server, tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sam-bigltl download: error: the connection to 127.0.0.1")
    (tmp_path / NAME).write_bytes(b"wrong")
    done = command(server, tmp_path)
    assert done.returncode == 0 and "is not the published file" in done.stdout and done.stderr == ""
    assert (tmp_path / NAME).read_bytes() == CONTENT and len(server.ranges) == 2
    done = command(server, tmp_path)
    assert done.returncode == 0 and "is there already" in done.stdout and len(server.ranges) == 2


def test_sams_names_carry_their_hash():
    assert set(download.FILES) == {"vit_b", "vit_l", "vit_h"}
    assert all(re.fullmatch(rf"sam_{key}_[0-9a-f]{{6}}\.pth", name) for key, name in download.FILES.items())
