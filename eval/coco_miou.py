"""mIoU on COCO-format annotations: the same as `sam-bigltl eval`. See --help."""

from sam_bigltl.cli.evaluate import add_arguments, run
from sam_bigltl.errors import ArgumentParser, run_cli

if __name__ == "__main__":
    parser = ArgumentParser(prog="coco_miou.py")
    add_arguments(parser)
    run_cli("coco_miou.py", run, parser.parse_args())
