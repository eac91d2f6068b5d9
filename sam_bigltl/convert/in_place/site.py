"""The place of an image encoder in a model."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from ...errors import InputError
from ...modeling.encoder import BigLittleEncoder, EncoderConfig
from .anatomy import Anatomy, examine, refuse_changed
from .encoder import InPlaceEncoder, Origin, tie

# A small encoder to compare with: 3 x 3 tokens in windows of 2, which are padded, and a layer of each kind.
SMALL: dict[str, Any] = dict(side=48, dim=16, depth=2, heads=2, window=2, global_layers=(1,), channels=8)


class Site:
    """Where a model holds its encoder, and how ours is put there and taken out.

    Args:
        model: the module that holds it.
        anatomy: of the library.
        kind: the class of ours, which answers as the library's encoder does.
        attribute: what the model calls its encoder.
    """

    def __init__(
        self,
        model: Any,
        anatomy: Anatomy,
        kind: type[InPlaceEncoder] = InPlaceEncoder,
        attribute: str = "image_encoder",
    ) -> None:
        self.model = model
        self.anatomy = anatomy
        self.kind = kind
        self.attribute = attribute

    @property
    def encoder(self) -> Any:
        """What is there now."""
        return getattr(self.model, self.attribute)

    def ours(self) -> InPlaceEncoder | None:
        """Our encoder, if it is there."""
        return self.encoder if isinstance(self.encoder, InPlaceEncoder) else None

    def examine(self) -> tuple[EncoderConfig, Origin]:
        """See `anatomy.examine`."""
        if isinstance(self.encoder, BigLittleEncoder):
            return _examine_ours(self.encoder)
        return examine(self.encoder, self.anatomy)

    def build(self, config: EncoderConfig, origin: Origin) -> InPlaceEncoder:
        """Our exact encoder with the parameters of theirs."""
        return tie(self.kind, config, origin)

    def install(self, encoder: InPlaceEncoder) -> None:
        """Put ours there."""
        setattr(self.model, self.attribute, encoder)

    def restore(self, theirs: nn.Module) -> None:
        """Put theirs back."""
        setattr(self.model, self.attribute, theirs)

    def small(self) -> nn.Module:
        """A small encoder of the same classes, of the sizes `SMALL`."""
        return type(self.encoder)(
            img_size=SMALL["side"], embed_dim=SMALL["dim"], depth=SMALL["depth"], num_heads=SMALL["heads"],
            out_chans=SMALL["channels"], use_rel_pos=True, window_size=SMALL["window"],
            global_attn_indexes=SMALL["global_layers"],
        )  # fmt: skip

    def answer(self, encoder: nn.Module, images: Tensor) -> list[Tensor]:
        """The embedding of one of theirs, and the tokens after global layers where it gives them."""
        found = encoder(images)
        return [found] if isinstance(found, Tensor) else [found[0], *found[1]]

    def around(self, encoder: nn.Module) -> Self:
        """The same place of another encoder of theirs, in no model."""
        other = copy.copy(self)
        other.model = SimpleNamespace(**{self.attribute: encoder})
        return other


def _examine_ours(encoder: BigLittleEncoder) -> tuple[EncoderConfig, Origin]:
    """The same of an encoder of this project."""
    fresh = dict(InPlaceEncoder(replace(encoder.config)).named_modules())
    for name, module in encoder.named_modules():
        if name and type(module) is not type(fresh.get(name)):
            raise InputError(
                f"the image encoder cannot be replaced: {name} is a {type(module).__name__}; one in int8 stays as it is"
            )
        refuse_changed(module, name or "it")
    tensors = [*encoder.named_parameters(), *encoder.named_buffers()]
    return encoder.config, Origin(encoder, {name: name for name, _ in tensors})
