"""Evaluation of promptable segmentation on COCO-format data: `sam-bigltl eval` and `eval/coco_miou.py`."""

from sam_bigltl.evaluation.datasets import Annotation, CocoImage, check_image_files, load_coco
from sam_bigltl.evaluation.metrics import mask_iou, summarize
from sam_bigltl.evaluation.prompts import Clicker, box_xyxy
from sam_bigltl.evaluation.protocol import InstanceResult, evaluate

__all__ = [
    "Annotation",
    "Clicker",
    "CocoImage",
    "InstanceResult",
    "box_xyxy",
    "check_image_files",
    "evaluate",
    "load_coco",
    "mask_iou",
    "summarize",
]
