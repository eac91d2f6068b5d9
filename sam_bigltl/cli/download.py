"""`sam-bigltl download`: SAM's published checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..convert.download import FILES, URL, download, is_published

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
    published = FILES[args.model]
    target = args.output / published.name
    if target.is_file():
        if is_published(target, published):
            print(f"{target} is there already, and is the published file")
            return
        print(f"{target} is there, but is not the published file: it is fetched again")
    download(f"{args.url.rstrip('/')}/{published.name}", target, published)
    print(f"wrote {target}")
