"""Segment three photographs with the shipped model, at three speeds: `make quickstart`."""

from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.quickstart import add_quickstart_arguments, run_quickstart

if __name__ == "__main__":
    parser = ArgumentParser(prog="quickstart", description=__doc__)
    add_quickstart_arguments(parser)
    run_cli("quickstart", run_quickstart, parser.parse_args())
