"""A Sam as ONNX files, encoder and decoder: for ONNX Runtime, and for places without torch.

The number of big tokens is part of the encoder's graph, so that all its shapes but the batch are fixed: one export has
one keep_ratio. The decoder has the inputs of `segment_anything`'s own ONNX model, for any number of prompts and points.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from onnxscript import opset18 as op
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.export import Dim

from ..errors import InputError
from ..modeling import unchanged
from ..modeling.decode import embed_prompts, read_prompts
from ..modeling.encoder import BigLittleEncoder
from .fingerprint import fingerprint
from .onnx_files import DECODER, ENCODER, METADATA_KEY, About, file_of
from .sam import describe

# Inputs and outputs of the graphs.
NAMES = {
    ENCODER: (["images"], ["image_embeddings"]),
    DECODER: (
        ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"],
        ["low_res_masks", "iou_predictions"],
    ),
}


class DecoderGraph(nn.Module):
    """The prompt encoder and the mask decoder of a Sam."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Masks of P prompts on one image.

        Args:
            image_embeddings: (1, C, g, g).
            point_coords: (P, N, 2) x, y in the model's frame. A box is two points.
            point_labels: (P, N) int64: 1 object, 0 background, 2 and 3 the corners of a box, -1 no point. SAM ends
                points without a box with one of label -1.
            mask_input: (P, 1, 4 g, 4 g) logits, anything where has_mask_input is 0.
            has_mask_input: (1,), 1 or 0.

        Returns:
            logits (P, 4, 4 g, 4 g), the single mask first, and predicted IoUs (P, 4).
        """  # fmt: skip
        prompts, (gh, gw) = self.prompt_encoder, image_embeddings.shape[-2:]
        sparse = embed_prompts(prompts, point_coords, point_labels)
        has_mask = has_mask_input.view(1, 1, 1, 1)
        dense = has_mask * prompts.mask_downscaling(mask_input)
        dense = dense + (1 - has_mask) * prompts.no_mask_embed.weight.view(1, -1, 1, 1)  # (P, C, g, g)
        # Each prompt has an image of its own, because it may have a mask of its own.
        embeddings, position = (
            x.expand(len(dense), -1, -1, -1) for x in (image_embeddings, prompts.get_dense_pe())
        )  # fmt: skip
        image, kernels, iou = read_prompts(
            self.mask_decoder, prompts, embeddings, position, sparse[:, None], dense
        )  # fmt: skip
        # Not `decode.draw`, whose parts are as many as the prompts: their number would be fixed.
        upscaled = self.mask_decoder.output_upscaling(image[:, 0].transpose(1, 2).unflatten(2, (gh, gw)))
        return (kernels[:, 0] @ upscaled.flatten(2)).unflatten(2, (4 * gh, 4 * gw)), iou[:, 0]


class EncoderGraph(nn.Module):
    """The encoder as a graph: images (B, 3, S, S) -> embeddings (B, C, g, g)."""

    def __init__(self, encoder: BigLittleEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.routed(self.encoder.embed_patches(images))[0]


def fixed_encoder(encoder: BigLittleEncoder, keep_ratio: float) -> BigLittleEncoder:
    """A copy for tracing at one keep_ratio. Raises InputError where its shapes would differ from image to image."""
    encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
    encoder.keep_ratio = keep_ratio
    if encoder.keep_ratio == "auto":
        raise InputError("keep_ratio 'auto' has another number of tokens for every image: export a number")
    encoder._prepare()  # index maps made while it is traced would not be tensors
    return encoder


def export_onnx(sam: Sam, folder: str | Path, keep_ratio: float = 1.0, batch: int | None = None) -> list[Path]:
    """Write `encoder.onnx` and `decoder.onnx` for `OnnxSamPredictor`, both or none.

    Args:
        sam: float32 model with an encoder of this project.
        folder: made if there is none. Weights above 2 GB go to files of their own beside the graphs.
        keep_ratio: share of the tokens on the big path.
        batch: images that the encoder takes at once, for runtimes that need fixed shapes; None for any number.

    Returns:
        the files written.

    Raises:
        InputError: a keep_ratio that cannot be exported, a folder that cannot be written, or a prompt encoder or mask
            decoder in which something is not SAM's own.
    """
    unchanged.check_plain(sam, "exported")
    folder = Path(folder)
    sam = copy.deepcopy(sam).cpu().eval().requires_grad_(False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as partial:
            for part, traced in ((ENCODER, encoder_program(sam, keep_ratio, batch)), (DECODER, decoder_program(sam))):
                program = to_onnx(traced, part)
                about = About(
                    part, describe(sam.image_encoder.config), float(keep_ratio), sam.image_encoder.img_size,
                    tuple(sam.pixel_mean.flatten().tolist()), tuple(sam.pixel_std.flatten().tolist()),
                    float(sam.mask_threshold), fingerprint(sam),
                )  # fmt: skip
                program.model.metadata_props[METADATA_KEY] = about.to_json()
                program.save(file_of(Path(partial), part))
            return [path.replace(folder / path.name) for path in sorted(Path(partial).iterdir())]
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None


def encoder_program(sam: Sam, keep_ratio: float, batch: int | None = None) -> torch.export.ExportedProgram:
    """The encoder at one keep_ratio: images (B, 3, S, S), normalised and padded -> embeddings (B, C, g, g).

    B is `batch`, or any number where that is None.
    """
    if batch is not None and batch < 1:
        raise InputError(f"the batch is at least 1, not {batch}")
    encoder = fixed_encoder(sam.image_encoder, keep_ratio)
    images = torch.zeros(batch or 2, 3, encoder.img_size, encoder.img_size)  # an example of batch 1 would fix the batch
    return _traced(EncoderGraph(encoder), (images,), ({} if batch else {0: Dim.DYNAMIC},))


def decoder_program(sam: Sam) -> torch.export.ExportedProgram:
    """`DecoderGraph`, for any number of prompts and points."""
    channels, grid = sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size
    example = (
        torch.zeros(1, channels, *grid),
        torch.zeros(3, 2, 2),
        torch.ones(3, 2, dtype=torch.int64),
        torch.zeros(3, 1, *sam.prompt_encoder.mask_input_size),
        torch.ones(1),
    )
    each = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return _traced(DecoderGraph(sam), example, ({}, each, each, {0: Dim.DYNAMIC}, {}))


@torch.no_grad()
def _traced(module: nn.Module, example: tuple[Tensor, ...], dynamic: tuple[dict, ...]) -> torch.export.ExportedProgram:
    if torch.__version__ < "2.8":  # 2.6 fixes the batch, and 2.7's decoder fails where there are no points
        raise InputError(f"exporting needs torch 2.8 or later, and this is {torch.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        # Traced without `strict`, a program at keep_ratio 1.0 takes one batch only.
        return torch.export.export(module.eval(), example, dynamic_shapes=dynamic, strict=True)


def to_onnx(
    program: torch.export.ExportedProgram, part: str, names: tuple[list[str], list[str]] | None = None
) -> torch.onnx.ONNXProgram:
    """What `encoder_program` or `decoder_program` returned, as ONNX; `names` are of inputs and outputs, if others."""
    inputs, outputs = names or NAMES[part]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False,
            custom_translation_table=_TRANSLATIONS,
        )  # fmt: skip
    assert exported is not None  # with `dynamo` it is a program
    return exported


def _stable_sort(self, stable=None, dim: int = -1, descending: bool = False):  # an ONNX function
    """aten::sort.stable, which torch's exporter lacks: TopK of all, whose equal values come by index as well."""
    index: Any = op.Constant(value_ints=[dim])
    count = op.Gather(op.Shape(self), index)
    return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)


_TRANSLATIONS: dict[Callable, Callable] = {torch.ops.aten.sort.stable: _stable_sort}
