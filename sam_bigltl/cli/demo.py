"""The demo's command line: `sam-bigltl demo`, `python demo/app.py`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ..convert.registry import default_checkpoint
from ..errors import ArgumentParser, InputError, run_cli
from ..fast.devices import parse_device
from . import flag_checks
from .prompts import parse_keep_ratio
from .tuned import add_format, add_tuned, encoder_setting

EXAMPLES = """examples:
  sam-bigltl demo
  sam-bigltl demo --checkpoint checkpoints/bigltl_b.safetensors --dtype int8 --keep-ratio 0.25
  sam-bigltl demo --host 0.0.0.0 --port 8080 --auth-file logins.txt
  SAM_BIGLTL_AUTH=ann:secret sam-bigltl demo --host 0.0.0.0 --allow-host demo.example.org --memory 2048
"""
_VARIABLE = "SAM_BIGLTL_AUTH"
_LEAST_MEMORY = 64  # one photograph of the largest file, and its embedding


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
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that a proxy serves it under"
    )
    parser.add_argument(
        "--auth", action="append", metavar="NAME:PASSWORD", help="ask for a login; again for more users"
    )
    parser.add_argument(
        "--auth-file", type=Path, metavar="FILE", help=f"logins of a file, one a line (or {_VARIABLE}, with spaces)"
    )
    parser.add_argument(
        "--max-side", type=int, default=1280, metavar="PX", help="larger photographs are reduced (1280)"
    )
    parser.add_argument(
        "--memory", type=int, default=1024, metavar="MB", help="for photographs and embeddings of all users (1024)"
    )


def run(args: argparse.Namespace) -> None:
    """Serve the page until interrupted. Raises InputError."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    flag_checks.at_least_one(args, ("max_side",))
    if args.memory < _LEAST_MEMORY:
        raise InputError(f"--memory {args.memory} is too little: give {_LEAST_MEMORY} MB at least")
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port {args.port} is no port: give one from 1 to 65535")
    if any(not re.fullmatch(r"[\w.-]+", name) for name in args.allow_host):
        raise InputError("--allow-host takes a name alone, as in --allow-host demo.example.org")
    auth = logins(args.auth or (), args.auth_file, os.environ.get(_VARIABLE))
    device = parse_device(args.device)
    chosen, setting = encoder_setting(args, device)
    keep_ratio: float | tuple[float, ...] | str = 0.5 if setting is None else setting.keep_ratio
    if args.keep_ratio is not None:
        keep_ratio = parse_keep_ratio(args.keep_ratio)
    if isinstance(keep_ratio, tuple):
        raise InputError("the demo starts with one --keep-ratio for all stages: give a number, or auto")
    host = args.host.strip("[]")
    _check_address(host, args.port or 0)

    from ..demo.api import Settings  # Gradio takes seconds to import
    from ..demo.app import Demo
    from ..demo.engine import Engine
    from ..demo.everything import find_options
    from ..demo.examples import examples
    from ..demo.guard import Hosts

    checkpoint = args.checkpoint or default_checkpoint()
    engine = Engine(checkpoint, device, chosen.dtype, chosen.native, args.memory * 2**20)
    chosen.say()
    photos = examples()
    everything = find_options(engine.sam, [photo.image for photo in photos])
    hosts = Hosts([*args.allow_host, host])
    demo = Demo(engine, Settings(keep_ratio, args.max_side, everything), photos, hosts)
    if not auth and (args.share or not _is_own(host)):
        print("warning: everybody who reaches this address can use the demo: give --auth NAME:PASSWORD to ask for a "
              "login", file=sys.stderr)  # fmt: skip
    try:
        demo.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=args.port, share=args.share,
            auth=auth or None,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"cannot listen on {host}: {' '.join(str(error).split())}") from None
    print(f"the demo is at {demo.blocks.share_url or demo.blocks.local_url} (Ctrl-C ends it)", flush=True)
    demo.blocks.block_thread()


def logins(flags: Sequence[str], file: Path | None, variable: str | None) -> list[tuple[str, str]]:
    """Names and passwords, of the flags, a file and the environment together. Raises InputError."""
    given = [("--auth", entry) for entry in flags]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise InputError(f"--auth-file {file} cannot be read: {reason}") from None
        given += [(f"--auth-file {file}", line.strip()) for line in lines if line.strip() and line[:1] != "#"]
        if len(given) == len(flags):
            raise InputError(f"--auth-file {file} names nobody: write NAME:PASSWORD, one a line")
    if variable:
        given += [(_VARIABLE, entry) for entry in variable.split()]
    found = []
    for source, entry in given:  # the entry itself is secret
        name, colon, password = entry.partition(":")
        if not (name and colon and password):
            raise InputError(f"{source} is NAME:PASSWORD" + (", one a line" if "file" in source else ""))
        found.append((name, password))
    return found


def _is_own(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `demo/app.py`."""
    parser = ArgumentParser(prog="app.py", description="A page on which clicks and boxes become masks.")
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
