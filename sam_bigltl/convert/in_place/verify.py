"""Does the code of a library's encoder, as it is installed, compute what ours does? Seen on a small one of its classes.

`anatomy` looks at the parts of one encoder; a fork, or a later version, may compute something else with the same parts.
"""

from __future__ import annotations

import torch

from ...errors import InputError
from ...modeling.encoder import BigLittleEncoder
from .site import SMALL, Site

TOLERANCE = 1e-4
_passed: set[tuple[type, ...]] = set()


def verify(site: Site) -> None:
    """Raise InputError where a small encoder of the same classes gives another embedding than ours with its weights."""
    if isinstance(site.encoder, BigLittleEncoder):
        return
    classes = (*sorted({type(part) for part in site.encoder.modules()}, key=repr), site.kind)
    if classes in _passed:
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        try:
            small = site.small().float().eval()
        except (TypeError, ValueError) as error:
            raise _refusal(site, f"cannot be built as SAM's ({' '.join(str(error).split())})") from None
        for name, value in small.named_parameters():  # at which every term counts
            value.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.5 * torch.randn(value.shape))
        images = torch.randn(2, 3, SMALL["side"], SMALL["side"], dtype=torch.float32)
        expected = site.answer(small, images)
        part = site.around(small)
        states = part.build(*part.examine()).states(images)
        found = [states.embedding, *(states.layers[layer] for layer in SMALL["global_layers"])]
    for own, other in zip(found, expected):
        if own.shape != other.shape or not torch.allclose(own, other, atol=TOLERANCE, rtol=TOLERANCE):
            raise _refusal(site, "computes something else than SAM's encoder: is it from a fork?")
    _passed.add(classes)


def _refusal(site: Site, what: str) -> InputError:
    kind = type(site.encoder)
    return InputError(f"the image encoder cannot be replaced: {kind.__module__}.{kind.__name__} {what}")
