"""A closed-form start for the little path, so that a converted model is useful below keep_ratio 1.0 before training."""

from .fit import Recipe, warm_start

__all__ = ["Recipe", "warm_start"]
