"""The measurement of a training step: memory to the byte, teacher's forward in the baseline, all methods alike."""

import pytest
import torch

import kd
from kd.compare import step_cost
from kd.compare.step_cost import BASELINE, distilling_steps, measure, step_memory_mb

CPU = torch.device("cpu")


def test_peak_memory_is_what_was_held_at_once():
    def step():
        first = torch.zeros(3 * 2**20, dtype=torch.uint8)
        del first
        kept = [torch.zeros(2**20, dtype=torch.uint8) for _ in range(2)]
        del kept[0]
        last = torch.zeros(2**20, dtype=torch.uint8)
        del last, kept

    assert step_memory_mb(step, CPU) == pytest.approx(3.0, abs=0.01)
    held = torch.zeros(2**20)

    def releasing():
        held.set_(torch.zeros(2 * 2**20, dtype=torch.uint8).view(torch.float32))

    assert step_memory_mb(releasing, CPU) == pytest.approx(2.0, abs=0.01)


def test_overhead_is_relative_to_the_baseline_of_the_same_round(monkeypatch):
    """On a clock of the test's own: round by round the machine gets slower, which hits all steps alike."""
    clock, speed = [0.0], [1.0]

    def step(seconds, slows_down=False):
        def run():
            clock[0] += seconds * speed[0]
            if slows_down:
                speed[0] *= 2

        return run

    monkeypatch.setattr(step_cost.time, "perf_counter", lambda: clock[0])
    costs = measure({BASELINE: step(2), "other": step(3, slows_down=True)}, 3, CPU)
    assert costs["other"].overhead_percent == pytest.approx(50) and costs[BASELINE].overhead_percent == 0
    # The median of the three rounds behind the two of warm-up, in which the machine was 4, 8 and 16 times slower.
    assert costs[BASELINE].median_ms == pytest.approx(1000 * 2 * 8)
    with pytest.raises(ValueError, match="expected at least 1"):
        measure({BASELINE: lambda: None}, 0, CPU)
    with pytest.raises(ValueError, match="baseline"):
        measure({"a": lambda: None}, 1, CPU)


def test_steps_train_and_the_baseline_runs_the_teacher_alone(detector_name, make_detector, batch):
    teacher = make_detector(detector_name, fpn_channels=24)
    distillers = {
        "none": kd.distill(make_detector(detector_name), None, "none"),
        "l2": kd.distill(make_detector(detector_name), teacher, "l2"),
    }
    teacher_calls, head_calls = [], []
    teacher.backbone.register_forward_hook(lambda *_: teacher_calls.append(torch.is_grad_enabled()))
    for head in ("head", "rpn"):
        if hasattr(teacher, head):
            getattr(teacher, head).register_forward_hook(lambda *_: head_calls.append(1))
    optimizers = {}

    def sgd(module):
        optimizers[id(module)] = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
        return optimizers[id(module)]

    steps = distilling_steps(distillers, sgd, batch)
    assert list(steps) == [BASELINE, "none", "l2"]
    for name, expected in ((BASELINE, [False]), ("none", []), ("l2", [False])):
        distiller = distillers["none" if name == BASELINE else name]
        before = {key: value.clone() for key, value in distiller.state_dict().items()}
        teacher_calls.clear()
        steps[name]()
        assert teacher_calls == expected and head_calls == []
        assert any(not torch.equal(value, before[key]) for key, value in distiller.state_dict().items()), name
        assert all(p.grad is None for p in distiller.parameters())
    assert steps[BASELINE] is not steps["none"] and len(optimizers) == 3
