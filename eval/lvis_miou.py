"""mIoU on LVIS v1 annotations, and LVIS AP with a detector's boxes: `coco_miou.py` with LVIS's rules. See --help."""

from sam_bigltl.cli.evaluate import add_arguments, run
from sam_bigltl.errors import ArgumentParser, run_cli

if __name__ == "__main__":
    parser = ArgumentParser(prog="lvis_miou.py")
    add_arguments(parser)
    parser.set_defaults(style="lvis")
    run_cli("lvis_miou.py", run, parser.parse_args())
