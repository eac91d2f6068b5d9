"""SAM's predictor, with batches of images, saved embeddings, any dtype, and float32 coordinates.

Every method, argument, shape and result is that of `segment_anything.SamPredictor`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from os import PathLike
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import MaskDecoder, Sam
from torch.func import functional_call

from ..errors import InputError
from ..modeling.decode import draw, read_prompts
from ..modeling.routing import Route
from . import embeddings, prompt_checks
from .focus import focus_on
from .resize import ResizeLongestSideFloat32

# Image tokens of all prompts that a CPU decodes at once: 6 prompts at 1024 px, whose float32 tokens take 25 MB. glibc
# gives blocks above 32 MB back to the system each time, and new ones cost more than the arithmetic: 64 boxes took 2.2
# to 3.4 s at once, 1.6 s by sixes (2 cores).
_TOKENS = 6 * 64**2

# One for each module that several predictors share; not attributes of the modules, which are copied and pickled.
_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.Lock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class SamPredictor(segment_anything.SamPredictor):
    """Embeds an image once, then predicts masks for any number of prompts.

    Beyond SAM's predictor: `set_images` and `predict(..., image_index=i)`, `save_embedding` and `load_embedding`,
    `route`. The encoder, or the whole model, may be bfloat16; masks, scores and logits are float32 (or bool) always.
    Input that cannot be used raises InputError, a ValueError of one line.

    Threads: predictors of their own may share one model. The encoder runs for one of them at a time, prompts are
    decoded in parallel, and masks and `route` are those of calls one after the other. Not safe: one predictor in two
    threads, and what changes the model while another thread uses it. That includes `keep_ratio`, which belongs to the
    model: who needs several sets it and calls `set_image` under a lock, as `sam_bigltl.demo.engine` does.
    """

    def __init__(self, sam_model: Sam) -> None:
        super().__init__(sam_model)
        self.transform = ResizeLongestSideFloat32(sam_model.image_encoder.img_size)
        self._position: tuple[torch.Tensor, int, torch.Tensor] | None = None  # see `_dense_position`

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        keep_ratio: float | tuple[float, ...] | str | None = None,
        device: str | torch.device | None = None,
        **download: Any,
    ) -> SamPredictor:
        """A predictor of a folder or of a Hugging Face repository, see `sam_bigltl.hub.from_pretrained`."""
        from ..convert.hub import from_pretrained

        return cls(from_pretrained(name, keep_ratio=keep_ratio, device=device, **download))

    @property
    def route(self) -> Route | None:
        """The `Route` that the encoder took for the images now set, or None (plain encoder, loaded embedding)."""
        return self._route

    def reset_image(self) -> None:
        """Forget the images that are set."""
        super().reset_image()
        self._route: Route | None = None
        self._sizes: list[tuple[tuple[int, int], tuple[int, int]]] = []  # (original, input) of every image

    def set_image(
        self, image: np.ndarray, image_format: str = "RGB", *, boxes: Sequence[Sequence[float]] | None = None
    ) -> None:
        """Embed `image`, uint8 of shape (H, W, 3), whose channels are in the order `image_format`, RGB or BGR.

        `boxes` (n, 4), x0, y0, x1, y1 in pixels, are regions that will be prompted: below keep_ratio 1.0 the big tokens
        are sought there first (`sam_bigltl.focus`). It pays for one object an encoding, not for all of an image at
        once.
        """
        self.set_images([image], image_format, boxes=None if boxes is None else [boxes])

    def set_images(
        self,
        images: Sequence[np.ndarray],
        image_format: str = "RGB",
        *,
        boxes: Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> None:
        """Embed several images, of any sizes, in one call of the encoder.

        `predict(..., image_index=i)` then answers for `images[i]`; `boxes[i]` are of that image, as in `set_image`.
        """
        if not isinstance(images, (Sequence, np.ndarray)):
            raise InputError(f"set_images takes a list of images, not {type(images).__name__}")
        images = list(np.atleast_1d(images)) if isinstance(images, np.ndarray) else images
        if len(images) == 0:
            raise InputError("set_images needs at least one image")
        for image in images:
            prompt_checks.check_image(image, image_format)
        if image_format != self.model.image_format:
            images = [image[..., ::-1] for image in images]
        resized = [torch.as_tensor(self.transform.apply_image(image), device=self.device) for image in images]
        resized = [image.permute(2, 0, 1).contiguous()[None] for image in resized]  # 1 x 3 x h x w each
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        self._encode(resized, sizes, None if boxes is None else focus_on(boxes, sizes, self.model.image_encoder))

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, ...]) -> None:
        """Embed an image of shape (1, 3, h, w) that `ResizeLongestSide` has already resized.

        `original_image_size` is its (H, W) before that. Several images that share both sizes may come as one batch.
        """
        side = self.model.image_encoder.img_size
        prompt_checks.check_tensor(transformed_image, "the transformed image")
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or max(shape[2:]) != side:
            raise InputError(f"set_torch_image needs shape (1, 3, h, w) with a long side of {side}, not {shape}")
        original_size = prompt_checks.check_size(original_image_size)
        self._encode(list(transformed_image.split(1)), [original_size] * shape[0])

    @torch.no_grad()
    def _encode(
        self, images: list[torch.Tensor], original_sizes: list[tuple[int, int]], focus: torch.Tensor | None = None
    ) -> None:
        self.reset_image()
        encoder = self.model.image_encoder
        batch = torch.cat([self.model.preprocess(image) for image in images])  # B x 3 x img_size x img_size
        with _lock_of(encoder):  # focus and route are the encoder's own
            if focus is not None:
                encoder.focus = focus
            try:
                features = encoder(batch.to(_dtype(encoder, batch.dtype)))
            finally:
                if focus is not None:
                    encoder.focus = None
            route = getattr(encoder, "last_route", None)
        input_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        self._set(features, list(zip(original_sizes, input_sizes, strict=True)))
        self._route = route

    def _set(self, features: torch.Tensor, sizes: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
        self.features = features.to(self.device, _dtype(self.model.mask_decoder, features.dtype))
        self._sizes = sizes
        self.original_size, self.input_size = sizes[0]
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        image_index: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt, of the image that is set.

        Args:
            point_coords: (N, 2), x and y in pixels of the image.
            point_labels: (N,), 1 for object, 0 for background, -1 for a point to ignore.
            box: (4,), x0, y0, x1, y1 in pixels of the image.
            mask_input: (1, h, w) logits that an earlier call returned third; h = w = 256 at 1024 px.
            multimask_output: three masks for an ambiguous prompt rather than one.
            return_logits: logits (float32) rather than bool masks.
            image_index: which image of `set_images`.

        Returns:
            Masks (C, H, W) at the size of the image, predicted IoUs (C,), and low-resolution logits (C, h, w).

        Raises:
            InputError: a prompt that cannot be used. RuntimeError: no image is set.
        """
        original_size, _ = self._image_sizes(image_index)
        coords, labels, boxes, masks = None, None, None, None
        if point_coords is not None:
            points, point_labels = prompt_checks.check_points(point_coords, point_labels)
            coords = self._tensor(self.transform.apply_coords(points, original_size), torch.float32)
            labels = self._tensor(point_labels, torch.int32)
        if box is not None:
            box = prompt_checks.check_box(box, original_size)
            boxes = self._tensor(self.transform.apply_boxes(box, original_size)[0], torch.float32)
        if mask_input is not None:
            mask_input = prompt_checks.check_mask_input(mask_input, self.model.prompt_encoder.mask_input_size)
            masks = self._tensor(mask_input, torch.float32)
        outputs = self.predict_torch(
            coords, labels, boxes, masks, multimask_output, return_logits, image_index=image_index
        )
        found, iou_predictions, low_res_masks = (output[0].cpu().numpy() for output in outputs)
        return found, iou_predictions, low_res_masks

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None = None,
        mask_input: torch.Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        image_index: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks for B prompts at once, given as tensors in the model's frame (`transform.apply_coords_torch`).

        Args:
            point_coords: (B, N, 2). point_labels: (B, N). boxes: (B, 4). mask_input: (B, 1, h, w).
            multimask_output, return_logits, image_index: as in `predict`.

        Returns:
            Masks (B, C, H, W), predicted IoUs (B, C), and low-resolution logits (B, C, h, w).
        """
        original_size, input_size = self._image_sizes(image_index)
        mask_size = self.model.prompt_encoder.mask_input_size
        named = {"point_coords": point_coords, "point_labels": point_labels, "boxes": boxes, "mask_input": mask_input}
        for name, values in named.items():
            if values is not None:
                prompt_checks.check_tensor(values, name)
        prompt_checks.check_prompts(point_coords, point_labels, boxes, mask_input, mask_size)
        prompts = (point_coords, point_labels, boxes, mask_input)
        count = max((len(part) for part in prompts if part is not None), default=1)
        step = prompt_checks.at_once(self.prompts_at_once(count), 0 if point_coords is None else point_coords.shape[1])
        outputs = []
        for start in range(0, count, step):
            coords, labels, corners, given = (None if part is None else part[start : start + step] for part in prompts)
            low_res, iou = self._decode(coords, labels, corners, given, multimask_output, image_index)
            masks = self.model.postprocess_masks(low_res, input_size, original_size)
            outputs.append((masks if return_logits else masks > self.model.mask_threshold, iou, low_res))
        masks, iou, low_res = outputs[0] if len(outputs) == 1 else (torch.cat(parts) for parts in zip(*outputs))
        return masks, iou, low_res

    def prompts_at_once(self, count: int) -> int:
        """How many of `count` prompts to decode together: what keeps a CPU's allocator to blocks that it uses again."""
        grid = self.features.shape[-2] * self.features.shape[-1]
        return max(1, count if self.device.type != "cpu" else min(count, _TOKENS // grid))

    def _decode(
        self,
        point_coords: torch.Tensor | None,
        point_labels: torch.Tensor | None,
        boxes: torch.Tensor | None,
        mask_input: torch.Tensor | None,
        multimask_output: bool,
        image_index: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution logits (B, C, h, w) and predicted IoUs (B, C), float32, of the prompts of `predict_torch`."""
        points = None if point_coords is None or point_labels is None else (point_coords, point_labels)
        decoder = self.model.mask_decoder
        if type(decoder) is MaskDecoder:
            image, kernels, iou_predictions = self.read_prompts(points, boxes, mask_input, image_index)
            outputs = slice(1, None) if multimask_output else slice(0, 1)
            low_res_masks = draw(decoder, image, kernels[:, outputs], self.features.shape[-2:])
            iou_predictions = iou_predictions[:, outputs]
        else:  # one of another class has its own way
            low_res_masks, iou_predictions = decoder(
                **self._decoder_inputs(points, boxes, mask_input, image_index), multimask_output=multimask_output
            )
        return low_res_masks.float(), iou_predictions.float()  # numpy has no bfloat16

    @torch.no_grad()
    def read_prompts(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        image_index: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `predict_torch` knows of its prompts before it draws masks, so that some need not be drawn.

        Args:
            points: coordinates (B, N, 2) and labels (B, N). boxes, masks, image_index: as in `predict_torch`.

        Returns:
            image tokens (B, gh * gw, C) and mask kernels (B, 4, C / 8), which `sam_bigltl.decode.draw` takes, and the
            predicted IoUs (B, 4). Output 0 is the single mask, the others are the three of an ambiguous prompt.
        """
        inputs = self._decoder_inputs(points, boxes, masks, image_index)
        dense = inputs["dense_prompt_embeddings"]
        images = 1 if masks is None else len(dense)  # each mask input makes an image of its own
        image, kernels, iou = read_prompts(
            self.model.mask_decoder,
            self.model.prompt_encoder,
            inputs["image_embeddings"].expand(images, -1, -1, -1),
            inputs["image_pe"].expand(images, -1, -1, -1),
            inputs["sparse_prompt_embeddings"].unflatten(0, (images, -1)),
            dense[:images],
        )
        return image.flatten(0, 1), kernels.flatten(0, 1), iou.flatten(0, 1)

    def _decoder_inputs(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
        image_index: int,
    ) -> dict[str, torch.Tensor]:
        """The tensors that SAM's mask decoder takes, in its dtype."""
        sparse, dense, dense_pe = self._embed_prompts(points, boxes, masks)
        dtype = _dtype(self.model.mask_decoder, self.features.dtype)
        return {
            "image_embeddings": self.features[image_index : image_index + 1].to(dtype),
            "image_pe": dense_pe.to(dtype),
            "sparse_prompt_embeddings": sparse.to(dtype),
            "dense_prompt_embeddings": dense.to(dtype),
        }

    def _embed_prompts(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sparse embeddings (B, M, C), dense embeddings (B, C, g, g), and the dense position encoding (1, C, g, g)."""
        encoder = self.model.prompt_encoder
        masks = None if masks is None else masks.float()
        with _lock_of(encoder):  # functional_call puts other weights in the module's place for the time
            if _dtype(encoder, torch.float32) != torch.float32:
                # SAM multiplies float32 coordinates by this module's weights, which fails in bfloat16 (and in bfloat16
                # coordinates would be rounded to 4 px): compute with the weights as float32.
                weights = {name: value.float() for name, value in encoder.state_dict().items()}
                sparse, dense = functional_call(encoder, weights, (points, boxes, masks))
                pe = encoder.pe_layer
                pe_weights = {name: value.float() for name, value in pe.state_dict().items()}
                dense_pe = functional_call(pe, pe_weights, (encoder.image_embedding_size,))[None]
                return sparse, dense, dense_pe
        return *encoder(points=points, boxes=boxes, masks=masks), self._dense_position()

    def _dense_position(self) -> torch.Tensor:
        """`prompt_encoder.get_dense_pe()`, computed again only after its weights have changed."""
        weights = self.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        if weights.is_inference():  # such a tensor does not say whether it has changed
            return self.model.prompt_encoder.get_dense_pe()
        # The tensor itself, not its id: while it is held, no other one can take its place.
        if self._position is None or self._position[0] is not weights or self._position[1] != weights._version:
            self._position = (weights, weights._version, self.model.prompt_encoder.get_dense_pe())
        return self._position[2]

    def get_image_embedding(self) -> torch.Tensor:
        """The embedding of the image that is set, (1, 256, g, g), or (B, 256, g, g) after `set_images` of B."""
        return super().get_image_embedding()

    def get_embedding(self) -> embeddings.Embedding:
        """Everything that setting the images computed, for `set_embedding`."""
        self._image_sizes(0)
        return embeddings.Embedding(
            self.features, [self._image_sizes(i) for i in range(len(self.features))], self._route
        )

    def set_embedding(self, embedding: embeddings.Embedding) -> None:
        """Set the images that an `embedding` of the same model is of, without running the encoder."""
        self.reset_image()
        self._set(embedding.features, embedding.sizes)
        self._route = embedding.route

    def save_embedding(self, path: str | PathLike[str]) -> None:
        """Write the embedding of the images that are set to a safetensors file, for `load_embedding`."""
        embedding = self.get_embedding()
        embeddings.save(path, self.model, embedding.features, embedding.sizes)

    def load_embedding(self, path: str | PathLike[str]) -> None:
        """Set the images whose embedding `save_embedding` wrote, without running the encoder.

        Raises InputError when the file is no such file, or comes from a model with other encoder weights.
        """
        features, sizes = embeddings.load(path, self.model)
        self.reset_image()
        self._set(features, sizes)

    def _image_sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(H, W) of the original and of the resized image."""
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")
        prompt_checks.check_image_index(index, len(self.features))
        # The first image goes by SAM's own attributes, which pipelines that cache embeddings assign.
        return self._sizes[index] if index > 0 else (self.original_size, self.input_size)

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """`values` with a batch dimension, on the device; the cast comes first, because MPS has no float64."""
        return torch.as_tensor(np.ascontiguousarray(values)).to(dtype).to(self.device)[None]


def _dtype(module: torch.nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's first floating-point parameter; `default` where it has none (an exported graph)."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), default)


def _lock_of(module: torch.nn.Module) -> threading.Lock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(module, threading.Lock())
