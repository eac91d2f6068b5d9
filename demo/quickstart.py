"""Segment three photographs with the shipped model, at three speeds: `make quickstart`."""

from sam_bigltl.cli.quickstart import add_arguments, run
from sam_bigltl.errors import ArgumentParser, run_cli

if __name__ == "__main__":
    parser = ArgumentParser(prog="quickstart", description=__doc__)
    add_arguments(parser)
    run_cli("quickstart", run, parser.parse_args())
