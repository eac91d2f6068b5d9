"""The demo's command line: `sam-bigltl demo`, `python demo/app.py`."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..convert.registry import default_checkpoint
from ..errors import ArgumentParser, InputError, run_cli
from ..fast.devices import parse_device
from . import flag_checks
from .prompts import parse_keep_ratio
from .tuned import add_format, add_tuned, encoder_setting

EXAMPLES = """examples:
  sam-bigltl demo
  sam-bigltl demo --checkpoint checkpoints/bigltl_b.safetensors --dtype int8 --keep-ratio 0.25
  sam-bigltl demo --host 0.0.0.0 --port 8080 --auth ann:secret
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the demo."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", type=Path, help="weights (default: checkpoints/bigltl_mini.safetensors)")
    parser.add_argument("--keep-ratio", metavar="RATIO", help="to start with: in (0, 1], or auto (0.5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    add_format(parser)
    add_tuned(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help="(the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="a public address through Gradio's servers")
    parser.add_argument(
        "--auth", action="append", metavar="NAME:PASSWORD", help="ask for a login; again for more users"
    )
    parser.add_argument(
        "--max-side", type=int, default=1280, metavar="PX", help="larger photographs are reduced (1280)"
    )
    parser.add_argument("--cache", type=int, default=32, metavar="N", help="embeddings to keep (32)")


def run(args: argparse.Namespace) -> None:
    """Serve the page until interrupted. Raises InputError."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    flag_checks.at_least_one(args, ("cache", "max_side"))
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port {args.port} is no port: give one from 1 to 65535")
    auth = [tuple(entry.split(":", 1)) for entry in args.auth or ()]
    if any(len(entry) != 2 or not all(entry) for entry in auth):
        raise InputError("--auth is NAME:PASSWORD")
    device = parse_device(args.device)
    chosen, setting = encoder_setting(args, device)
    keep_ratio: float | tuple[float, ...] | str = 0.5 if setting is None else setting.keep_ratio
    if args.keep_ratio is not None:
        keep_ratio = parse_keep_ratio(args.keep_ratio)
    if isinstance(keep_ratio, tuple):
        raise InputError("the demo starts with one --keep-ratio for all stages: give a number, or auto")
    _check_address(args.host, args.port or 0)

    from ..demo.app import CSS, THEME, build_app  # Gradio takes seconds to import
    from ..demo.engine import Engine
    from ..demo.photos import MOST_BYTES

    engine = Engine(args.checkpoint or default_checkpoint(), device, chosen.dtype, chosen.native, args.cache)
    chosen.say()
    app = build_app(engine, keep_ratio, example_photos(), args.max_side)
    try:
        app.launch(
            server_name=args.host, server_port=args.port, share=args.share, auth=auth or None, theme=THEME, css=CSS,
            max_file_size=MOST_BYTES, footer_links=[], state_session_capacity=100, quiet=True, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"cannot listen on {args.host}: {' '.join(str(error).split())}") from None
    print(f"the demo is at {app.share_url or app.local_url} (Ctrl-C ends it)", flush=True)
    app.block_thread()


def _check_address(host: str, port: int) -> None:
    """Raise InputError where nothing can listen there: Gradio would wait for its server for ever."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        where = f"{host}:{port}" if port else host
        raise InputError(f"cannot listen on {where}: {error.strerror or error}") from None


def example_photos() -> dict[str, np.ndarray]:
    """The photographs that come inside scikit-image, where it is installed."""
    from ..predict.samples import sample_photos

    try:
        return {photo.name: photo.image for photo in sample_photos()}
    except InputError:
        return {}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `demo/app.py`."""
    parser = ArgumentParser(prog="app.py", description="A page on which clicks and boxes become masks.")
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
