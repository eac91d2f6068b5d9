"""A closed-form start for the little path, so that a converted model is useful below keep_ratio 1.0 before training."""

from .fit import Recipe, warm_start
from .ratios import choose_ratios, stage_costs

__all__ = ["Recipe", "choose_ratios", "stage_costs", "warm_start"]
