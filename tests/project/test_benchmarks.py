"""The benchmark's judge, cases and memory measurement, and one small run from end to end."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import torch

import fused_ssim
from benchmarks import cases, measure, peers, report, run
from benchmarks.peers import Candidate

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss(x, y):
    return 1 - fused_ssim.ssim(x, y, padding="valid")


WRONG = {
    "sign of the gradient": lambda x, y: 2 - 2 * fused_ssim.ssim(x, y, padding="valid").detach() - loss(x, y),
    "no gradient": lambda x, y: loss(x, y).detach() + 0 * x.sum(),
    "padding": lambda x, y: 1 - fused_ssim.ssim(x, y, padding="reflect"),
    "sigma": lambda x, y: 1 - fused_ssim.ssim(x, y, sigma=1.51, padding="valid"),
    "NaN": lambda x, y: loss(x, y) * (x * float("nan")).sum(),
}


def test_the_judge_passes_what_is_right():
    judge = measure.Judge(*measure.images((1, 2, 16, 23), "cpu"))
    errors = judge.errors(Candidate("right", "peer", lambda: loss, padding="valid"), loss)
    assert errors.value < 1e-6 and errors.gradient < 1e-5 and errors.gradient_max < 1e-4
    half = Candidate("half", "peer", lambda: loss, padding="valid", scale=0.5)
    assert judge.errors(half, lambda x, y: 0.5 * loss(x, y)).value < 1e-6


@pytest.mark.parametrize("fault", WRONG)
def test_the_judge_refuses_what_is_wrong(fault):
    judge = measure.Judge(*measure.images((1, 2, 16, 23), "cpu"))
    errors = judge.errors(Candidate(fault, "peer", lambda: WRONG[fault], padding="valid"), WRONG[fault])
    assert not errors.gradient <= measure.GRADIENT_LIMIT


def test_cases():
    everything = cases.cases(cases.GROUPS, quick=False)
    assert len(set(everything)) == len(everything) == 5 + 7 + 10 + 6
    assert {c.shape for c in everything if c.group == "issue"} == set(cases.ISSUE)
    quick = cases.cases(cases.GROUPS, quick=True)
    assert set(quick) < set(everything) and set(cases.GROUPS) == {c.group for c in quick}
    small = cases.cases(cases.GROUPS, quick=False, largest=4096)
    assert small and all(cases.elements(c) <= 4096 for c in small)


@pytest.mark.parametrize("name", [peer.name for peer in peers.PEERS if "cpu" in peer.devices])
def test_a_peer_computes_what_its_adapter_says(name):
    pytest.importorskip(name.replace("-", "_"))
    peer = next(peer for peer in peers.PEERS if peer.name == name)
    errors = measure.Judge(*measure.images((2, 3, 24, 31), "cpu")).errors(peer, peer.build())
    assert errors.gradient < 1e-5 and errors.value < 1e-5


@pytest.mark.parametrize("warm_seconds", [0.0, 60.0])
def test_turns_are_interleaved_and_slow_ones_get_fewer(monkeypatch, warm_seconds):
    monkeypatch.setattr(measure, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_SECONDS", warm_seconds)
    order = []

    def noted(name):
        def function(x, y):
            order.append(name)
            return (x - y).square().mean()

        return function

    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    x, y = measure.images((1, 1, 4, 4), "cpu")
    seconds = measure.times({"a": noted("a"), "b": noted("b")}, x, y, rounds=9)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    each = 2 if warm_seconds else 1  # the first of two is not counted
    assert order[-6 * each :] == [name for name in ["a", "b", "b", "a", "a", "b"] for _ in range(each)]


@pytest.mark.parametrize("count", [1, 2, 3, 13, 14])
def test_everybody_comes_after_everybody_else(count):
    size = count + count % 2
    orders = [measure.order(count, number) for number in range(size)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    follows = Counter(pair for order in orders for pair in pairwise(order))
    # Once each; of an odd count, once more those that stand on either side of the place that is left out.
    assert set(follows) == set(permutations(range(count), 2)) and max(follows.values(), default=1) <= 1 + count % 2


HELD = """
import torch
from benchmarks import measure

def call():
    held = torch.ones(2**24)
    del held
    return torch.ones(2**23)

print(measure._high_water_mark(call))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
def test_the_high_water_mark_counts_what_was_held():
    """In a fresh process, as it is used: one whose heap has grown does not give memory back at once."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    result = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    if result.stdout.strip() == "None":
        pytest.skip("this system does not let a process reset its high-water mark")
    size = 4 * 2**24
    assert 0.98 * size < int(result.stdout) < 1.1 * size  # the kernel counts pages in batches


def test_ratios_of_a_record():
    record = {
        "candidates": {
            "fused_ssim same": {"kind": "fused", "padding": "same", "twin": "fused_ssim same"},
            "fused_ssim valid": {"kind": "fused", "padding": "valid", "twin": "fused_ssim valid"},
            "peer": {"kind": "peer", "padding": "valid", "twin": "fused_ssim valid"},
            "absent": {"kind": "peer", "padding": "valid", "twin": "fused_ssim valid"},
        },
        "cases": [{"median_seconds": {"fused_ssim same": 2.0, "fused_ssim valid": 1.0, "peer": 8.0}}],
    }
    entry = record["cases"][0]
    assert report.as_called(record, entry, "peer") == 4.0
    assert report.same_definition(record, entry, "peer") == 8.0
    assert report.fastest_peer(record, entry, report.same_definition) == 8.0
    assert report.geometric_mean([2.0, None, 8.0]) == pytest.approx(4.0)
    assert report.number(None) == "-" and report.number(12.34) == "12.3" and report.number(123.4) == "123"


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "ISSUE", ((2, 3, 12, 17),))
    monkeypatch.setattr(measure, "PATIENCE_SECONDS", 0.1)
    out = tmp_path / "cpu"
    arguments = ["run", "--quick", "--device", "cpu", "--threads", "1", "--largest", "5000", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    record = json.loads(out.with_suffix(".json").read_text())
    assert [c["group"] for c in record["cases"]] == ["issue", "size", "channels"]
    measured = record["cases"][0]["median_seconds"]
    assert {"fused_ssim same", "fused_ssim valid", "fused_ssim reflect", "mse_loss", "reference"} <= set(measured)
    assert all(
        seconds > 0 and math.isfinite(seconds) for c in record["cases"] for seconds in c["median_seconds"].values()
    )
    assert record["machine"]["versions"]["torch"] and record["machine"]["threads"] == 1
    text = out.with_suffix(".md").read_text()
    assert text == report.markdown(record) and text.strip() in capsys.readouterr().out
    for peer in (p for p in peers.PEERS if "cpu" in p.devices and p.name in measured):
        assert peer.name in text
    for name in ("ratios", "growth", "memory"):
        assert (tmp_path / f"cpu_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_cut_short_keeps_what_it_measured(tmp_path, monkeypatch):
    def measured_or_cut(case, candidates, args):
        if case.shape[1] > 1:
            raise KeyboardInterrupt
        nothing = {key: {} for key in ("errors", "median_seconds", "fastest_seconds", "turns", "not_measured")}
        return {"group": case.group, "shape": list(case.shape), "varied": case.varied, **nothing}

    monkeypatch.setattr(run, "measure_case", measured_or_cut)
    arguments = ["run", "--shapes", "channels", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "cpu")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(KeyboardInterrupt):
        run.main()
    assert [c["shape"] for c in json.loads((tmp_path / "cpu.json").read_text())["cases"]] == [[1, 1, 50, 76]]
    assert "(1, 1, 50, 76)" in (tmp_path / "cpu.md").read_text()
