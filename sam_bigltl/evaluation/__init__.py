"""How good masks and labels are: mIoU of promptable segmentation on COCO-format data, AP, ImageNet accuracy.

May use `bench` and every room below it.
"""

from ..data.coco import Annotation, CocoImage, check_image_files, load_coco
from .metrics import mask_iou, summarize
from .prompts import Clicker, box_xyxy
from .protocols import PROTOCOLS, Protocol
from .results import InstanceResult
from .runner import Plan, evaluate, summary_rows

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
