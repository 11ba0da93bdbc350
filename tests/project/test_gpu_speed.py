"""benchmarks/gpu_speed.py and its tables, as far as they go without a device."""

import json
import sys

import pytest
import torch

import fused_ssim
from benchmarks import gpu_cases, gpu_ceilings, gpu_speed, gpu_tables

RECORD = {
    "device": "imagined",
    "torch": "2.11",
    "missing": {"fussim": "no wheel"},
    "wrong": {},
    "ceilings": {
        "slots_per_pixel": {"plain": 250.0, "rescaled": 320.0},
        "copy_bytes_per_s": 3e12,
        "fma_per_s": 3.2e13,
        "fma_from": "imagination",
        "slots_per_s": 3.2e13,
    },
    "not_reached": ["1x2x3x4"],
    "cases": {
        "FPN": {
            "pixels": 32_000_000,
            "channels": 256,
            "rescaled": False,
            "milliseconds": {
                "mse_loss": 0.4,
                "fused_ssim cuda": 0.3,
                "fused_ssim triton": 0.9,
                "fussim": 12.0,
                "fussim, N*C planes": 0.6,
                "pytorch-msssim": 15.0,
            },
            "graph_milliseconds": {},
            "not_measured": {"pytorch-msssim": "out of memory"},
        }
    },
}


def test_targets():
    case = RECORD["cases"]["FPN"]
    values = [target.measured(RECORD, case, case["milliseconds"]) for target in gpu_tables.TARGETS]
    assert values == pytest.approx([2, 40, 0.3 / 0.25, 0.75, 3, 0.6 / 0.9])
    met = [target.met(value) for target, value in zip(gpu_tables.TARGETS, values, strict=True)]
    assert met == [False, True, True, True, False, False]
    one_channel = {**case, "channels": 5, "rescaled": True}
    assert gpu_tables.TARGETS[1].measured(RECORD, one_channel, case["milliseconds"]) is None
    assert gpu_tables.bound_ms(RECORD, one_channel) == pytest.approx(0.32)


def test_tables_name_what_is_missing():
    text = gpu_tables.markdown(RECORD)
    for said in (
        "missing: fussim",
        "not reached: 1x2x3x4",
        "pytorch-msssim: out of memory",
        "40 yes",
        "2 NO",
        "1 of 1",
    ):
        assert said in text
    (row,) = (line for line in text.splitlines() if line.startswith("| FPN |") and "yes" not in line)
    cells = [cell.strip() for cell in row.split("|")]
    assert "1.28e+03" in cells and "0.427" in cells and "0.833" in cells  # GB/s, of a copy's, of the issue rate


def test_cases():
    names = [case.name for case in gpu_cases.CASES]
    assert len(set(names)) == len(names) == 8 + 1 + 20
    assert {f"FPN, N={n}, {kind}" for n in (1, 2, 8, 16) for kind in ("same", "kd")} <= set(names)
    pyramid = gpu_cases.CASES[0]
    assert pyramid.shapes[0] == (8, 256, 100, 152) and pyramid.shapes[-1] == (8, 256, 7, 10)
    assert gpu_cases.CASES[2].shapes == ((5, 5, 1080, 1920),)


def test_slots_come_from_the_nearest_older_architecture():
    table = json.loads(gpu_ceilings.STATIC.read_text())
    by_arch = {row["arch"]: row["slots/px (est.)"] for row in table if row["kernel"] == "fused, float32"}
    for capability, arch in (((9, 0), "sm_90"), ((8, 9), "sm_80"), ((12, 0), "sm_100"), ((7, 5), "sm_80")):
        found = gpu_ceilings.slots_per_pixel(table, capability)
        assert found["plain"] == by_arch[arch] < found["rescaled"]


def test_a_run_that_is_cut_short_keeps_what_it_measured(tmp_path, monkeypatch, capsys):
    """Time for one case of three; the others are named."""
    clock = iter([0.0, 0.0, *[1e6] * 99])
    monkeypatch.setattr(gpu_speed.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu_speed, "measure_case", lambda case, *_: {**RECORD["cases"]["FPN"], **case.facts()})
    monkeypatch.setattr(sys, "argv", ["gpu_speed", "--dry-run", "--out", str(tmp_path / "speed")])
    gpu_speed.main()
    record = json.loads((tmp_path / "speed.json").read_text())
    first, *rest = (case.name for case in gpu_cases.DRY_CASES)
    assert list(record["cases"]) == [first] and record["not_reached"] == rest
    assert "not reached" in (tmp_path / "speed.md").read_text()


def test_peers_sum_over_levels_and_kd_rescales_before_them():
    xs, ys = gpu_speed.inputs(gpu_cases.DRY_CASES[1], "cpu")
    single = {"mse_loss": torch.nn.functional.mse_loss, "mean": lambda x, y: (x - y).square().mean()}
    plain, rescaled = (gpu_speed.of_levels(case, single, ["cpu"]) for case in gpu_cases.DRY_CASES[:2])
    summed = sum(torch.nn.functional.mse_loss(x, y) for x, y in zip(xs, ys, strict=True))
    for losses, name in ((plain, "mse_loss"), (plain, "mean"), (rescaled, "mse_loss")):
        assert losses[name](xs, ys) == summed
    scaled = [[gpu_speed.min_max(2 * x + 1, "channel") for x in side] for side in (xs, ys)]
    torch.testing.assert_close(rescaled["mean"](xs, ys), plain["mean"](*scaled))
    torch.testing.assert_close(rescaled["fused_ssim cpu"](xs, ys), rescaled["fused_ssim cpu"]([3 * x for x in xs], ys))


def test_who_is_wrong_or_fails_is_named_and_stops_nobody():
    def fails(x, y):
        raise ImportError("no kernels for this torch")

    right = fused_ssim.ssim_loss
    losses = {
        "right": (right, "same"),
        "wrong": (right, "reflect"),
        "fails": (fails, "same"),
        "mse_loss": (fails, None),
    }
    errors, wrong = gpu_speed.judge(losses, "cpu")
    assert set(errors) == {"right", "wrong"} and set(wrong) == {"wrong", "fails"}
    assert "off by" in wrong["wrong"] and "no kernels" in wrong["fails"]

    def out_of_memory():
        raise torch.OutOfMemoryError("too large\nmore")

    runs = {"works": lambda: None, "large": out_of_memory}
    medians, failed = gpu_speed.take_turns(runs, "cpu", torch.zeros(1), rounds=3, seconds=1)
    assert set(medians) == {"works"} and failed == {"large": "too large"}


def test_errors_of_every_kind_are_named_and_stop_nobody(monkeypatch):
    """Triton's have nothing in common with others but Exception."""

    class CompilationError(Exception):
        pass

    def fails(*_):
        raise CompilationError

    _, wrong = gpu_speed.judge({"fails": (fails, "same")}, "cpu")
    assert list(wrong) == ["fails"]
    _, failed = gpu_speed.take_turns({"fails": fails}, "cpu", torch.zeros(1), rounds=3, seconds=1)
    assert "CompilationError" in failed["fails"]
    monkeypatch.setattr(gpu_speed, "captured", fails)
    (case, *_) = gpu_cases.DRY_CASES
    result = gpu_speed.measure_graphs(case, {"fails": fails}, "cpu", rounds=3, seconds=1)
    assert "CompilationError" in result["not_captured"]["fails"]


@pytest.mark.slow
def test_the_ceiling_of_multiply_adds_compiles(tmp_path):
    if gpu_ceilings.build_fma(tmp_path, "sm_90") is None:
        pytest.skip("no nvcc")
    assert (tmp_path / "libfma_ceiling.so").stat().st_size > 0
