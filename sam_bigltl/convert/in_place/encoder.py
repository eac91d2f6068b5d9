"""Our encoder with the parameters of one that somebody else built."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from typing_extensions import Self

from ...errors import InputError
from ...fast.choice import Choice, Native
from ...fast.precision import PRECISIONS
from ...modeling.calls import is_plain
from ...modeling.encoder import BigLittleEncoder, EncoderConfig, init_weights
from ...modeling.routing import Route
from ...modeling.trunk import Taps

# Of the pass that runs: threads may share one encoder.
_TAPS: ContextVar[Taps | None] = ContextVar("taps", default=None)


@dataclass
class Origin:
    """Where an encoder comes from; no module, so that nothing in it is a part of the model.

    Attributes:
        theirs: the encoder that was replaced.
        names: our parameters and buffers that are its own, by its names.
        exact: the encoder of which this one is a copy in another format, or None.
        dtype: what the replaced encoder would have been converted to meanwhile, or None.
        order: names of the parts of the model as they were, where the model itself is the encoder.
    """

    theirs: nn.Module
    names: dict[str, str] = field(default_factory=dict)
    exact: InPlaceEncoder | None = None
    dtype: torch.dtype | None = None
    order: tuple[str, ...] = ()


@dataclass
class States:
    """What a pass leaves: the embedding (B, out_chans, gh, gw), the tokens before the layers (B, gh, gw, C), and those
    after each layer, at least after the global ones."""

    embedding: Tensor
    tokens: Tensor
    layers: dict[int, Tensor]


class InPlaceEncoder(BigLittleEncoder):
    """A `BigLittleEncoder` that stands where another encoder was, with that encoder's own Parameter objects.

    Where it computes in another format it is a copy for inference, and what `.float()` or `.half()` of the model asks
    for does not reach it: the format is a setting of `accelerate`. Its state dict is that of the encoder in the format
    that it was given in.

    Args:
        config: its shape.
        norm_only: the neck is a single norm, as in timm's classifiers.
    """

    origin: Origin
    format: Choice
    norm_only: bool

    def __init__(self, config: EncoderConfig, norm_only: bool = False) -> None:
        super().__init__(config)
        self.norm_only = norm_only
        if norm_only:
            self.neck = nn.Sequential(LayerNorm2d(config.dim))
        self._is_copy = False
        self._rescaled: dict[str, Tensor] = {}  # of a copy: what is not the original rounded, see `fast.rescale`

    @property
    def taps(self) -> Taps | None:
        return _TAPS.get() or self._own_taps

    @taps.setter
    def taps(self, value: Taps | None) -> None:
        self._own_taps = value

    @property
    def exact(self) -> InPlaceEncoder:
        """The encoder in the format of the weights that it was given; itself, if it is no copy."""
        return self.origin.exact or self

    @property
    def all_big(self) -> bool:
        """Whether keep_ratio is 1.0 everywhere: all layers run on all tokens."""
        ratio = self.keep_ratio
        return ratio == 1.0 or (isinstance(ratio, tuple) and set(ratio) == {1.0})

    def forward(self, images: Tensor) -> Tensor:
        """See `BigLittleEncoder.forward`. Raises InputError for a copy that would have to be trained."""
        with self._graph(images):
            return super().forward(images)

    def states(self, images: Tensor) -> States:
        """Encode images, and keep what is between the layers."""
        with self._graph(images):
            if self.keep_ratio != "auto":
                return self._states(images)
            parts, routes = [], []
            for image in images.split(1):
                parts.append(self._states(image))
                assert self.last_route is not None
                routes.append(self.last_route)
        self.last_route = Route.merge(routes) if len(routes) > 1 else routes[0]
        layers = {layer: torch.cat([part.layers[layer] for part in parts]) for layer in parts[0].layers}
        return States(torch.cat([part.embedding for part in parts]), torch.cat([part.tokens for part in parts]), layers)

    def _states(self, images: Tensor) -> States:
        tokens = self.embed_patches(images)
        taps = Taps()
        token = _TAPS.set(taps)
        try:
            embedding = self.encode_tokens(tokens)
        finally:
            _TAPS.reset(token)
        return States(embedding, tokens, {layer: x.reshape(tokens.shape) for layer, x in taps.layers.items()})

    def check_size(self, images: Tensor) -> None:
        """Raise InputError unless images are of the size that the encoder was built for."""
        height, width = images.shape[-2:]
        if (height, width) != (self.config.img_size,) * 2:
            size = self.config.img_size
            raise InputError(
                f"the accelerated encoder takes images of {size} x {size}, not {height} x {width}: give that size, or "
                "take the model's own encoder back with accelerate(model, undo=True)"
            )

    def _graph(self, images: Tensor) -> AbstractContextManager[Any]:
        """Where a pass runs: a copy in eval mode stores no graph, unless one leads to the images.

        Its parameters are nobody's to learn, and many predict without no_grad(), which would keep the kernels out.
        """
        self._check_training()
        alone = self._is_copy and not self.training and not images.requires_grad
        return torch.no_grad() if alone else nullcontext()

    def _check_training(self) -> None:
        if self._is_copy and self.training and torch.is_grad_enabled() and any(self._trainable()):
            raise InputError(
                f"the encoder computes in {self.format.dtype}, which is for inference: accelerate(model, "
                "dtype='float32') to train it, or freeze it with requires_grad_(False)"
            )

    def _trainable(self) -> list[bool]:
        return [value.requires_grad for value in self.parameters()]

    def optimize(self, dtype: str = "auto", compile: bool = False, native: Native = "auto") -> Self:
        """Refused: the weights belong to somebody else's model too."""
        raise InputError("this encoder is in another library's model: call sam_bigltl.accelerate(model, dtype=...)")

    def is_in(self, chosen: Choice) -> bool:
        """Whether it computes in `chosen`; `.half()` of the model may have converted an exact one since."""
        return self.format == chosen and (chosen.dtype == "int8" or self.pos_embed.dtype == PRECISIONS[chosen.dtype])

    def in_format(self, chosen: Choice) -> InPlaceEncoder:
        """This exact encoder made ready for `chosen`, or a copy of it where its weights are of another format."""
        if chosen.dtype != "int8" and self.pos_embed.dtype == PRECISIONS[chosen.dtype]:
            result = self
        else:
            result = _skeleton(type(self), self.config, self.norm_only)
            dtype = torch.float32 if chosen.dtype == "int8" else PRECISIONS[chosen.dtype]
            for name, value in _tensors(self):
                copied = value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
                _put(result, name, copied, value.requires_grad)
            for name, module in self.named_modules():
                if hasattr(module, "eps"):
                    result.get_submodule(name).eps = module.eps
            result.origin = Origin(self.origin.theirs, self.origin.names, self, order=self.origin.order)
            result.train(self.training)
        result._is_copy = False  # while it is converted
        result.compute_in(chosen.dtype, chosen.native)
        result._is_copy = result is not self
        if result._is_copy:
            given = dict(_tensors(self))
            result._rescaled = {
                name: value.detach().clone() for name, value in _tensors(result)
                if name in given and not torch.equal(given[name].detach().to(value.dtype), value.detach())
            }  # fmt: skip
        result.format = chosen
        return result

    def current(self) -> InPlaceEncoder:
        """The exact encoder, with what was changed in a copy of it since (int8's weights cannot be).

        Raises InputError where a client has put other modules into it, such as LoRA's.
        """
        if self.format.dtype != "int8":
            expected = dict(_skeleton(type(self), self.config, self.norm_only).named_modules())
            for name, module in self.named_modules():
                if type(module) is not type(expected.get(name)):
                    raise InputError(
                        f"the accelerated encoder was changed: {name} is a {type(module).__name__}; take it out first "
                        "(peft: merge_and_unload), or what it learnt would be lost"
                    )
        if self._is_copy:
            mine = dict(_tensors(self))
            for name, value in _tensors(self.exact):
                if (own := mine.get(name)) is not None:
                    own = own.detach().to(value.device)
                    if name in self._rescaled and torch.equal(self._rescaled[name].to(own.device), own):
                        continue
                    if not torch.equal(value.detach().to(own.dtype), own):
                        value.data.copy_(own)
        return self.exact

    def check_hooks(self) -> None:
        """Raise InputError where a client hooked or patched this encoder: another one would not have it."""
        for name, module in self.named_modules():
            if not is_plain(module, type(module)):
                raise InputError(
                    f"the accelerated encoder has a hook or a forward of its own on {name or 'itself'}: remove it "
                    "first, or it would be lost"
                )

    def give_back(self) -> nn.Module:
        """The replaced encoder, with what was learnt or loaded meanwhile, where and in what mode this one is."""
        self.check_hooks()
        exact, theirs = self.current(), self.origin.theirs
        mine = dict(self.named_parameters())
        for name, other in exact.origin.names.items():
            value = _get(exact, name)
            if isinstance(value, nn.Parameter) and name in mine:
                value.requires_grad_(mine[name].requires_grad)
            if _get(theirs, other) is not value:
                _put_object(theirs, other, value)
        theirs.to(device=self.pos_embed.device, dtype=self.origin.dtype)
        return theirs.train(self.training)

    def _apply(self, fn, recurse=True):  # nn.Module's signature
        if self.tied and not self._is_copy:
            return super()._apply(fn, recurse)
        theirs = next(self.origin.theirs.parameters())
        asked = fn(torch.empty(0, dtype=self.origin.dtype or theirs.dtype, device=self.pos_embed.device)).dtype
        self.origin.dtype = None if asked == theirs.dtype else asked
        if not self._is_copy:
            return super()._apply(fn, recurse)

        def moved(value: Tensor) -> Tensor:
            result = fn(value)
            return result if result.dtype == value.dtype else value.to(result.device)

        return super()._apply(moved, recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's, of the weights as they were given; without those that the replaced encoder does not have."""
        if self._is_copy:
            return self.current().state_dict(*args, **kwargs)
        state = super().state_dict(*args, **kwargs)
        for name in self._added():
            state.pop(kwargs.get("prefix", "") + name, None)
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:  # nn.Module's signature
        """Also into the weights as they were given, which a copy would round."""
        if self._is_copy:
            if self.format.dtype == "int8":
                raise InputError("the encoder's weights are packed in int8: accelerate(model, undo=True), then load")
            own = dict(_tensors(self.exact))
            for name, value in own.items():
                if (loaded := state_dict.get(prefix + name)) is not None and loaded.shape == value.shape:
                    value.data.copy_(loaded)
            # What comes in is not rescaled, and what stays must suit it: keys of both streams have one shift.
            for name in self._rescaled:
                _get(self, name).data.copy_(own[name].detach())
            self._rescaled.clear()
        for name in self._added():
            state_dict.setdefault(prefix + name, _get(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _added(self) -> list[str]:
        """Parameters that stand for what the replaced encoder does without: zeros."""
        return [name for name in _optional(self.config.depth) if name not in self.exact.origin.names and self.tied]

    @property
    def tied(self) -> bool:
        """Whether the weights are the replaced encoder's own, and not from a file."""
        return bool(self.exact.origin.names)


def _optional(depth: int) -> list[str]:
    """What a ViT may lack: one without positions or biases is one where they are zero."""
    layers = range(depth)
    parts = ("attn.qkv.bias", "attn.rel_pos_h", "attn.rel_pos_w")
    return ["pos_embed", *(f"blocks.{layer}.{part}" for layer in layers for part in parts)]


def tie(kind: type[InPlaceEncoder], config: EncoderConfig, origin: Origin, norm_only: bool = False) -> InPlaceEncoder:
    """An encoder whose parameters are those of `origin.theirs`, by `origin.names`; a little path starts random.

    Raises InputError where shapes do not fit.
    """
    encoder = _skeleton(kind, config, norm_only)
    example = next(origin.theirs.parameters())
    donor: dict[str, Tensor] = {}
    if config.little_dim and not all(name in origin.names for name, _ in _tensors(encoder)):
        fresh = BigLittleEncoder(config)
        init_weights(fresh)
        donor = dict(_tensors(fresh))
    optional = set(_optional(config.depth))
    for name, value in _tensors(encoder):
        if name in origin.names:
            own = _get(origin.theirs, origin.names[name])
            if own.shape != value.shape:
                sizes = f"{tuple(own.shape)}, not {tuple(value.shape)}"
                raise InputError(f"the image encoder cannot be replaced: {origin.names[name]} is {sizes}")
            _put_object(encoder, name, own)
        elif name in optional:
            _put(encoder, name, torch.zeros(value.shape, dtype=example.dtype, device=example.device), False)
        else:
            _put(encoder, name, donor[name].detach().to(example.device, example.dtype), True)
    for name, module in encoder.named_modules():
        if hasattr(module, "eps") and f"{name}.weight" in origin.names:
            module.eps = origin.theirs.get_submodule(origin.names[f"{name}.weight"].rpartition(".")[0]).eps
    encoder.origin = origin
    encoder.train(origin.theirs.training)
    return encoder


def adopt(kind: type[InPlaceEncoder], encoder: BigLittleEncoder, origin: Origin) -> InPlaceEncoder:
    """The weights of `encoder`, which was read from a file, in the place of `origin.theirs`."""
    example = next(origin.theirs.parameters())
    result = _skeleton(kind, encoder.config)
    for name, value in _tensors(encoder):
        _put_object(result, name, value)
    result.origin = Origin(origin.theirs, order=origin.order)
    result.to(example.device, example.dtype)
    result.origin.dtype = None
    return result.train(origin.theirs.training)


def _skeleton(kind: type[InPlaceEncoder], config: EncoderConfig, norm_only: bool = False) -> InPlaceEncoder:
    with torch.device("meta"):  # nothing is initialised that is replaced at once
        return kind(config, norm_only)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _get(module: nn.Module, name: str) -> Tensor:
    parent, _, own = name.rpartition(".")
    return getattr(module.get_submodule(parent), own)


def _put_object(module: nn.Module, name: str, value: Tensor) -> None:
    parent, _, own = name.rpartition(".")
    holder = module.get_submodule(parent)
    (holder._parameters if own in holder._parameters else holder._buffers)[own] = cast(Any, value)


def _put(module: nn.Module, name: str, value: Tensor, requires_grad: bool) -> None:
    is_parameter = name in dict(module.named_parameters())
    _put_object(module, name, nn.Parameter(value, requires_grad) if is_parameter else value)
