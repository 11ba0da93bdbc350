"""Weights from files: every format that is read, and nothing of a file that is run."""

import argparse
import collections
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kd.models import build
from kd.weights import read_state_dict


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_weights_of_a_detector_from_a_file(tmp_path, capsys, make_detector):
    model = make_detector()
    good = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, good)
    loaded = make_detector(weights=str(good))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    state = model.state_dict()
    state["backbone.fpn.extra"] = state.pop("backbone.fpn.extra_blocks.p6.weight")
    torch.save(state, tmp_path / "renamed.pth")
    with pytest.raises(ValueError, match=r"1 missing \(backbone.fpn.extra_blocks.p6.weight\); 1 unexpected"):
        make_detector(weights=str(tmp_path / "renamed.pth"))
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="can not be read as plain tensors"):
        make_detector(weights=str(tmp_path / "evil.pth"))
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth"):
        make_detector(weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match=r"ResNet50_Weights.NOPE"):
        build("fasterrcnn_resnet50_fpn", weights="ResNet50_Weights.NOPE")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
def test_every_format_gives_the_same_tensors(tmp_path, suffix, make_detector):
    model = make_detector()
    state, path = model.state_dict(), tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    elif suffix == "safetensors":
        save_file(state, path)
    else:  # as in detectron2's model zoo
        arrays = collections.OrderedDict((name, value.numpy()) for name, value in state.items())
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    read = read_state_dict(path)
    assert list(read) == list(state) or suffix == "safetensors"
    assert set(read) == set(state) and all(torch.equal(read[name], value) for name, value in state.items())
    loaded = make_detector(weights=str(path)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_pickles_that_ask_for_more_than_arrays_are_refused(tmp_path, capsys):
    path = tmp_path / "model.pkl"
    for content in ({"model": {"w": Evil()}}, {"model": {"w": np.array([Evil()], dtype=object)}}, {"m": np.load}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"model.pkl.*asks for .*no part of an array"):
            read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out
    for name in ("model.safetensors", "model.pth"):
        (tmp_path / name).write_bytes(b"neither tensors nor a header")
        with pytest.raises(ValueError, match=rf"{name}' can not be read as"):
            read_state_dict(tmp_path / name)
    path.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="can not be read"):
        read_state_dict(path)


@pytest.fixture
def mmengine(monkeypatch):
    """A class that pickles under mmengine's name, as its log buffer does, holding arrays and its own methods."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    program = """
import numpy as np
class HistoryBuffer:
    def __init__(self): self.history = np.arange(3.0)
    def mean(self): return self.history.mean()
    def __getstate__(self): return {"history": self.history, "n": np.int64(3), "methods": {"mean": HistoryBuffer.mean}}
    def __setstate__(self, state): print("code ran")
"""
    exec(program, module.__dict__)
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.HistoryBuffer.__module__ = module.__name__
    return module


def test_a_checkpoint_of_torchvisions_reference_scripts(tmp_path, make_detector):
    """references/detection/train.py saves its options beside the weights, as argparse made them."""
    model = make_detector()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 11])
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(),
               "args": argparse.Namespace(dataset="coco", lr=0.1), "epoch": 11}  # fmt: skip
    torch.save(content, tmp_path / "model_11.pth")
    read = read_state_dict(tmp_path / "model_11.pth")
    assert list(read) == list(content["model"])
    assert all(torch.equal(read[name], value) for name, value in content["model"].items())


def test_log_buffers_beside_the_weights_are_passed_over(tmp_path, mmengine, capsys):
    path = tmp_path / "epoch_12.pth"
    state = {"backbone.conv1.weight": torch.rand(2, 3)}
    torch.save({"meta": {"epoch": 12}, "state_dict": state, "message_hub": {"loss": mmengine.HistoryBuffer()}}, path)
    with pytest.raises(Exception, match=r"HistoryBuffer|getattr"):
        torch.load(path, weights_only=True)  # what this is about
    assert torch.equal(read_state_dict(path)["backbone.conv1.weight"], state["backbone.conv1.weight"])
    torch.save({"state_dict": state, "message_hub": Evil()}, path)
    with pytest.raises(ValueError, match="can not be read as plain tensors"):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out
    # nor do they stand for weights
    torch.save({"state_dict": {"w": mmengine.HistoryBuffer()}}, path)
    with pytest.raises(ValueError, match="not a state dict: w hold no tensor"):
        read_state_dict(path)
