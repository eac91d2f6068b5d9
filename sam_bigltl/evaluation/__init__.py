"""Evaluation of promptable segmentation on COCO-format data: `sam-bigltl eval`, `eval/coco_miou.py`, `eval/lvis_miou.py`."""

from sam_bigltl.evaluation.datasets import Annotation, CocoImage, check_image_files, load_coco
from sam_bigltl.evaluation.metrics import mask_iou, summarize
from sam_bigltl.evaluation.prompts import Clicker, box_xyxy
from sam_bigltl.evaluation.protocols import PROTOCOLS, Protocol
from sam_bigltl.evaluation.results import InstanceResult
from sam_bigltl.evaluation.runner import Plan, evaluate, summary_rows

__all__ = [
    "PROTOCOLS",
    "Annotation",
    "Clicker",
    "CocoImage",
    "InstanceResult",
    "Plan",
    "Protocol",
    "box_xyxy",
    "check_image_files",
    "evaluate",
    "load_coco",
    "mask_iou",
    "summarize",
    "summary_rows",
]
