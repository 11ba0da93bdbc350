"""torchvision's own training loop, copied from its references, with the one changed line."""

import pytest
import torch
from reference_engine import detections, optimizer_of, train_one_epoch
from torch import nn

import kd
from kd.data import CocoDataModule

CPU = torch.device("cpu")
EPOCHS = 3


@pytest.fixture
def data(coco_root):
    made = CocoDataModule(str(coco_root), batch_size=2, workers=0)
    made.setup()
    return made


def trained(model, data, *, epochs=EPOCHS, scaler=None, norm_weight_decay=None, checkpoint=None, lr=0.02):
    """train.py's main loop; ``checkpoint`` is what it saves after every epoch, to resume from."""
    optimizer = optimizer_of(model, lr, norm_weight_decay)
    lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=0.1)
    loader, meters, first = data.train_dataloader(), [], 0
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        first = checkpoint["epoch"] + 1
    for epoch in range(first, epochs):
        loader.batch_sampler.set_epoch(epoch)
        torch.manual_seed(epoch)
        train_one_epoch(model, optimizer, loader, CPU, epoch, meters, scaler)
        lr_scheduler.step()
        checkpoint = {
            "model": {k: v.clone() for k, v in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": lr_scheduler.state_dict(),
            "epoch": epoch,
        }
    return meters, checkpoint


@pytest.fixture
def detectors(detector_name, make_detector):
    def made():
        torch.manual_seed(0)
        # Scores of a few steps' training are below Faster R-CNN's usual threshold.
        options = {"head_norm": "group_norm"} if detector_name == "retinanet" else {"box_score_thresh": 0.0}
        return make_detector(detector_name, backbone="resnet18", norm="bn", **options), make_detector(
            detector_name, backbone="resnet18", norm="bn", fpn_channels=24
        )

    return made


def test_one_changed_line(detectors, data):
    student, teacher = detectors()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    model = student
    model = kd.distill(model, teacher, loss="ssim", weight=4.0)  # the changed line
    untrained = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("adapters.")}
    meters, checkpoint = trained(model, data)
    assert [m["lr"] for m in meters] == pytest.approx([0.01001, 0.02, 0.02, *[0.02] * 3, *[0.002] * 3])
    assert all(m["loss"] == pytest.approx(sum(v for k, v in m.items() if k not in ("loss", "lr"))) for m in meters)
    distillation = [m["loss_distill"] for m in meters]
    assert sum(distillation[-3:]) < 0.9 * sum(distillation[:3])
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not any("teacher" in name for name in checkpoint["model"])
    assert untrained and any(not torch.equal(checkpoint["model"][k], v) for k, v in untrained.items())
    # The reference's evaluation and its checkpoint's use: the distiller detects as the plain student does.
    plain, _ = detectors()
    plain.load_state_dict(model.student.state_dict())
    found, expected = (detections(m, data.val_dataloader(), CPU) for m in (model, plain))
    assert list(found) == list(range(10, 18)) and any(len(boxes["scores"]) for boxes in found.values())
    assert all(torch.equal(found[i][k], expected[i][k]) for i in found for k in expected[i])


def test_without_a_teacher_the_line_changes_nothing(detectors, data):
    results = []
    for changed in (False, True):
        model, _ = detectors()
        student = model
        if changed:
            model = kd.distill(model, None, loss="none")
        meters, _ = trained(model, data, epochs=2)
        results.append((meters, student.state_dict()))
    (plain, weights), (distilled, others) = results
    assert plain == distilled
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_resumed_from_the_references_checkpoint(detectors, data):
    student, teacher = detectors()
    meters, whole = trained(kd.distill(student, teacher), data)
    student, teacher = detectors()
    _, checkpoint = trained(kd.distill(student, teacher), data, epochs=2)
    student, teacher = detectors()
    resumed, last = trained(kd.distill(student, teacher), data, checkpoint=checkpoint)
    assert resumed == meters[6:]
    assert all(torch.equal(value, last["model"][name]) for name, value in whole["model"].items())


def test_mixed_precision_and_norm_weight_decay(detectors, data):
    """``--amp``'s scaler, and ``--norm-weight-decay``: its split finds every parameter once, the adapters' included."""
    student, teacher = detectors()
    model = kd.distill(student, teacher)
    optimizer = optimizer_of(model, 0.02, norm_weight_decay=0.0)
    counts = [len(group["params"]) for group in optimizer.param_groups]
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
    assert counts == [2 * len(norms), len(list(model.parameters())) - 2 * len(norms)]
    # oneDNN's gradient of the weights of a 3 x 3 convolution of 1 x 2 pixels (P7 here) takes uninitialised memory in
    # bfloat16: plain torchvision's training, too, goes to NaN under MALLOC_PERTURB_=128, and now and then without.
    with torch.backends.mkldnn.flags(enabled=False):
        meters, _ = trained(model, data, scaler=torch.amp.GradScaler("cpu"), norm_weight_decay=0.0)
    assert all(m["loss"] < 100 for m in meters)
    distillation = [m["loss_distill"] for m in meters]
    assert sum(distillation[-3:]) < 0.9 * sum(distillation[:3])
