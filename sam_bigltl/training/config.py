"""Settings of a run, whatever it trains on."""

from __future__ import annotations

from dataclasses import dataclass

# What may differ between a run and its continuation: nothing of it changes a weight.
FREE = {"until", "save_every", "log_every", "val_every", "workers", "compile"}


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """All but what `FREE` names must be the same when a run is resumed (the rate depends on `steps`).

    Attributes:
        steps: optimizer steps in all, which the schedule of the learning rate is made for.
        until: end after this many of them; 0 is all.
        batch_size: images a step, on all processes together.
        optimizer: "adamw", or "muon" (matrices by torch.optim.Muon with AdamW's step size, the rest by AdamW).
        lr: peak learning rate; warmup: steps of linear warm-up before the cosine falls to `final_lr` of it.
        stem_lr: share of the learning rate that the convolutions of a pretrained stem get.
        keep_ratios: for a big.LITTLE encoder, drawn uniformly, one a step.
        keep_ratio_range: draw from this range instead, log-uniformly.
        train_decoder: whether prompt encoder and mask decoder learn too.
        ema: decay of the averaged weights that are saved; 0 for none.
        precision: "bfloat16" (autocast) or "float32".
        save_every, log_every, val_every: in steps; val_every 0 validates at the end only.
    """

    steps: int
    until: int = 0
    batch_size: int = 16
    optimizer: str = "adamw"
    lr: float = 1e-3
    final_lr: float = 0.01
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    stem_lr: float = 0.2
    keep_ratios: tuple[float, ...] = (1.0,)
    keep_ratio_range: tuple[float, float] | None = None
    train_decoder: bool = True
    ema: float = 0.999
    precision: str = "bfloat16"
    compile: bool = False
    seed: int = 0
    workers: int = 1
    save_every: int = 200
    log_every: int = 10
    val_every: int = 0

    @property
    def end(self) -> int:
        """The last step."""
        return min(self.steps, self.until or self.steps)
