"""SAM's predictor on ONNX Runtime: numpy, OpenCV, Pillow and onnxruntime, no torch.

`sam-bigltl export` writes what it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from ..convert.onnx_files import DECODER, ENCODER, check_computed, open_part
from ..errors import InputError
from .longest_side import resized, resized_shape
from .prompt_checks import (  # fmt: skip
    at_once,
    check_box,
    check_image,
    check_image_index,
    check_mask_input,
    check_points,
    check_prompts,
)

_PROMPTS = 8  # decoded together: more take memory and no less time each


class OnnxSamPredictor:
    """Embeds an image once, then predicts masks for any number of prompts, as `sam_bigltl.SamPredictor` does.

    Args:
        folder: what `sam-bigltl export` wrote; its keep_ratio is fixed.
        threads: CPU threads; None leaves onnxruntime's choice.
        providers: of onnxruntime, in the order in which it shall try them.

    Attributes:
        about: what the encoder's file says of itself, see `sam_bigltl.onnx_files.About`.
        features: embeddings of the images that are set, (B, C, g, g) float32.
        original_size, input_size: (H, W) of the first image, before and after the resize.

    Raises:
        InputError: files that are missing, damaged, or of two models; later, where their weights give NaN.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._folder = folder = Path(folder)
        self._encoder, self.about = open_part(folder, ENCODER, threads, list(providers))
        self._decoder, decoder = open_part(folder, DECODER, threads, list(providers))
        if decoder.weights != self.about.weights:
            raise InputError(f"the encoder and the decoder in {folder} are of two models: export again")
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the images that are set."""
        self.is_image_set = False
        self.features: np.ndarray | None = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None
        self._sizes: list[tuple[tuple[int, int], tuple[int, int]]] = []  # (original, input) of every image

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Embed `image`, uint8 of shape (H, W, 3), whose channels are in the order `image_format`, RGB or BGR."""
        self.set_images([image], image_format)

    def set_images(self, images: Sequence[np.ndarray], image_format: str = "RGB") -> None:
        """Embed several images, of any sizes, in one call.

        `predict(..., image_index=i)` then answers for `images[i]`.
        """
        if len(images) == 0:
            raise InputError("set_images needs at least one image")
        for image in images:
            check_image(image, image_format)
        self.reset_image()
        side = self.about.image_size
        batch = np.zeros((len(images), 3, side, side), np.float32)
        mean, std = (np.array(values, np.float32) for values in (self.about.pixel_mean, self.about.pixel_std))
        for place, image in zip(batch, images):
            image = image if image_format == "RGB" else image[..., ::-1]
            height, width = resized_shape(image.shape[:2], side)
            place[:, :height, :width] = ((resized(image, side).astype(np.float32) - mean) / std).transpose(2, 0, 1)
            self._sizes.append((image.shape[:2], (height, width)))
        features = self._embed(batch)
        check_computed(features, self._folder, ENCODER)
        self.features = features
        self.original_size, self.input_size = self._sizes[0]
        self.is_image_set = True

    def _embed(self, batch: np.ndarray) -> np.ndarray:
        """Embeddings of the images (B, 3, S, S).

        As many at once as the file takes, the rest of its batch being empty.
        """
        size = self._encoder.get_inputs()[0].shape[0]
        if not isinstance(size, int):  # a name: any number
            return self._encoder.run(None, {"images": batch})[0]
        filled = np.concatenate([batch, np.zeros((-len(batch) % size, *batch.shape[1:]), batch.dtype)])
        parts = [self._encoder.run(None, {"images": part})[0] for part in np.split(filled, len(filled) // size)]
        return np.concatenate(parts)[: len(batch)]

    def get_image_embedding(self) -> np.ndarray:
        """The embedding of the image that is set, (1, C, g, g), or (B, C, g, g) after `set_images` of B."""
        self._image_sizes(0)
        assert self.features is not None  # an image is set
        return self.features

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
        """Masks for one prompt, of the image that is set: arguments, results and errors of `SamPredictor.predict`."""
        original_size, _ = self._image_sizes(image_index)
        coords = labels = None
        if point_coords is not None:
            coords, labels = (x[None] for x in check_points(point_coords, point_labels))
        if box is not None:
            box = check_box(box, original_size)[None]
        if mask_input is not None:
            mask_input = check_mask_input(mask_input, self._mask_size)[None]
        outputs = self.predict_batch(
            coords, labels, box, mask_input, multimask_output, return_logits, image_index=image_index
        )
        return tuple(output[0] for output in outputs)

    def predict_batch(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        image_index: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for P prompts of one image.

        It is what `SamPredictor.predict_torch` does, in numpy and in pixels of the image.

        Args:
            point_coords: (P, N, 2). point_labels: (P, N). boxes: (P, 4). mask_input: (P, 1, h, w).
            multimask_output, return_logits, image_index: as in `predict`.

        Returns:
            Masks (P, C, H, W), predicted IoUs (P, C), and low-resolution logits (P, C, h, w).
        """
        original_size, input_size = self._image_sizes(image_index)
        parts = (point_coords, point_labels, boxes, mask_input)
        coords, labels, boxes, given = (None if part is None else np.asarray(part) for part in parts)
        check_prompts(coords, labels, boxes, given, self._mask_size)
        count = max((len(part) for part in (coords, boxes, given) if part is not None), default=1)
        coords, labels = self._points(coords, labels, boxes, count, original_size)
        inputs = {
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": np.zeros((count, 1, *self._mask_size), np.float32)
            if given is None
            else given.astype(np.float32),
        }
        fixed = {
            "image_embeddings": self.get_image_embedding()[image_index : image_index + 1],
            "has_mask_input": np.array([given is not None], np.float32),
        }
        found = []
        step = at_once(_PROMPTS, coords.shape[1])
        for start in range(0, count, step):
            some = {name: value[start : start + step] for name, value in inputs.items()}
            found.append(self._decoder.run(None, fixed | some))
        outputs = slice(1, None) if multimask_output else slice(0, 1)
        low_res, iou = (np.concatenate(values)[:, outputs] for values in zip(*found))
        for values in (low_res, iou):
            check_computed(values, self._folder, DECODER)
        masks = self._enlarged(low_res, input_size, original_size)
        return masks if return_logits else masks > self.about.mask_threshold, iou, low_res

    def _points(
        self,
        coords: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        count: int,
        original_size: tuple[int, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Prompts as the decoder takes them: points in the model's frame (P, N, 2), float32; labels (P, N), int64."""
        height, width = resized_shape(original_size, self.about.image_size)
        scale = np.array([width / original_size[1], height / original_size[0]])  # float64, rounded once, as SAM does
        all_coords, all_labels = [], []
        if coords is not None:
            assert labels is not None  # `check_prompts` has seen to it
            all_coords.append(coords * scale)
            all_labels.append(labels)
        if boxes is not None:
            all_coords.append(boxes.reshape(count, 2, 2) * scale)
            all_labels.append(np.broadcast_to([2, 3], (count, 2)))
        elif coords is not None:
            all_coords.append(np.zeros((count, 1, 2)))
            all_labels.append(np.full((count, 1), -1))
        if not all_coords:
            return np.zeros((count, 0, 2), np.float32), np.zeros((count, 0), np.int64)
        return np.concatenate(all_coords, axis=1).astype(np.float32), np.concatenate(all_labels, axis=1).astype(
            np.int64
        )

    def _enlarged(self, logits: np.ndarray, input_size: tuple[int, int], original_size: tuple[int, int]) -> np.ndarray:
        """Logits (P, C, h, w) at the size of the image, as SAM does it: to the input's size, cut, to the image's."""
        side, (height, width) = self.about.image_size, original_size
        out = np.empty((*logits.shape[:2], height, width), np.float32)
        for index in np.ndindex(logits.shape[:2]):
            whole = cv2.resize(logits[index], (side, side), interpolation=cv2.INTER_LINEAR)
            valid = np.ascontiguousarray(whole[: input_size[0], : input_size[1]])
            out[index] = cv2.resize(valid, (width, height), interpolation=cv2.INTER_LINEAR)
        return out

    @property
    def _mask_size(self) -> tuple[int, int]:
        rows, columns = self.get_image_embedding().shape[-2:]
        return 4 * rows, 4 * columns

    def _image_sizes(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(H, W) of the original and of the resized image."""
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")
        check_image_index(index, len(self._sizes))
        return self._sizes[index]
