"""What the page asks over HTTP: routes under `guard.PREFIX`, JSON in and out, one line for what cannot be done."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import anyio
import torch
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from ..errors import InputError, in_one_line
from ..modeling.trunk import KeepRatio
from . import photos
from .engine import Encoded, Engine
from .everything import Options, Stopped
from .examples import Example
from .guard import PREFIX, Refused
from .messages import MOST_POINTS_PER_SIDE, Message
from .page_files import PageFiles
from .photos import Photo

HOME = "https://arxiv.org/abs/2410.10267"  # of the paper: the project has no address of its own yet
_LOG = logging.getLogger(__name__)
_LEAST = 0.05  # keep_ratio on the page, unless it starts with less
_DEFECT = "the server met a defect of its own: its log says more"
_NOTHING = "there is nothing here: reload the page"
_T = TypeVar("_T")


class Gone(InputError):
    """The photograph is no longer kept: the page sends it again."""


@dataclass(frozen=True)
class Settings:
    """What the page starts with.

    Attributes:
        keep_ratio: a number, or "auto".
        max_side: pixels of the long side of the masks that it shows.
        everything: the options of everything mode.
    """

    keep_ratio: float | str
    max_side: int
    everything: Options


class Api:
    """The routes, and how much of each kind runs at a time: the rest waits its turn without a thread."""

    def __init__(self, engine: Engine, settings: Settings, examples: list[Example]) -> None:
        self.engine, self.settings, self.files = engine, settings, PageFiles()
        self.examples = {example.name: example for example in examples}
        # A photograph of 80 megapixels takes half a gigabyte for the moment in which it is made small.
        self._opening, self._encoding = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
        self._clicking, self._everything = anyio.CapacityLimiter(4), anyio.CapacityLimiter(2)

    def routes(self) -> list[BaseRoute]:
        """For a Starlette or FastAPI application."""
        named: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "info", self.info),
            ("GET", "page/{path:path}", self.page),
            ("POST", "photos", self.open),
            ("GET", "photos/{key}/preview", self.preview),
            ("POST", "examples/{name}", self.open_example),
            ("GET", "examples/{name}", self.example),
            ("POST", "encode", self.encode),
            ("POST", "masks", self.masks),
            ("POST", "full_mask", self.full_mask),
            ("POST", "everything", self.everything),
        ]
        found: list[BaseRoute] = []  # no Mount: below a path that a proxy takes away, what is in it is not found
        for method, path, handler in named:
            found.append(Route(PREFIX + path, _in_json(handler), methods=[method]))
        every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        return [*found, Route(PREFIX + "{rest:path}", _in_json(_nothing), methods=every)]

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        return await self.files.get_response(request.path_params["path"], request.scope)

    async def info(self, request: Request) -> Response:
        """What the page has to know before anything is opened."""
        engine, ratio = self.engine, self.settings.keep_ratio
        least = _LEAST if isinstance(ratio, str) else min(_LEAST, ratio)
        return JSONResponse({
            "model": engine.checkpoint.stem, "checkpoint": engine.checkpoint.name, "dtype": engine.dtype,
            "native": engine.native, "routed": engine.routed, "keep_ratio": ratio if engine.routed else 1.0,
            "min_keep_ratio": least, "max_bytes": photos.MOST_BYTES, "max_side": self.settings.max_side,
            "examples": [
                {"name": each.name, "title": each.title, "thumbnail": each.thumbnail} for each in self.examples.values()
            ],
            "everything": asdict(self.settings.everything), "version": _version(), "local": False,
            "home": HOME,
        })  # fmt: skip

    async def open(self, request: Request) -> Response:
        """A photograph of the user's."""
        name = request.query_params.get("name", "photo")
        content = await request.body()
        return await self._open(request, content, name)

    async def open_example(self, request: Request) -> Response:
        """A photograph that the server has."""
        example = self._example(request)
        return await self._open(request, example.content, f"{example.name}.png")

    async def example(self, request: Request) -> Response:
        """Its bytes."""
        return Response(self._example(request).content, media_type="image/png")

    async def preview(self, request: Request) -> Response:
        """A photograph as any browser shows it."""
        content = self.engine.store.get(("file", request.path_params["key"]))
        if content is None:
            raise _gone()
        picture, kind = await _run(request, self._opening, lambda: photos.preview(content))
        return Response(picture, media_type=kind, headers={"Cache-Control": "no-store"})

    async def encode(self, request: Request) -> Response:
        """The embedding of a photograph is there, and this is what it took."""
        message = Message.of(await request.body())
        photo, ratio = self._photo(message), message.keep_ratio
        cached = self.engine.kept(photo, ratio) is not None
        encoded = await self._encoded(request, photo, ratio)
        return JSONResponse({
            "milliseconds": round(encoded.milliseconds, 1), "keep_ratio": ratio if self.engine.routed else 1.0,
            "cached": cached, "gmacs": round(encoded.gmacs, 2), "dense_gmacs": round(self.engine.dense_gmacs, 2),
            "stages": encoded.stages,
        })  # fmt: skip

    async def masks(self, request: Request) -> Response:
        """Three masks of a prompt."""
        message = Message.of(await request.body())
        photo = self._photo(message)
        prompt = message.prompt(photo.size)
        encoded = await self._encoded(request, photo, message.keep_ratio)
        found = await _run(request, self._clicking, lambda: self.engine.masks(photo, encoded, prompt))
        return JSONResponse(
            {"masks": found.masks, "ious": found.ious, "milliseconds": round(found.milliseconds, 1)}
        )  # fmt: skip

    async def full_mask(self, request: Request) -> Response:
        """One of them at the photograph's own size."""
        message = Message.of(await request.body())
        photo = self._photo(message)
        prompt, choice = message.prompt(photo.size), message.choice
        encoded = await self._encoded(request, photo, message.keep_ratio)
        run = self._clicking
        mask, iou = await _run(request, run, lambda: self.engine.full_mask(photo, encoded, prompt, choice))
        return JSONResponse({"mask": mask, "iou": iou})

    async def everything(self, request: Request) -> Response:
        """Lines of JSON: how far it is, then all regions, or an error."""
        message = Message.of(await request.body())
        photo, ratio = self._photo(message), message.keep_ratio
        options = Options(
            message.integer("points_per_side", 1, MOST_POINTS_PER_SIDE), message.share("pred_iou_thresh"),
            message.share("stability_score_thresh"),
        )  # fmt: skip
        encoded = await self._encoded(request, photo, ratio)
        return _Lines(self._regions(photo, encoded, options), media_type="application/x-ndjson")

    async def _regions(self, photo: Photo, encoded: Encoded, options: Options) -> AsyncGenerator[str, None]:
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        stop, loop = threading.Event(), asyncio.get_running_loop()

        def tell(**line: Any) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(news.put_nowait, line)

        def work() -> None:
            try:
                found = self.engine.everything(
                    photo, encoded, options, lambda done, count: tell(done=round(done, 4), found=count), stop
                )
                tell(regions=[asdict(region) for region in found])
            except Stopped:
                pass  # nobody listens any more
            except InputError as error:
                tell(error=in_one_line(str(error)))
            except Exception:
                _LOG.exception("everything mode")
                tell(error=_DEFECT)

        yield _line({"done": 0.0, "found": 0})
        try:
            async with self._everything:
                threading.Thread(target=work, daemon=True).start()
                while True:
                    line = await news.get()
                    yield _line(line)
                    if "done" not in line:
                        return
        finally:
            stop.set()  # also where the page has closed the connection

    async def _open(self, request: Request, content: bytes, name: str) -> Response:
        engine, most = self.engine, self.settings.max_side
        photo = await _run(
            request, self._opening, lambda: photos.open_photo(content, name, engine.transform, most)
        )  # fmt: skip
        engine.store.put(("file", photo.key), content, len(content))
        engine.store.put(("photo", photo.key), photo, photo.pixels.nbytes)
        return JSONResponse({
            "key": photo.key, "name": photos.proper_name(name), "width": photo.size[1], "height": photo.size[0],
            "note": photos.size_note(photo.size, photo.view),
        })  # fmt: skip

    def _example(self, request: Request) -> Example:
        found = self.examples.get(request.path_params["name"])
        if found is None:
            raise InputError("there is no such example: reload the page")
        return found

    def _photo(self, message: Message) -> Photo:
        found = self.engine.store.get(("photo", message.key))
        if found is None:
            raise _gone()
        return found

    async def _encoded(self, request: Request, photo: Photo, keep_ratio: KeepRatio) -> Encoded:
        if (found := self.engine.kept(photo, keep_ratio)) is not None:
            return found
        return await _run(request, self._encoding, lambda: self.engine.encode(photo, keep_ratio))


class _Lines(StreamingResponse):
    """One that ends its iterator at once, and in its own task, where the connection ends."""

    async def stream_response(self, send: Send) -> None:
        """Send everything."""
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


class _Left(Exception):
    """Nobody waits for the answer any more."""


async def _run(request: Request, limiter: anyio.CapacityLimiter, function: Callable[[], _T]) -> _T:
    """`function()` in a thread, once it is its turn, unless the page has gone by then."""
    async with limiter:
        if await request.is_disconnected():
            raise _Left
        return await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))


def _in_json(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The handler, with what it raises as an answer."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Gone as error:
            return _error(410, str(error))
        except InputError as error:
            return _error(400, str(error))
        except _Left:
            return Response(status_code=499)
        except (MemoryError, torch.OutOfMemoryError):
            return _error(503, "the server has no memory left for that: try again, or a smaller photograph")
        except (Refused, ClientDisconnect):
            raise
        except HTTPException as error:  # of a file that is not there
            return _error(error.status_code, _NOTHING)
        except Exception:
            _LOG.exception("%s %s", request.method, request.url.path)
            return _error(500, _DEFECT)

    return answer


async def _nothing(request: Request) -> Response:
    return _error(404, _NOTHING)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": in_one_line(message)}, status)


def _gone() -> Gone:
    return Gone("the server no longer has this photograph: open it again")


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _version() -> str:
    try:
        return version("sam_bigltl")
    except PackageNotFoundError:  # run from a folder
        return ""
