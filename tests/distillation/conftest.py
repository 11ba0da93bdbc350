"""Tiny detectors and a tiny COCO folder, so that every test takes seconds at most."""

import sys
from pathlib import Path

import pytest
import torch

from kd.models import build

# Under import mode importlib the folder of the tests is not on the path by itself.
sys.path.insert(0, str(Path(__file__).parent))
from comparisons import compare, write_comparison
from tiny_coco import write_coco

TINY = {"min_size": 64, "max_size": 96, "fpn_channels": 16, "norm": "frozen_bn"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors gain nothing from threads and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_detector(name="retinanet", backbone="mobilenet_v2", **options):
    options = {**TINY, **options}
    if backbone.startswith("mobilenet"):
        options.setdefault("width_mult", 0.25)
    if name == "faster_rcnn":
        options = {"proposals": 20, "box_head_width": 32, **options}
    return build(name, backbone=backbone, num_classes=options.pop("num_classes", 8), **options)


@pytest.fixture(params=["retinanet", "faster_rcnn"])
def detector_name(request):
    return request.param


@pytest.fixture
def make_detector():
    return tiny_detector


@pytest.fixture
def batch():
    """Two images of unequal size, one of them without a box."""
    images = [torch.rand(3, 60, 90), torch.rand(3, 64, 48)]
    targets = [
        {"boxes": torch.tensor([[4.0, 5.0, 40.0, 50.0], [10.0, 2.0, 80.0, 30.0]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, targets


@pytest.fixture
def coco_root(tmp_path):
    return write_coco(tmp_path / "coco")


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A finished comparison of RetinaNet students, "none" and "ssim", two seeds each: (its folder, configuration)."""
    folder = tmp_path_factory.mktemp("comparison")
    config = write_comparison("retinanet", write_coco(folder / "coco"), folder / "run")
    arguments = ("--methods", "none,ssim", "--seeds", "2", "--step-rounds", "2")
    assert compare(config, folder / "out", *arguments) == 0
    return folder / "out", config
