"""SAM-HQ's encoder returns the embedding and the tokens after its global layers, which its decoder reads."""

from __future__ import annotations

from torch import Tensor

from .encoder import InPlaceEncoder


class HQEncoder(InPlaceEncoder):
    """Answers as SAM-HQ's encoder."""

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        """(B, 3, S, S) -> (B, out_chans, g, g), and (B, g, g, C) after each global layer, in the dtype of `images`."""
        self.check_size(images)
        states = self.states(images)
        layers = [states.layers[layer].to(images.dtype) for layer in self.config.global_layers]
        return states.embedding.to(images.dtype), layers
