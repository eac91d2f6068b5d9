"""`sam-bigltl` with the tiny models `vit_tiny` and `bigltl_tiny` among its types: python tests/tiny_cli.py train ..."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sam_bigltl.cli import main
from sam_bigltl.convert import registry
from sam_bigltl.modeling.encoder import EncoderConfig

_SHAPE = dict(
    img_size=128, dim=48, depth=2, num_heads=2, global_layers=(1,), window=4, out_chans=32, stem=(8, 16, 24, 32)
)
TINY = {"vit_tiny": EncoderConfig(**_SHAPE), "bigltl_tiny": EncoderConfig(**_SHAPE, little_dim=12)}


def register() -> None:
    """Add the tiny models, in place."""
    registry.ENCODERS.update(TINY)
    registry.DENSE["bigltl_tiny"] = "vit_tiny"
    registry.sam_model_registry.update({key: partial(registry._build, key) for key in TINY})


@contextmanager
def registered() -> Iterator[None]:
    """The tiny models among the types, and afterwards not."""
    before = {name: dict(getattr(registry, name)) for name in ("ENCODERS", "DENSE", "sam_model_registry")}
    register()
    try:
        yield
    finally:
        for name, content in before.items():
            getattr(registry, name).clear()
            getattr(registry, name).update(content)


if __name__ == "__main__":
    register()
    main()
