"""What a request must be to reach the demo: from an allowed host, logged in, not too large, not to a closed route."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import in_one_line
from . import messages, photos

PREFIX = "/sam_bigltl/"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?")
_IN_FLIGHT = 6 * photos.MOST_BYTES  # of the bodies of all requests that are being answered
_GRADIO_BODY = 2**20  # Gradio's own messages: nothing on the page sends one

# What the page does not use of Gradio's, and what would take files, or fetch them.
_CLOSED = ("upload", "upload_progress", "process_recording", "component_server", "proxy=", "vibe-", "run-history")


class Hosts:
    """The names under which the demo may be called.

    A page on the internet can have its own name resolve to this machine, and the browser then takes the demo for a part
    of that page. An address cannot be had in this way, so that any will do.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", *(name.lower().rstrip(".") for name in names)}

    def add_url(self, url: str) -> None:
        """The name in an address is one, too."""
        if name := _host_name(url):
            self._names.add(name)

    def allow(self, host: str | None) -> bool:
        """Whether it is one of them: NAME, NAME:PORT, [ADDRESS]:PORT."""
        name = _host_name(f"//{host}") if host and _HOST.fullmatch(host) else None
        if name is None or name in self._names:
            return name is not None
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def allow_origin(self, origin: str, host: str) -> bool:
        """Whether a page of that origin may ask `host`, which is allowed: one of itself, or of a name that is."""
        name = _host_name(origin)
        return name is not None and (name == _host_name(f"//{host}") or name in self._names)


class Guard:
    """ASGI middleware in front of all routes, Gradio's own among them."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self.app, self.hosts = app, hosts
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here serves one
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), _path(scope)
        if refusal := self._refusal(scope, headers, path):
            await _answer(send, *refusal)
            return
        most = _most(path)
        declared = headers.get("content-length")
        if declared is not None and not (declared.isascii() and declared.isdigit() and len(declared) < 20):
            await _answer(send, 400, "the request has a wrong Content-Length")
            return
        if declared is not None and int(declared) > most:
            await _answer(send, 413, _too_large(most))
            return
        bounded = _Body(self, receive, most)
        try:
            await self.app(scope, bounded, send)
        except Refused as error:
            await _answer(send, error.status, str(error))
        finally:
            self._in_flight -= bounded.taken

    def take(self, count: int) -> None:
        """Bytes of a body have come. Raises Refused where all bodies together become too many."""
        self._in_flight += count
        if self._in_flight > _IN_FLIGHT:
            raise Refused(503, "the server is busy with other photographs: try again in a moment")

    def _refusal(self, scope: Scope, headers: Headers, path: str) -> tuple[int, str] | None:
        host, origin = headers.get("host"), headers.get("origin")
        if not self.hosts.allow(host):
            shown = in_one_line((host or "nothing")[:80])
            return 403, f"this demo is not served as {shown}: start it with --allow-host NAME to allow a name"
        # Any page may have its browser ask here; the origin is what it cannot forge.
        if origin is not None and not self.hosts.allow_origin(origin, host or ""):
            return 403, "another page may not use this demo: open the demo itself"
        api, _, rest = path.partition("/gradio_api/")
        if not api and rest.startswith(_CLOSED):
            return 404, "there is nothing here"
        if path.startswith(PREFIX) and not is_logged_in(scope):
            return 401, "log in first: reload the page"
        return None


class Refused(Exception):
    """A request that is turned away while its body comes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Body:
    """`receive` of a request that counts the bytes of its body."""

    def __init__(self, guard: Guard, receive: Receive, most: int) -> None:
        self._guard, self._receive, self._most = guard, receive, most
        self.taken = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        count = len(message.get("body", b""))
        self.taken += count
        self._guard.take(count)
        if self.taken > self._most:
            raise Refused(413, _too_large(self._most))
        return message


def is_logged_in(scope: Scope) -> bool:
    """Whether Gradio's login has been passed, or is not asked for."""
    app: Any = scope["app"]
    if app.auth is None and getattr(app, "auth_dependency", None) is None:
        return True
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return False
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(name in cookies and cookies[name].value in app.tokens for name in names)


def _path(scope: Scope) -> str:
    """The path that routes see: without what a proxy has put before it."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def _most(path: str) -> int:
    """Bytes of a body."""
    if path == f"{PREFIX}photos":
        return photos.MOST_BYTES
    return messages.MOST_BYTES if path.startswith(PREFIX) else _GRADIO_BODY


def _too_large(most: int) -> str:
    size = f"{most / 2**20:.0f} MB" if most >= 2**20 else f"{most / 2**10:.0f} KB"
    return f"that is too large: the demo takes {size} at most"


def _host_name(url: str) -> str | None:
    try:
        name = urlsplit(url).hostname
    except ValueError:
        return None
    return name.rstrip(".") if name else None


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
