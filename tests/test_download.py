"""Downloads from a local server that breaks off, ignores ranges, sends something else, nonsense or nothing.

Meta's files cannot be had here: a stand-in takes the place of one, with a size and SHA-256 of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from sam_bigltl.convert import download
from sam_bigltl.convert.download import Published
from sam_bigltl.errors import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
NAME = "sam_vit_b_01ec64.pth"
STAND_IN = Published(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Server(ThreadingHTTPServer):
    """What it answers is set by the attributes; `ranges` is what was asked for."""

    content = CONTENT
    knows_ranges = True
    stop_after: int | None = None  # bytes of the next answer
    status = 0
    says_length = True
    raw: bytes | None = None  # sent instead of an answer

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/models"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.raw is not None:
            self.wfile.write(server.raw)
            return None
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
        with suppress(ConnectionError):  # the client has seen enough
            self.wfile.write(body[:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server: Server, folder: Path) -> Path:
    download.download(f"{server.url}/{NAME}", folder / NAME, STAND_IN)
    return folder / NAME


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_meta_publishes():
    """The suffix of a name is the start of the file's MD5; these are the SHA-256 sums of the whole files."""
    assert download.URL == "https://dl.fbaipublicfiles.com/segment_anything"
    assert {key: (file.name, file.size, file.sha256) for key, file in download.FILES.items()} == {
        "vit_b": (
            "sam_vit_b_01ec64.pth", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
        ),
        "vit_l": (
            "sam_vit_l_0b3195.pth", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
        ),
        "vit_h": (
            "sam_vit_h_4b8939.pth", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
        ),
    }  # fmt: skip


@pytest.mark.parametrize("says_length", [True, False])
def test_whole_file(server, tmp_path, says_length):
    server.says_length = says_length
    assert fetch(server, tmp_path / "new" / "folder").read_bytes() == CONTENT
    assert names(tmp_path / "new" / "folder") == [NAME] and server.ranges == [None]


@pytest.mark.parametrize("says_length", [True, False])
def test_goes_on_where_it_broke_off(server, tmp_path, says_length):
    server.stop_after, server.says_length = 1_200_000, says_length
    with pytest.raises(InputError, match=r"broke off .1\d{6} of 3000000 bytes.*run it again") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == [NAME + ".partial"]
    kept = (tmp_path / (NAME + ".partial")).stat().st_size
    assert 1_100_000 < kept <= 1_200_000
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={kept}-"] and names(tmp_path) == [NAME]


@pytest.mark.parametrize(
    ("partial", "ranges"),
    [
        (CONTENT, []),
        (CONTENT + b"more", [None]),
        (b"x" * 2_000_000, ["bytes=2000000-", None]),
        (b"x" * 3_000_000, [None]),
        (b"", [None]),
    ],
    ids=["whole", "longer", "changed", "another", "empty"],
)
def test_a_partial_file_of_any_kind_ends_well(server, tmp_path, partial, ranges):
    (tmp_path / (NAME + ".partial")).write_bytes(partial)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ranges and names(tmp_path) == [NAME]


def test_a_server_without_ranges(server, tmp_path):
    server.knows_ranges = False
    (tmp_path / (NAME + ".partial")).write_bytes(b"x" * 2_000_000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=2000000-"]


@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(len(CONTENT)), "SHA-256 [0-9a-f]{64}"),
        (CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), "SHA-256 [0-9a-f]{64}"),  # one bit
        (CONTENT * 2, "6000000 bytes instead of 3000000|it is longer than 3000000 bytes"),
    ],
    ids=["zeros", "one bit", "longer"],
)
def test_wrong_content_is_removed(server, tmp_path, content, reason, says_length):
    server.content, server.says_length = content, says_length
    with pytest.raises(InputError, match=f"not the published file .({reason}).*removed") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_a_file_whose_sum_only_begins_like_the_right_one_is_refused(server, tmp_path):
    """Six digits of a sum can be forged in a minute."""
    forged = Published(NAME, len(CONTENT), STAND_IN.sha256[:6] + "0" * 58)
    with pytest.raises(InputError, match="not the published file"):
        download.download(f"{server.url}/{NAME}", tmp_path / NAME, forged)
    assert names(tmp_path) == []


def test_a_page_in_place_of_the_file_costs_no_download(server, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(InputError, match="26 bytes instead of 3000000"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status,text", [(404, r"does not exist \(404\)"), (503, "answers 503"), (416, "answers 416")])
def test_refusals(server, tmp_path, status, text):
    server.status = status
    (tmp_path / (NAME + ".partial")).write_bytes(CONTENT[:9])
    with pytest.raises(InputError, match=text):
        fetch(server, tmp_path)
    assert (tmp_path / (NAME + ".partial")).read_bytes() == CONTENT[:9]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\x1b[2J" * 400,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: banana\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n" + b"X" * 70_000 + b": y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\x1b[31m: \xff\r\n\r\nx",
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-8/9\r\n\r\nx",
        b"HTTP/1.1 206 Partial\r\n\r\nx",
        b"HTTP/1.1 204 \x1b]0;no\x07\r\n\r\n",
        b"HTTP/1.1 500 \x1b[31m\xff\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hosts\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: sam_vit_b_01ec64.pth\r\nContent-Length: 0\r\n\r\n",  # for ever
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nbanana\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot gzip",
    ],
    ids=lambda raw: ascii(raw[:40]),
)
def test_nonsense_ends_in_one_line(server, tmp_path, raw):
    server.raw = raw
    with pytest.raises(InputError) as caught:
        fetch(server, tmp_path)
    message = str(caught.value)
    assert message.isascii() and message.isprintable() and len(message) < 400, message
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "file:///etc", "ftp://host/x", "http:", "http://", "http:///x", "http://[::1", "http://host:port/x",
        "http://host:99999/x", "http://a b/x", "http://" + "a" * 70 + ".com", "http://.com", "http://host/\x1b[31m",
        "http://host/a\nb", "//host/x",
    ],
)  # fmt: skip
def test_what_is_no_address(tmp_path, url):
    with pytest.raises(InputError, match="is no address: --url is such as https://") as caught:
        download.download(url, tmp_path / "new" / NAME, STAND_IN)
    assert str(caught.value).isprintable() and names(tmp_path) == []


def test_no_server(server, tmp_path):
    closed = Server()
    closed.server_close()
    with pytest.raises(InputError, match="127.0.0.1.* cannot be reached .Connection refused"):
        fetch(closed, tmp_path)
    with pytest.raises(InputError, match="host.invalid cannot be reached"):
        download.download(f"http://host.invalid/{NAME}", tmp_path / NAME, STAND_IN)
    assert names(tmp_path) == []


# ---------------------------------------------------------------- what stands where the files should be
@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "hard link", "pipe"])
def test_what_is_in_the_way_of_the_partial_file(server, tmp_path, kind):
    partial, precious = tmp_path / (NAME + ".partial"), tmp_path / "precious"
    precious.write_text("work of years")
    if kind == "folder":
        partial.mkdir()
    elif kind == "pipe":
        os.mkfifo(partial)
    elif kind == "hard link":
        os.link(precious, partial)
    else:
        partial.symlink_to(precious if kind == "link" else tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\.partial, where the download would go on, is not a file .*remove it"):
        fetch(server, tmp_path)
    assert precious.read_text() == "work of years" and names(tmp_path) == ["precious", partial.name]
    assert server.ranges == []


def test_a_partial_file_of_somebody_else_is_not_trusted(server, tmp_path, monkeypatch):
    (tmp_path / (NAME + ".partial")).write_bytes(CONTENT[:9])
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InputError, match="remove it"):
        fetch(server, tmp_path)


def test_a_folder_in_place_of_the_file(server, tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(InputError, match="is a folder: remove it"):
        fetch(server, tmp_path)
    assert server.ranges == []


def test_unwritable_folder(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fetch(server, tmp_path / "file")


def test_a_disk_without_room_is_noticed_before(server, tmp_path):
    huge = Published(NAME, 2**62, "0" * 64)
    with pytest.raises(InputError, match="GB left of .* GB: give another --output"):
        download.download(f"{server.url}/{NAME}", tmp_path / NAME, huge)
    assert server.ranges == []


# ---------------------------------------------------------------- the command line
def command(server: Server, folder: Path, before: str = "") -> subprocess.CompletedProcess:
    """The command, with the stand-in's size and sum in place of those of Meta's file."""
    code = f"from sam_bigltl import cli, download; {before}\n"
    code += f"download.FILES['vit_b'] = download.Published(*{(NAME, STAND_IN.size, STAND_IN.sha256)}); cli.main()"
    return subprocess.run(
        [sys.executable, "-c", code, "download", "vit_b", "--url", server.url + "/", "--output", str(folder)],
        capture_output=True, text=True, timeout=100, env={**os.environ, "no_proxy": "*"},
    )  # fmt: skip


def test_command_line(server, tmp_path):
    server.stop_after = 1_000_000
    done = command(server, tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sam-bigltl download: error: the connection to 127.0.0.1")
    (tmp_path / NAME).write_bytes(b"wrong")
    done = command(server, tmp_path)
    assert done.returncode == 0 and "is not the published file" in done.stdout and done.stderr == ""
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert len(server.ranges) == 2 and server.ranges[1].startswith("bytes=9")
    done = command(server, tmp_path)
    assert done.returncode == 0 and "is there already" in done.stdout and len(server.ranges) == 2


def test_a_full_disk(server, tmp_path):
    pytest.importorskip("resource")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"
    done = command(server, tmp_path, limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr, done.stderr
    assert not (tmp_path / NAME).exists()
