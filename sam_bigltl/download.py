"""`sam-bigltl download`: SAM's published checkpoints, checked, and resumed where an earlier try broke off."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import re
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from .errors import InputError

URL = "https://dl.fbaipublicfiles.com/segment_anything"
# The end of each name is the start of the file's sha256.
FILES = {"vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth"}
TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20

EXAMPLES = """\
examples:
  sam-bigltl download vit_b
  sam-bigltl download vit_h --output /big/disk
  sam-bigltl convert checkpoints/sam_vit_b_01ec64.pth bigltl_b.safetensors

vit_b is 375 MB, vit_l 1.25 GB, vit_h 2.56 GB. Interrupted, the same command goes on where it stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `download`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", choices=FILES, help="which SAM")
    parser.add_argument(
        "--output", type=Path, default=Path("checkpoints"), metavar="DIR", help="folder for the file (%(default)s)"
    )
    parser.add_argument("--url", default=URL, help="a mirror of the folder that holds the files (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Download what `args` ask for and say where it is."""
    name = FILES[args.model]
    target = args.output / name
    if target.is_file() and _is_published(target, name):
        print(f"{target} is there already, and is the published file")
        return
    if target.is_file():
        print(f"{target} is there, but is not the published file: it is fetched again")
    download(f"{args.url.rstrip('/')}/{name}", target)
    print(f"wrote {target}")


def download(url: str, target: Path) -> None:
    """Fetch `url` into `target`, whose name ends in the start of the content's sha256, as in sam_vit_b_01ec64.pth.

    What has come is kept in `<target>.partial`, which a later call goes on from; `target` is whole or not there.

    Raises:
        InputError: no connection, an answer other than the file, a disk that is full, or content of another sha256,
            which is removed.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is no address: it starts with http:// or https://")
    partial = target.with_name(target.name + ".partial")
    resumed = _fetch(url, partial)
    if resumed and not _is_published(partial, target.name):
        # The first part was of a file that has changed since, or was damaged here.
        print("the parts do not fit together: starting over")
        partial.unlink()
        _fetch(url, partial)
    if not _is_published(partial, target.name):
        found = sha256(partial)[:16]
        partial.unlink()
        raise InputError(f"{url} is not the published file (sha256 {found}...): it was removed; check --url")
    partial.replace(target)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_published(path: Path, name: str) -> bool:
    return sha256(path).startswith(re.search(r"_([0-9a-f]+)\.", name)[1])


def _fetch(url: str, partial: Path) -> bool:
    """Bring `partial` to the length that the server states; says whether it was begun by an earlier call."""
    start = partial.stat().st_size if partial.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            # A server without ranges answers 200 and sends all of it.
            resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if answer.status == 206 and not resumed:
                raise InputError(f"{url} does not answer with the range that was asked for: remove {partial}")
            _write(answer, partial, start if resumed else 0, url)
            return resumed
    except HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: the file is whole, or was a longer one
            return True
        if error.code == 404:
            raise InputError(f"{url} does not exist (404): check --url") from None
        raise InputError(f"{url} cannot be fetched: the server answers {error.code} {error.reason}") from None
    except URLError as error:
        host = urlsplit(url).netloc
        raise InputError(f"{host} cannot be reached ({error.reason}): check the network, or use --url") from None
    except (OSError, http.client.HTTPException) as error:  # of the connection: `_write` names what the disk says
        raise _broken(url, partial, error) from None


def _write(answer: http.client.HTTPResponse, partial: Path, start: int, url: str) -> None:
    """Append what the server sends to the first `start` bytes of `partial`."""
    length = answer.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("ab" if start else "wb")
    except OSError as error:
        raise InputError(f"cannot write {partial}: {error.strerror}") from None
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}
    with file, tqdm(total=total, initial=start, desc=partial.stem, **options) as bar:
        while chunk := answer.read(_CHUNK):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise InputError(f"cannot write {partial}: {error.strerror}") from None
            bar.update(len(chunk))
        if total is not None and file.tell() < total:  # http.client says nothing where a connection ends early
            raise _broken(url, partial, f"{file.tell()} of {total} bytes")


def _broken(url: str, partial: Path, reason: object) -> InputError:
    return InputError(
        f"the connection to {urlsplit(url).netloc} broke off ({reason}): run it again to go on from {partial}"
    )
