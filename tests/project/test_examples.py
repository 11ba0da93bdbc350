"""Every script in examples/ runs, and does what it says."""

import importlib.util
from pathlib import Path

import pytest
import torch

import fused_ssim

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED = {"restore_image", "splat_2d", "distill_torchvision"}


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_example_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_restore_image(tmp_path):
    module = example("restore_image")
    similarities = module.main(["--side", "48", "--steps", "60", "--out", str(tmp_path / "rings.png")])
    assert len(similarities) == 60 and similarities[0] < 0.3 and similarities[-1] > 0.9
    # The written picture, as an input: the same run again.
    again = module.main(["--image", str(tmp_path / "rings.png"), "--steps", "2", "--out", str(tmp_path / "again.png")])
    assert len(again) == 2 and (tmp_path / "again.png").stat().st_size > 0


def test_splat_2d(tmp_path):
    module = example("splat_2d")
    out = tmp_path / "splats.png"
    losses = module.main(["--gaussians", "60", "--side", "40", "--steps", "60", "--out", str(out)])
    assert losses[-1] < 0.5 * losses[0] and out.stat().st_size > 0


def test_splats_are_composed_front_to_back():
    module = example("splat_2d")
    splats = module.Splats(2)
    with torch.no_grad():
        splats.centre.fill_(0.5)
        splats.log_size.fill_(5.0)  # both cover everything
        splats.colour.copy_(torch.tensor([[40.0, -40.0, -40.0], [-40.0, 40.0, -40.0]]))
        splats.opacity.fill_(0.0)  # half transparent
        red, green, blue = splats(8)[0].mean((1, 2)).tolist()
    assert (red, green, blue) == pytest.approx((0.5, 0.25, 0.0), abs=1e-3)


def test_the_loss_of_the_splats_is_l1_and_ssim():
    module = example("splat_2d")
    target = module.scene(24)
    _, losses = module.fit(target, count=9, steps=1)
    torch.manual_seed(0)
    picture = module.Splats(9)(24)
    expected = 0.8 * (picture - target).abs().mean() + 0.2 * (1 - fused_ssim.ssim(picture, target))
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_distill_torchvision():
    module = example("distill_torchvision")
    history, weights = module.main(["--teacher-steps", "2", "--steps", "3", "--side", "96", "--images", "2"])
    assert len(history) == 3
    assert {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_distill"} == set(history[0])
    assert all(0 < losses["loss_distill"] <= 4.0 * 3 for losses in history)  # the weight, times three levels in [0, 1]
    plain = module.detector(96)
    assert plain.load_state_dict(weights)
