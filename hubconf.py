"""Models for `torch.hub`: `torch.hub.load(FOLDER, "bigltl_mini", source="local")` is a `segment_anything` Sam.

Every key of `sam_bigltl.sam_model_registry` is an entry.
"""

from functools import partial as _partial
from pathlib import Path as _Path

from sam_bigltl.errors import InputError as _InputError
from sam_bigltl.registry import sam_model_registry as _registry

dependencies = ["torch", "torchvision", "segment_anything", "safetensors"]


def _load(key, pretrained=True, checkpoint=None):
    """A `segment_anything` Sam in eval mode, for `sam_bigltl.SamPredictor` or `segment_anything`'s own.

    Args:
        pretrained: with the weights that the repository ships; False gives random ones.
        checkpoint: a file of weights in their place, such as SAM's published `.pth`, see `sam-bigltl download`.
    """
    if checkpoint is None and pretrained:
        checkpoint = _Path(__file__).resolve().parent / "checkpoints" / f"{key}.safetensors"
        if not checkpoint.is_file():
            raise _InputError(
                f"no weights are shipped for {key}: give checkpoint=PATH, or pretrained=False for random ones"
            )
    return _registry[key](checkpoint=checkpoint)


for _key in _registry:
    globals()[_key] = _partial(_load, _key)
    globals()[_key].__doc__ = _load.__doc__
