"""Serve the built page as any static host would: `make demo-web`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sam_bigltl.errors import ArgumentParser, InputError, run_cli

DIST = Path(__file__).resolve().parent / "dist"
FIRST_PORT, PORTS = 8000, 100


class Handler(SimpleHTTPRequestHandler):
    """Files with the types that browsers ask of modules and WebAssembly, and no line for each."""

    extensions_map = {  # noqa: RUF012 - the base class has it so
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def log_message(self, format: str, *args: object) -> None:
        pass


def open_server(folder: Path, port: int | None = None) -> ThreadingHTTPServer:
    """A server of `folder` for this machine alone, at `port` or the first free one. Raises InputError."""
    if not (folder / "index.html").is_file():
        raise InputError(f"{folder} holds no page: build it with make demo-web")
    handler = partial(Handler, directory=str(folder))
    for candidate in [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return ThreadingHTTPServer(("127.0.0.1", candidate), handler)
        except OSError as error:
            reason = error.strerror or str(error)
    raise InputError(f"cannot listen on 127.0.0.1:{candidate}: {reason}")


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted. Raises InputError."""
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port {args.port} is no port: give one from 1 to 65535")
    with open_server(args.folder, args.port) as server:
        print(f"the page is at http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = ArgumentParser(prog="serve.py", description="Serve the page that make demo-web builds.")
    parser.add_argument("--folder", type=Path, default=DIST, help="of the page (demo/web/dist)")
    parser.add_argument("--port", type=int, help="(the first free one from 8000)")
    run_cli(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
