"""Masks of prompts on embeddings that are there: the fast decoder, or SAM's own where a client has changed something.

Both take the tensors that `segment_anything.SamPredictor.predict_torch` makes, in any dtype.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.func import functional_call

from ..fast.native import enlarge
from ..fast.native.blocks import Kept
from ..fast.native.draw import PackedUpscaling, fits
from ..modeling import unchanged
from ..modeling.decode import draw, read_prompts

# One for each module that several predictors share; not attributes of the modules, which are copied and pickled.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # a hook may predict, too
_LOCKS_LOCK = threading.Lock()
# `get_dense_pe()` of a prompt encoder, with what it was computed of.
_POSITIONS: WeakKeyDictionary[nn.Module, tuple[Tensor, int, tuple[int, ...], Tensor]] = WeakKeyDictionary()
_UPSCALINGS: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()  # packed weights of mask decoders

Points = tuple[Tensor, Tensor]  # coordinates (B, N, 2) and labels (B, N)


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock of what must not run twice at a time in `module`."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(module, threading.RLock())


def dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's first floating-point parameter; `default` where it has none (an exported graph)."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), default)


def decoder_inputs(
    sam: Sam, features: Tensor, points: Points | None, boxes: Tensor | None, masks: Tensor | None, plain: bool
) -> dict[str, Any]:
    """The tensors that SAM's mask decoder takes, in its dtype.

    Args:
        features: (1, C, g, g), or whatever a decoder of another class takes.
        points, boxes, masks: what SAM's prompt encoder takes.
        plain: whether all of it is (`unchanged.is_plain`): then the image's position encoding may be a kept one.
    """
    sparse, dense, position = _embed(sam.prompt_encoder, points, boxes, masks, plain)
    dtype = dtype_of(sam.mask_decoder, torch.float32)
    if isinstance(features, Tensor):
        features = features.to(sparse.device, dtype)
    return {
        "image_embeddings": features,
        "image_pe": position.to(dtype),
        "sparse_prompt_embeddings": sparse.to(dtype),
        "dense_prompt_embeddings": dense.to(dtype),
    }


def decode_as_sam(sam: Sam, inputs: dict[str, Any], multimask_output: bool) -> tuple[Tensor, Tensor]:
    """Low-resolution logits (B, C, h, w) and predicted IoUs (B, C), float32, by the mask decoder's own forward."""
    low_res_masks, iou_predictions = sam.mask_decoder(**inputs, multimask_output=multimask_output)
    return low_res_masks.float(), iou_predictions.float()  # numpy has no bfloat16


def decode_fast(
    sam: Sam, inputs: dict[str, Any], multimask_output: bool, mask_inputs: int = 0
) -> tuple[Tensor, Tensor]:
    """The same where everything is plain (`unchanged.is_plain`), for one image and so many mask inputs."""
    image, kernels, iou_predictions = read_fast(sam, inputs, mask_inputs)
    outputs = slice(1, None) if multimask_output else slice(0, 1)
    low_res_masks = draw_masks(sam, image, kernels[:, outputs], inputs["image_embeddings"].shape[-2:])
    return low_res_masks.float(), iou_predictions[:, outputs].float()


def draw_masks(sam: Sam, image: Tensor, kernels: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`modeling.decode.draw`, in the C++ kernels where the encoder computes in them."""
    upscaling = sam.mask_decoder.output_upscaling
    if not _in_kernels(sam) or image.requires_grad or image.dtype != torch.float32 or not fits(upscaling):
        return draw(sam.mask_decoder, image, kernels, grid)
    with lock_of(upscaling):
        kept = _UPSCALINGS.setdefault(upscaling, Kept())
        packed = kept.get(upscaling, PackedUpscaling, "float32")
    return packed.draw(image, kernels, grid)


def read_fast(sam: Sam, inputs: dict[str, Any], mask_inputs: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What the fast decoder knows of prompts before it draws masks: see `SamPredictor.read_prompts`."""
    sparse, dense = inputs["sparse_prompt_embeddings"], inputs["dense_prompt_embeddings"]
    dense = dense if dense.ndim == 4 else dense[None]  # of a mask input (1, h, w)
    images = max(1, mask_inputs)  # each mask input makes an image of its own: for its prompt, for all, or all for one
    if len(sparse) == 1:
        sparse = sparse.expand(images, -1, -1)
    image, kernels, iou = read_prompts(
        sam.mask_decoder,
        sam.prompt_encoder,
        inputs["image_embeddings"].expand(images, -1, -1, -1),
        inputs["image_pe"].expand(images, -1, -1, -1),
        sparse.unflatten(0, (images, -1)),
        dense[:images],
    )
    return image.flatten(0, 1), kernels.flatten(0, 1), iou.flatten(0, 1)


def _in_kernels(sam: Sam) -> bool:
    return bool(getattr(sam.image_encoder, "kernels_dtype", ""))


def masks_of(
    sam: Sam, low_res: Tensor, input_size: tuple[int, int], original_size: tuple[int, int], return_logits: bool
) -> Tensor:
    """Masks (B, C, H, W), bool or float32 logits, of low-resolution logits (B, C, h, w).

    Where the C++ kernels are on, bool ones are computed only where a mask can be.
    """
    side = sam.image_encoder.img_size
    if (
        not return_logits
        and _in_kernels(sam)
        and sam.mask_threshold == 0.0
        and enlarge.fits(low_res, side, *input_size, *original_size)
        and unchanged.has_plain_postprocess(sam)
    ):
        return enlarge.masks(low_res, side, input_size, original_size)
    masks = sam.postprocess_masks(low_res, input_size, original_size)
    return masks if return_logits else masks > sam.mask_threshold


def _embed(
    encoder: PromptEncoder, points: Points | None, boxes: Tensor | None, masks: Tensor | None, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse embeddings (B, M, C), dense embeddings (B, C, g, g), and the dense position encoding (1, C, g, g)."""
    prompts = dict(points=points, boxes=boxes, masks=None if masks is None else masks.float())
    with lock_of(encoder):  # functional_call puts other weights in the module's place for the time
        if dtype_of(encoder, torch.float32) != torch.float32:
            # SAM multiplies float32 coordinates by this module's weights, which fails in bfloat16 (and in bfloat16
            # coordinates would be rounded to 4 px): compute with the weights as float32.
            weights = {name: value.float() for name, value in encoder.state_dict().items()}
            sparse, dense = functional_call(encoder, weights, (), prompts)
            named = {f"encoder.{name}": value for name, value in weights.items()}
            return sparse, dense, functional_call(_DensePosition(encoder), named, ())
        sparse, dense = encoder(**prompts)
        return sparse, dense, _position(encoder) if plain else encoder.get_dense_pe()


def _position(encoder: PromptEncoder) -> Tensor:
    """`encoder.get_dense_pe()` of a plain prompt encoder, computed again only after its weights have changed."""
    weights, size = encoder.pe_layer.positional_encoding_gaussian_matrix, tuple(encoder.image_embedding_size)
    if weights.is_inference():  # such a tensor does not say whether it has changed
        return encoder.get_dense_pe()
    kept = _POSITIONS.get(encoder)
    # The tensor itself, not its id: while it is held, no other one can take its place.
    if kept is None or kept[0] is not weights or kept[1:3] != (weights._version, size):
        kept = _POSITIONS[encoder] = (weights, weights._version, size, encoder.get_dense_pe())
    return kept[3]


class _DensePosition(nn.Module):
    """`get_dense_pe` as a forward, which `functional_call` takes."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self) -> Tensor:
        return self.encoder.get_dense_pe()
