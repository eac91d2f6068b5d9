"""SAM's predictor, with batches of images, saved embeddings, any dtype, and float32 coordinates.

Every method, argument, shape and result is that of `segment_anything.SamPredictor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, cast

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import Sam

from ..errors import InputError
from ..modeling import unchanged
from ..modeling.routing import Route
from . import decoding, embeddings, prompt_checks
from .focus import focus_on
from .resize import ResizeLongestSideFloat32

# Image tokens of all prompts that a CPU decodes at once: 6 prompts at 1024 px, whose float32 tokens take 25 MB. glibc
# gives blocks above 32 MB back to the system each time, and new ones cost more than the arithmetic: 64 boxes took 2.2
# to 3.4 s at once, 1.6 s by sixes (2 cores).
_TOKENS = 6 * 64**2


class SamPredictor(segment_anything.SamPredictor):
    """Embeds an image once, then predicts masks for any number of prompts.

    Beyond SAM's predictor: `set_images` and `predict(..., image_index=i)`, `save_embedding` and `load_embedding`,
    `route`. The encoder, or the whole model, may be bfloat16; masks, scores and logits are float32 (or bool) always.
    It answers what SAM answers; input that cannot be used raises InputError, a ValueError of one line.

    Prompts are decoded in a faster way than SAM's while the prompt encoder, the mask decoder and `postprocess_masks`
    are SAM's own. With a hook, wrapper, subclass or method of yours in them, they are called as SAM calls them, and
    subclasses of this predictor may override what they could override in SAM's.

    Args:
        sam_model: a `segment_anything` Sam, with an encoder of this project or any other.
        strict: refuse, too, what SAM answers but is most likely a mistake: boxes without area or outside the image,
            labels other than 1, 0 and -1, NaN, images of floats.

    Threads: predictors of their own may share one model. The encoder runs for one of them at a time, prompts are
    decoded in parallel, and masks and `route` are those of calls one after the other. Not safe: one predictor in two
    threads, and what changes the model while another thread uses it. That includes `keep_ratio`, which belongs to the
    model: who needs several sets it and calls `set_image` under a lock, as `sam_bigltl.demo.engine` does.
    """

    # Here for subclasses whose `__init__` or `reset_image` is their own from beginning to end.
    strict = False
    is_image_set = False
    features: Any = None
    _route: Route | None = None
    _sizes: Sequence[tuple[tuple[int, int], tuple[int, int]]] = ()  # (original, input) of every image
    _focus: torch.Tensor | None = None  # of the image that is being set

    def __init__(self, sam_model: Sam, *, strict: bool = False) -> None:
        super().__init__(sam_model)
        self.strict = strict
        self.transform = ResizeLongestSideFloat32(sam_model.image_encoder.img_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        keep_ratio: float | tuple[float, ...] | str | None = None,
        device: str | torch.device | None = None,
        tuned: bool = False,
        **download: Any,
    ) -> SamPredictor:
        """A predictor of a folder or of a Hugging Face repository, see `sam_bigltl.hub.from_pretrained`."""
        from ..convert.hub import from_pretrained

        return cls(from_pretrained(name, keep_ratio=keep_ratio, device=device, tuned=tuned, **download))

    @property
    def route(self) -> Route | None:
        """The `Route` that the encoder took for the images now set, or None (plain encoder, loaded embedding)."""
        return self._route

    def reset_image(self) -> None:
        """Forget the images that are set."""
        super().reset_image()
        self._route, self._sizes = None, ()

    def set_image(
        self, image: np.ndarray, image_format: str = "RGB", *, boxes: Sequence[Sequence[float]] | None = None
    ) -> None:
        """Embed `image`, uint8 of shape (H, W, 3), whose channels are in the order `image_format`, RGB or BGR.

        `boxes` (n, 4), x0, y0, x1, y1 in pixels, are regions that will be prompted: below keep_ratio 1.0 the big tokens
        are sought there first (`sam_bigltl.focus`). It pays for one object an encoding, not for all of an image at
        once.
        """
        resized, size = self._resized(image, image_format)
        self._focus = None if boxes is None else focus_on([boxes], [size], self.model.image_encoder)
        try:
            self.set_torch_image(resized, size)
        finally:
            self._focus = None

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
        resized, sizes = zip(*[self._resized(image, image_format) for image in images], strict=True)
        focus = None if boxes is None else focus_on(boxes, sizes, self.model.image_encoder)
        with torch.no_grad():
            self.reset_image()
            batch = torch.cat([self.model.preprocess(image) for image in resized])  # B x 3 x img_size x img_size
            input_sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
            self.encode(batch, list(zip(sizes, input_sizes, strict=True)), focus)

    def _resized(self, image: np.ndarray, image_format: str) -> tuple[torch.Tensor, tuple[int, int]]:
        """An image (H, W, 3) as `set_torch_image` takes it, (1, 3, h, w), and its (H, W)."""
        prompt_checks.check_image(image, image_format, self.strict)
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        try:
            resized = self.transform.apply_image(image)
        except TypeError:
            if image.dtype == np.uint8:
                raise
            raise InputError("this torchvision takes no images of floats: make it uint8, from 0 to 255") from None
        tensor = torch.as_tensor(resized, device=self.device).permute(2, 0, 1).contiguous()[None]
        return tensor, (image.shape[0], image.shape[1])

    @torch.no_grad()
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
        self.reset_image()
        batch = self.model.preprocess(transformed_image)
        self.encode(batch, [(original_size, (shape[2], shape[3]))] * shape[0], self._focus)

    def encode(
        self, batch: torch.Tensor, sizes: embeddings.Sizes, focus: torch.Tensor | None = None
    ) -> None:  # fmt: skip
        """Set images (B, 3, S, S) that are normalized and padded, of these (original, input) sizes (H, W)."""
        encoder = self.model.image_encoder
        with decoding.lock_of(encoder):  # focus and route are the encoder's own
            if focus is not None:
                encoder.focus = focus
            try:
                # C++ kernels take float32, whatever the weights are kept in.
                in_kernels = getattr(encoder, "kernels_dtype", "")
                features = encoder(batch if in_kernels else batch.to(decoding.dtype_of(encoder, batch.dtype)))
            finally:
                if focus is not None:
                    encoder.focus = None
            route = getattr(encoder, "last_route", None)
        self._set(features, sizes, route)

    def _set(
        self, features: Any, sizes: list[tuple[tuple[int, int], tuple[int, int]]], route: Route | None = None
    ) -> None:
        if isinstance(features, torch.Tensor):  # an encoder of another class may give more, for a decoder of its own
            features = features.to(self.device, decoding.dtype_of(self.model.mask_decoder, features.dtype))
        self.features, self._sizes, self._route = features, sizes, route
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
            box: (4,), (1, 4) or two corners (2, 2): x0, y0, x1, y1 in pixels of the image.
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
            points, point_labels = prompt_checks.check_points(point_coords, point_labels, self.strict)
            coords = self._tensor(self.transform.apply_coords(points, original_size), torch.float32)
            labels = self._tensor(point_labels, torch.int32)
        if box is not None:
            box = prompt_checks.check_box(box, original_size, self.strict)
            boxes = self._tensor(self.transform.apply_boxes(box, original_size), torch.float32)  # (1, 1, 4), as SAM's
        if mask_input is not None:
            size = self.model.prompt_encoder.mask_input_size if self.strict else None  # else `predict_torch` sees to it
            mask_input = prompt_checks.check_mask_input(mask_input, size)
            masks = self._tensor(mask_input, torch.float32)
        # A subclass may have SAM's `predict_torch`, which knows of one image.
        which = {"image_index": image_index} if image_index else {}
        outputs = self.predict_torch(
            coords, labels, boxes, masks, multimask_output, return_logits=return_logits, **which
        )
        found, iou_predictions, low_res_masks = (output[0].detach().cpu().numpy() for output in outputs)
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
            point_coords: (B, N, 2). point_labels: (B, N). boxes: (B, 4). mask_input: (B, 1, h, w), or (1, 1, h, w) for
                all of them.
            multimask_output, return_logits, image_index: as in `predict`.

        Returns:
            Masks (B, C, H, W), predicted IoUs (B, C), and low-resolution logits (B, C, h, w).
        """
        original_size, input_size = self._image_sizes(image_index)
        prompts = (point_coords, point_labels, boxes, mask_input)
        encoder = self.model.prompt_encoder
        if self.strict:
            self._check_tensors(*prompts)
            prompt_checks.check_prompts(*prompts, encoder.mask_input_size)
        plain_prompts, plain = unchanged.plain_parts(self.model)
        if plain_prompts:
            self._check_tensors(*prompts)
            prompts = prompt_checks.prompts_of_sam(*prompts, encoder.mask_input_size)
        elif point_coords is not None:  # another prompt encoder may take other shapes
            prompt_checks.check_count(point_coords.shape[-2])
        features = self.embedding_of(image_index)
        if not (plain_prompts and plain and isinstance(features, torch.Tensor) and len(features) == 1):
            low_res, iou = self._decode(*prompts, multimask_output, features, False)
            return self._finish(low_res, iou, input_size, original_size, return_logits)
        count = max((len(part) for part in prompts if part is not None), default=1)
        points = 0 if prompts[0] is None else prompts[0].shape[1]
        step = prompt_checks.at_once(self.prompts_at_once(count), points)
        outputs = []
        for start in range(0, count, step):
            # A single point, box or mask is for all of the others.
            rows = slice(start, start + step)
            coords, labels, corners, given = (x if x is None or len(x) < count else x[rows] for x in prompts)
            low_res, iou = self._decode(coords, labels, corners, given, multimask_output, features, True)
            outputs.append(self._finish(low_res, iou, input_size, original_size, return_logits))
        masks, iou, low_res = outputs[0] if len(outputs) == 1 else (torch.cat(parts) for parts in zip(*outputs))
        return masks, iou, low_res

    def _finish(
        self,
        low_res: torch.Tensor,
        iou: torch.Tensor,
        input_size: tuple[int, int],
        original_size: tuple[int, int],
        return_logits: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return decoding.masks_of(self.model, low_res, input_size, original_size, return_logits), iou, low_res

    def _check_tensors(self, *prompts: torch.Tensor | None) -> None:
        for name, values in zip(("point_coords", "point_labels", "boxes", "mask_input"), prompts, strict=True):
            if values is not None:
                prompt_checks.check_tensor(values, name, self.strict or name == "mask_input")

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
        features: torch.Tensor,
        plain: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution logits (B, C, h, w) and predicted IoUs (B, C), float32, of the prompts of `predict_torch`."""
        points = None if point_coords is None else (point_coords, cast(torch.Tensor, point_labels))
        inputs = decoding.decoder_inputs(self.model, features, points, boxes, mask_input, plain)
        if not plain:
            return decoding.decode_as_sam(self.model, inputs, multimask_output)
        given = 0 if mask_input is None else len(mask_input)
        return decoding.decode_fast(self.model, inputs, multimask_output, given)

    @torch.no_grad()
    def read_prompts(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        image_index: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the fast decoder knows of prompts before it draws masks, so that some need not be drawn.

        Only for models that `unchanged.is_plain` says yes to.

        Args:
            points: coordinates (B, N, 2) and labels (B, N). boxes, masks, image_index: as in `predict_torch`.

        Returns:
            image tokens (B, gh * gw, C) and mask kernels (B, 4, C / 8), which `sam_bigltl.decode.draw` takes, and the
            predicted IoUs (B, 4). Output 0 is the single mask, the others are the three of an ambiguous prompt.
        """
        inputs = decoding.decoder_inputs(self.model, self.embedding_of(image_index), points, boxes, masks, plain=True)
        return decoding.read_fast(self.model, inputs, 0 if masks is None else len(masks))

    def embedding_of(self, index: int) -> Any:
        """The embedding of an image, (1, C, g, g); what a client has assigned to `features`, as SAM decodes it."""
        features = self.features
        if isinstance(features, np.ndarray):
            features = torch.from_numpy(features)
        if not isinstance(features, torch.Tensor):
            return features
        if features.ndim == 3:
            return features[None]
        # Several that do not come from `set_images` are SAM's: one prompt for all.
        return features[index : index + 1] if len(features) == len(self._sizes) else features

    def get_image_embedding(self) -> torch.Tensor:
        """The embedding of the image that is set, (1, 256, g, g), or (B, 256, g, g) after `set_images` of B."""
        return super().get_image_embedding()

    def get_embedding(self) -> embeddings.Embedding:
        """Everything that setting the images computed, for `set_embedding`."""
        self._image_sizes(0)
        features = self.features if self.features.ndim == 4 else self.features[None]
        return embeddings.Embedding(features, [self._image_sizes(i) for i in range(len(features))], self._route)

    def set_embedding(self, embedding: embeddings.Embedding) -> None:
        """Set the images that an `embedding` of the same model is of, without running the encoder."""
        self.reset_image()
        self._set(embedding.features, embedding.sizes, embedding.route)

    def save_embedding(self, path: str | PathLike[str]) -> None:
        """Write the embedding of the images that are set to a safetensors file, for `load_embedding`."""
        embedding = self.get_embedding()
        embeddings.save(path, self.model, embedding.features, embedding.sizes)

    def load_embedding(self, path: str | PathLike[str], key: str | None = None) -> None:
        """Set the images whose embedding `save_embedding` wrote, without running the encoder.

        `key` names one photograph of a file that `sam-bigltl bulk --embeddings` wrote. Raises InputError when the file
        is no such file, has no such photograph, or comes from a model with other encoder weights.
        """
        features, sizes = embeddings.load(path, self.model, key)
        self.reset_image()
        self._set(features, sizes)

    def _image_sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(H, W) of the original and of the resized image."""
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")
        prompt_checks.check_image_index(index, max(1, len(self._sizes)))
        # The first image goes by SAM's own attributes, which pipelines that cache embeddings assign.
        return self._sizes[index] if index > 0 else (self.original_size, self.input_size)

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """`values` with a batch dimension, on the device; the cast comes first, because MPS has no float64."""
        return torch.as_tensor(np.ascontiguousarray(values)).to(dtype).to(self.device)[None]
