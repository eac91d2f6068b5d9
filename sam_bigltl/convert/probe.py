"""SAM's image encoder as the backbone of a classifier: a linear head on its pooled embedding (a linear probe)."""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ..modeling.trunk import KeepRatio


class SamClassifier(nn.Module):
    """A normed mean of the embedding, then a linear layer; the encoder stays as it is.

    It has what timm's scripts and this project's training ask of a classifier.

    Args:
        sam: a Sam of ours; its encoder becomes a part of this module.
        num_classes: of the head.
    """

    def __init__(self, sam: Sam, num_classes: int) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder.requires_grad_(False)
        self.num_classes = num_classes
        self.num_features = self.image_encoder.config.out_chans
        self.norm = nn.BatchNorm1d(self.num_features, affine=False)  # channels of an embedding differ much in scale
        self.head = nn.Linear(self.num_features, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        side = self.image_encoder.img_size
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, side, side), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear",
            "mean": tuple((sam.pixel_mean.flatten() / 255).tolist()),
            "std": tuple((sam.pixel_std.flatten() / 255).tolist()),
        }  # fmt: skip

    @property
    def keep_ratio(self) -> KeepRatio:
        """The encoder's."""
        return self.image_encoder.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: KeepRatio) -> None:
        self.image_encoder.keep_ratio = value

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> embeddings (B, C, g, g)."""
        with torch.no_grad():
            self.image_encoder.eval()
            return self.image_encoder(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Embeddings -> logits (B, classes), or what the linear layer sees, (B, C)."""
        x = self.norm(x.float().mean(dim=(2, 3)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> logits (B, classes)."""
        return self.forward_head(self.forward_features(x))
