"""The optimiser and learning-rate schedule of a run, as configuration and as PyTorch objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser; the defaults are the paper's for RetinaNet."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    """Learning rate; the paper's is .01 for RetinaNet and .02 for Faster R-CNN, at batch 8."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adamw"):
            raise ValueError(f"optimizer.name: got {self.name!r}, expected 'sgd' or 'adamw'")
        if not self.lr > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(f"optimizer: expected lr > 0, momentum in [0, 1), weight_decay >= 0, got {self}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of ``module``'s trainable parameters."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.name == "sgd":
            return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over a run; the defaults are the paper's 1x schedule (12 epochs)."""

    name: Literal["multistep", "one_cycle", "constant"] = "multistep"
    milestones: Sequence[float] = (8, 11)
    """Of "multistep": epochs after which the rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    warmup_steps: int = 500
    """Of "multistep" and "constant": steps of linear warm-up, from ``warmup_factor`` times the rate."""
    warmup_factor: float = 0.001
    one_cycle_rise: float = 0.3
    """Of "one_cycle": share of the run in which the rate rises to the optimiser's ``lr``."""

    def __post_init__(self) -> None:
        if self.name not in ("multistep", "one_cycle", "constant"):
            raise ValueError(f"schedule.name: got {self.name!r}, expected 'multistep', 'one_cycle' or 'constant'")
        if list(self.milestones) != sorted(self.milestones) or any(m <= 0 for m in self.milestones):
            raise ValueError(f"schedule.milestones: got {list(self.milestones)}, expected ascending positive epochs")
        if self.warmup_steps < 0 or not 0 < self.warmup_factor <= 1 or not 0 < self.one_cycle_rise < 1:
            raise ValueError(
                "schedule: expected warmup_steps >= 0, warmup_factor in (0, 1], one_cycle_rise in (0, 1), "
                f"got {self.warmup_steps}, {self.warmup_factor}, {self.one_cycle_rise}"
            )

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by in optimiser step ``step`` (from 0) of "multistep" or "constant"."""
        factor = 1.0
        if step < self.warmup_steps:
            factor = self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        if self.name == "multistep":
            factor *= self.gamma ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
        return factor

    def build(self, optimizer: torch.optim.Optimizer, *, total_steps: float, steps_per_epoch: int) -> LRScheduler:
        """The scheduler, to be stepped after every optimiser step. Only "one_cycle" asks for ``total_steps``, which may
        be infinite for the others."""
        if self.name == "one_cycle":
            rates = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(optimizer, rates, total_steps=int(total_steps), pct_start=self.one_cycle_rise)
        return LambdaLR(optimizer, lambda step: self.factor(step, steps_per_epoch))
