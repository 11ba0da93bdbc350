"""What a training step costs by each method: time and memory, measured side by side on the same batch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from kd.distiller import Distiller
from kd.taps import tapped

# The profiler measures memory here; what it logs about missing GPUs concerns nobody.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

Step = Callable[[], None]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
#: Plain training plus the teacher's forward pass: what every method that distils pays before its loss.
BASELINE = "none with teacher"
WARM_UP_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one training step."""

    median_ms: float
    overhead_percent: float
    """Median over rounds of the step's time over the baseline's of the same round, less 1."""
    peak_memory_mb: float
    """Most memory allocated for tensors during a step beyond what is held between steps (weights, optimiser, batch),
    in MiB."""


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, precision: Any = None) -> Step:
    """Forward, backward and optimiser step of ``model`` (a detector or a :class:`kd.Distiller`) on ``batch``.

    Args:
        model: in training mode, on the batch's device.
        optimizer: of its parameters.
        batch: images and targets.
        precision: Lightning's ``trainer.precision``; "bf16-mixed" and "16-mixed" run the forward pass in autocast.
    """
    return _stepper(optimizer, precision, batch, lambda: model(*batch))


def teacher_forward_step(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, precision: Any = None
) -> Step:
    """The student's own training step and the teacher's forward pass on its transformed batch, no loss between them."""

    def forward() -> dict[str, Tensor]:
        with tapped(student.backbone) as tap:
            losses = student(*batch)
        with torch.no_grad():
            teacher.backbone(tap.images)
        return losses

    return _stepper(optimizer, precision, batch, forward)


def measure(
    steps: Mapping[str, Step], rounds: int, device: torch.device, baseline: str = BASELINE
) -> dict[str, StepCost]:
    """Cost of each of ``steps``, which take turns: what else the machine does hits all alike.

    Args:
        steps: name -> step.
        rounds: how often each is timed, after :data:`WARM_UP_ROUNDS`.
        device: where they run.
        baseline: the step that overheads are relative to.

    Raises:
        ValueError: no rounds, or no such baseline.
    """
    if rounds < 1 or baseline not in steps:
        raise ValueError(f"rounds, baseline: got {rounds}, {baseline!r}, expected at least 1 and one of {list(steps)}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + WARM_UP_ROUNDS):
        for name, step in steps.items():
            started = _now(device)
            step()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(_now(device) - started)
    return {
        name: StepCost(
            median_ms=1000 * statistics.median(seconds[name]),
            overhead_percent=100
            * (statistics.median(a / b for a, b in zip(seconds[name], seconds[baseline], strict=True)) - 1),
            peak_memory_mb=step_memory_mb(step, device),
        )
        for name, step in steps.items()
    }


def step_memory_mb(step: Step, device: torch.device) -> float:
    """Most memory that ``step`` allocates for tensors at any one time, beyond what was allocated before it, in MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = peak = 0
    for size in _allocations(profiled):
        held += size
        peak = max(peak, held)
    return peak / 2**20


def distilling_steps(
    distillers: Mapping[str, Distiller],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    batch: Batch,
    precision: Any = None,
) -> dict[str, Step]:
    """The baseline and one step per method, for :func:`measure`.

    Args:
        distillers: method -> a distiller of its own, at least one with a teacher.
        optimizer: makes the optimiser of a module.
        batch: images and targets.
        precision: see :func:`training_step`.
    """
    teacher = next(d.teacher for d in distillers.values() if d.teacher is not None)
    plain = next(iter(distillers.values())).student
    steps = {BASELINE: teacher_forward_step(plain.train(), teacher, optimizer(plain), batch, precision)}
    for name, distiller in distillers.items():
        steps[name] = training_step(distiller.train(), optimizer(distiller), batch, precision)
    return steps


def _stepper(
    optimizer: torch.optim.Optimizer, precision: Any, batch: Batch, forward: Callable[[], dict[str, Tensor]]
) -> Step:
    kind = batch[0][0].device.type
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(precision))

    def step() -> None:
        # Proposals are sampled at random: alike in every round and for every method.
        torch.manual_seed(0)
        with torch.autocast(kind, dtype=half, enabled=half is not None):
            losses = forward()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        # Between two steps there are no gradients, so that a step's memory includes them.
        optimizer.zero_grad()

    return step


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _allocations(profiled: profile) -> list[int]:
    """Bytes of every allocation (positive) and release (negative) on the CPU, in their order."""
    result = profiled.profiler.kineto_results  # type: ignore[union-attr]
    events = [
        event for event in result.events() if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
