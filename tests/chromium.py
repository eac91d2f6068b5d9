"""The demo's page in a real Chromium, for the tests of the page: files served as they lie, and one user at them.

The fixtures `photo`, `address` and `browser` are everybody's.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
PAGE = HERE.parent / "sam_bigltl" / "demo" / "page"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # fmt: skip


def find_chromium(driver: Any) -> str:
    """The system's, or else the one that playwright has installed; without both, the test is skipped."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    path = driver.chromium.executable_path
    if not Path(path).is_file():
        pytest.skip("no Chromium here: make test-browser installs it")
    return path


def draw_disc(path: Path, height: int = 300, width: int = 400) -> Path:
    """A dark disc on noise, as a file."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    image = rng.integers(120, 200, (height, width, 3)).astype(np.uint8)
    radius = 0.27 * min(height, width)
    image[(rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2] = (30, 40, 90)
    Image.fromarray(image).save(path)
    return path


class _Files(SimpleHTTPRequestHandler):
    example: Path

    def translate_path(self, path: str) -> str:
        path = path.split("?")[0]
        if path == "/example.png":
            return str(self.example)
        folder = PAGE if path.startswith("/page/") else HERE / "page"
        return str(folder / (path.removeprefix("/page/").lstrip("/") or "index.html"))

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve_page(example: Path) -> Iterator[str]:
    """The page with a backend for tests; its address."""
    handler = type("Files", (_Files,), {"example": example})
    handler.extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}
    many = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})  # the page asks for all modules at once
    server = many(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class User:
    """One user at the page.

    Args:
        root: selector of the element that the page is in.
    """

    def __init__(
        self, browser: Any, address: str, size: tuple[int, int] = (1400, 1000), dark: bool = False, touch: bool = False,
        root: str = "#page", **context: Any,
    ) -> None:  # fmt: skip
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, accept_downloads=True, has_touch=touch, is_mobile=touch,
            color_scheme="dark" if dark else "light", permissions=["clipboard-read", "clipboard-write", "camera"],
            **context,
        )  # fmt: skip
        self.root = root
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.go(address)

    def go(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector(f"{self.root} .stage")

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector(f"{self.root} .stage")

    def js(self, expression: str, *arguments: Any) -> Any:
        """`expression` with `find` (a selector of the page's), `root` and `control`."""
        return self.page.evaluate(
            "([source, selector, args]) => { const root = document.querySelector(selector);"
            " const find = (each) => root.shadowRoot.querySelector(each);"
            " const run = new Function('root', 'find', 'control', 'args', `return ${source}`);"
            " return run(root, find, window.control, args); }",
            [expression, self.root, list(arguments)],
        )

    def wait(self, expression: str, timeout: float = 15000) -> None:
        """Until `expression` is true."""
        self.page.wait_for_function(
            "([source, selector]) => { const root = document.querySelector(selector);"
            " const find = (each) => root.shadowRoot.querySelector(each);"
            " return new Function('root', 'find', 'control', `return ${source}`)(root, find, window.control); }",
            arg=[expression, self.root], timeout=timeout,
        )  # fmt: skip

    def idle(self, timeout: float = 60000) -> None:
        """Until nothing is computed any more and all of it is drawn."""
        self.frames()
        self.wait("root.dataset.state === 'idle'", timeout)
        self.frames()

    def frames(self) -> None:
        self.page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r))))")

    def find(self, selector: str) -> Any:
        return self.page.locator(f"{self.root} {selector}")

    def open(self, path: Path) -> None:
        serial = self.find("input[type=file]").first
        serial.set_input_files(path)
        self.wait(f"root.dataset.photo === {json.dumps(path.name)}")
        self.idle()

    @property
    def view(self) -> dict[str, float]:
        return json.loads(self.js("find('.stage').dataset.view"))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the photograph is in the window."""
        frame, view = self.find(".view").bounding_box(), self.view
        return frame["x"] + x * view["scale"] + view["left"], frame["y"] + y * view["scale"] + view["top"]

    def click(self, x: float, y: float, wait: bool = True, **how: Any) -> None:
        self.page.mouse.click(*self.at(x, y), **how)
        if wait:
            self.idle()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.page.mouse.move(*self.at(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2), steps=3)
        self.page.mouse.move(*self.at(x1, y1), steps=3)
        self.page.mouse.up()
        self.idle()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.frames()

    @property
    def scene(self) -> dict[str, Any]:
        """The scene in the page's own words."""
        return self.js("JSON.parse(JSON.stringify(root.app.work.scene))")

    @property
    def notice(self) -> str:
        self.frames()
        return self.find(".notice-text").inner_text() if self.find(".notice").is_visible() else ""

    def colour_at(self, x: float, y: float) -> list[int]:
        """Of a pixel of the photograph, as the stage shows it."""
        self.frames()
        return self.js(
            "(() => { const c = find('.view'), v = JSON.parse(find('.stage').dataset.view), d = devicePixelRatio;"
            " return [...c.getContext('2d').getImageData(Math.round((args[0] * v.scale + v.left) * d),"
            " Math.round((args[1] * v.scale + v.top) * d), 1, 1).data]; })()",
            x, y,
        )  # fmt: skip

    def download(self, act: Callable[[], object]) -> Path:
        with self.page.expect_download() as waiting:
            act()
        return waiting.value.path()

    def export(self, kind: str) -> Path:
        return self.download(lambda: self.find(f"[data-export={kind}]").click())

    def close(self) -> None:
        self.context.close()
        assert self.errors == []


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of 400 x 300 px."""
    return draw_disc(tmp_path_factory.mktemp("photos") / "disc.png")


@pytest.fixture(scope="module")
def address(photo: Path) -> Iterator[str]:
    """Of the page with a backend for tests."""
    with serve_page(photo) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of its own for a file of tests."""
    reason = "no playwright here: make test-browser installs it"
    with pytest.importorskip("playwright.sync_api", reason=reason).sync_playwright() as driver:
        own = driver.chromium.launch(executable_path=find_chromium(driver), args=FLAGS)
        yield own
        own.close()
