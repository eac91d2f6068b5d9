"""The page's modules, styles and pieces of HTML: the files beside this one in `page/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"
# What browsers insist on for modules; what the system says of a suffix may be something else.
_KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


class PageFiles(StaticFiles):
    """Files of the package, which the browser asks for again after an update."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, check_dir=False)

    def file_response(self, full_path: Any, *arguments: Any, **more: Any) -> Response:
        """A file."""
        response = super().file_response(full_path, *arguments, **more)
        response.headers["Cache-Control"] = "no-cache"
        if kind := _KINDS.get(Path(full_path).suffix):
            response.headers["Content-Type"] = f"{kind}; charset=utf-8"
        return response
