import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from plain_ssim import rescaled, ssim_of_maps
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import kd
from kd.checks import family
from kd.models import build
from kd.taps import tapped


def with_random_norms(model):
    """Frozen batch norm that is not the identity, so that a wrong mode or missing layer shows."""
    generator = torch.Generator().manual_seed(3)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "bias")):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


@pytest.fixture
def pair(detector_name, make_detector):
    return make_detector(detector_name), with_random_norms(make_detector(detector_name, backbone="resnet18"))


@pytest.mark.parametrize("loss", ["ssim", "l1", "l2", "pkd", "cwd"])
def test_student_losses_are_untouched_and_gradients_reach_the_backbone(pair, batch, loss):
    student, teacher = pair
    student.train()
    torch.manual_seed(1)
    plain = student(*batch)
    model = kd.distill(student, teacher, loss=loss, weight=2.0)
    torch.manual_seed(1)
    losses = model(*batch)
    assert set(losses) == {*plain, "loss_distill"}
    for name in plain:
        torch.testing.assert_close(losses[name], plain[name])
    losses["loss_distill"].backward()
    stem = next(student.backbone.parameters())
    assert stem.grad is not None and stem.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapters["0"].parameters())
    total = 2.0 * sum(model.level_losses.values())
    torch.testing.assert_close(losses["loss_distill"].detach(), total)
    assert all(not value.requires_grad for value in model.level_losses.values())


def test_none_is_plain_training_and_runs_no_teacher(pair, batch):
    student, teacher = pair
    student.train()
    torch.manual_seed(1)
    plain = student(*batch)
    for model in (
        kd.distill(student, None, loss="none"),
        kd.distill(student, teacher, loss="ssim", weight=0.0),
    ):
        torch.manual_seed(1)
        losses = model(*batch)
        assert list(losses) == list(plain)
        assert all(torch.equal(losses[name], plain[name]) for name in plain)
        assert len(model.adapters) == 0


def test_self_distillation_gives_zero_loss_and_gradient(detector_name, make_detector, batch):
    student = with_random_norms(make_detector(detector_name))
    for loss in ("ssim", "l1", "l2", "pkd", "cwd"):
        model = kd.distill(student, copy.deepcopy(student), loss=loss).train()
        assert len(model.adapters) == 0
        model.zero_grad()
        distillation = model(*batch)["loss_distill"]
        assert distillation.abs() < 1e-5, loss
        distillation.backward()
        for parameter in student.parameters():
            assert parameter.grad is None or parameter.grad.abs().max() < 1e-4, loss
    # The same call with another teacher is far from zero: what is above is no constant.
    other = kd.distill(student, with_random_norms(make_detector(detector_name, num_classes=5)), loss="ssim").train()
    assert other(*batch)["loss_distill"] > 0.1


def test_identity_adapters_start_at_zero_loss(make_detector, batch):
    student = with_random_norms(make_detector())
    model = kd.distill(student, copy.deepcopy(student), adapters="always").train()
    assert set(model.adapters) == {"0", "1", "2", "p6", "p7"}
    assert model(*batch)["loss_distill"].abs() < 1e-5


def test_teacher_is_no_part_of_the_module(pair):
    student, teacher = pair
    model = kd.distill(student, teacher)
    mine = {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert not any(id(t) in mine for t in [*teacher.parameters(), *teacher.buffers()])
    assert not any("teacher" in name for name in [*model.state_dict(), *(n for n, _ in model.named_modules())])
    assert not any(p.requires_grad for p in teacher.parameters())
    student.load_state_dict(model.student.state_dict())


def test_teacher_stays_in_evaluation_mode_and_follows_to(make_detector, batch):
    teacher = make_detector(backbone="resnet18", norm="bn")
    model = kd.distill(make_detector(), teacher)
    before = {name: value.clone() for name, value in teacher.named_buffers()}
    teacher.train()
    model.train()
    assert model.student.training and not any(m.training for m in teacher.modules())
    model(*batch)
    assert all(torch.equal(before[name], value) for name, value in teacher.named_buffers())
    model.double()
    assert all(p.dtype == torch.float64 for p in teacher.parameters())
    model.to("meta")
    assert all(p.device.type == "meta" for p in teacher.parameters())


def test_evaluation_is_the_student(pair, batch):
    student, teacher = pair
    model = kd.distill(student, teacher).eval()
    found, expected = model(batch[0]), student(batch[0])
    assert [set(f) for f in found] == [set(e) for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_one_transform_and_no_teacher_heads(pair, batch, monkeypatch):
    student, teacher = pair
    model = kd.distill(student, teacher).train()
    calls = []
    for name, module in (
        ("student", student.transform),
        ("teacher", teacher.transform),
        ("teacher body", teacher.backbone),
    ):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    for head in ("head", "rpn", "roi_heads"):
        if hasattr(teacher, head):
            getattr(teacher, head).register_forward_hook(lambda *_: calls.append("head"))
    graph = []
    teacher.backbone.register_forward_hook(
        lambda *_: graph.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    )
    losses = model(*batch)
    assert calls == ["student", "teacher body"] and graph == [(False, False)]
    assert losses["loss_distill"].requires_grad


class Factors(TorchDispatchMode):
    """Keeps the upstream factors of the saved gradients, divided as they will be."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.fused_ssim.scale_.default:
            self.seen += (args[1] / torch.tensor(args[2])).tolist()
        return function(*args, **(kwargs or {}))


def test_the_weight_costs_no_pass_over_the_gradients(pair, batch):
    """It is in them: where their upstream factor is one, the kernels leave them as they are."""
    model = kd.distill(*pair, weight=3.0).train()
    losses = model(*batch)
    with Factors() as factors:
        sum(losses.values()).backward()
    assert set(factors.seen) <= {1.0}
    with Factors() as factors:
        (2 * model(*batch)["loss_distill"]).backward()
    assert factors.seen == [2.0] * len(model.level_map)


def test_loss_runs_in_float32_under_autocast(pair, batch):
    model = kd.distill(*pair).train()
    seen = []
    model.feature_loss.register_forward_pre_hook(
        lambda _, inputs: seen.append(({f.dtype for f in [*inputs[0], *inputs[1]]}, torch.is_autocast_enabled("cpu")))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(*batch)["loss_distill"].dtype == torch.float32
    assert seen == [({torch.float32}, False)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_detectors_of_another_precision(make_detector, batch, dtype):
    """Adapters run in the student's precision, the loss in float32 at least."""
    model = kd.distill(make_detector().to(dtype), make_detector(fpn_channels=24).to(dtype)).train()
    assert {p.dtype for p in model.parameters()} == {dtype}
    images, _ = model.student.transform([image.to(dtype) for image in batch[0]])
    loss = model.distillation_loss(images.tensors, model.student.backbone(images.tensors))
    assert loss.dtype == torch.promote_types(dtype, torch.float32) and loss > 0.1
    loss.backward()
    assert all(p.grad.dtype == dtype for p in model.adapters.parameters())


def test_the_loss_is_the_papers_sum_over_levels(pair, batch):
    """From the student's and the teacher's maps as their own backbones give them, by an independent SSIM."""
    student, teacher = pair
    # float64: the untrained student's activations vanish, and the rescaling magnifies their rounding
    model = kd.distill(student.double(), teacher.double(), weight=3.0).train()
    with torch.no_grad():
        for adapter in model.adapters.values():
            adapter.weight += 0.1 * torch.randn(adapter.weight.shape)
            adapter.bias += 0.5
    seen = []
    student.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, targets = batch
    targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
    found = model([image.double() for image in images], targets)["loss_distill"]
    with torch.no_grad():
        ours, theirs = student.backbone(seen[0]), teacher.backbone(seen[0])
        expected = 0.0
        for level, target in theirs.items():
            adapter = model.adapters[level]
            feature = torch.einsum("oc,nchw->nohw", adapter.weight[:, :, 0, 0], ours[level])
            feature = feature + adapter.bias[None, :, None, None]
            value = (1 - ssim_of_maps(rescaled(feature), rescaled(target))) / 2
            assert abs(model.level_losses[level] - value.mean()) < 1e-7
            expected += 3.0 * value.mean()
    assert abs(found - expected) < 1e-6 and expected > 0.5


def test_elongated_images(detector_name, make_detector):
    """Levels shorter than half the window in one direction, and longer than it in the other."""
    options = {"min_size": 40, "max_size": 1000}
    student, teacher = (make_detector(detector_name, backbone=b, **options) for b in ("mobilenet_v2", "resnet18"))
    model = kd.distill(student, with_random_norms(teacher)).train()
    target = {"boxes": torch.tensor([[5.0, 5.0, 60.0, 30.0]]), "labels": torch.tensor([1])}
    shapes = []
    student.backbone.register_forward_hook(lambda _, inputs, output: shapes.extend(output.values()))
    losses = model([torch.rand(3, 40, 600)], [target])
    assert min(s.shape[2] for s in shapes) <= 4 and max(s.shape[3] for s in shapes if s.shape[2] <= 4) > 9
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()) and losses["loss_distill"] > 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_student_is_torchvisions_own_detector(batch):
    """Built by torchvision's functions, trained a step, saved, and loaded by torchvision's functions again."""

    def plain(name):
        few = dict.fromkeys(("rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test"), 10)
        backbone = resnet_fpn_backbone(backbone_name=name, weights=None)
        return FasterRCNN(backbone, 4, min_size=64, max_size=96, box_batch_size_per_image=16, **few)

    model = kd.distill(plain("resnet18"), plain("resnet34")).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    sum(model(*batch).values()).backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(model.student.state_dict(), file)
    file.seek(0)
    loaded = plain("resnet18")
    assert not loaded.load_state_dict(torch.load(file, weights_only=True)).missing_keys
    found, expected = loaded.eval()(batch[0]), model.eval()(batch[0])
    assert all(torch.equal(f[k], e[k]) for f, e in zip(found, expected, strict=True) for k in e)


def test_hook_is_gone_after_a_step_and_copies_work(pair, batch):
    model = kd.distill(*pair).train()
    torch.manual_seed(2)
    first = model(*batch)["loss_distill"]
    assert not model.student.backbone._forward_hooks
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(2)
        assert torch.equal(copied(*batch)["loss_distill"], first)
        assert copied.teacher is not model.teacher


def test_hook_is_gone_after_an_error(pair):
    backbone = pair[0].backbone
    with pytest.raises(RuntimeError, match="on purpose"), tapped(backbone):
        raise RuntimeError("on purpose")
    assert not backbone._forward_hooks


def test_components_are_measured_on_request(pair, batch):
    model = kd.distill(*pair).train()
    model(*batch)
    assert model.level_components == {}
    model.log_components = True
    model(*batch)
    assert set(model.level_components) == set(model.level_losses)
    assert all(parts.shape == (3,) and not parts.requires_grad for parts in model.level_components.values())


def test_adapters(make_detector):
    narrow, wide = make_detector(), make_detector(fpn_channels=24)
    adapters = kd.distill(narrow, wide).adapters
    assert {a.weight.shape for a in adapters.values()} == {(24, 16, 1, 1)} and len(adapters) == 5
    with pytest.raises(ValueError, match=r"adapters: 'never'.*16, 24"):
        kd.distill(narrow, wide, adapters="never")
    assert len(kd.distill(narrow, make_detector()).adapters) == 0
    assert len(kd.distill(narrow, make_detector(backbone="resnet18")).adapters) == 5
    assert len(kd.distill(narrow, make_detector(backbone="resnet18"), adapters="never").adapters) == 0


def test_families():
    with torch.device("meta"):
        found = [family(build("retinanet", backbone=name)) for name in ("resnet18", "resnet50", "resnext50_32x4d")]
        found.append(family(build("retinanet", backbone="mobilenet_v3_small")))
        found.append(family(build("faster_rcnn", backbone="resnet50")))
    assert found[0] == found[1] and len(set(found)) == 4


def test_start_up_checks_say_what_differs(make_detector):
    student = make_detector()
    with pytest.raises(ValueError, match=r"image_mean is \[0.485.*\[0.0, 0.0, 0.0\] in the teacher"):
        kd.distill(student, make_detector(image_mean=[0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"image_std is .* and \[1.0, 1.0, 1.0\] in the teacher$"):
        kd.distill(student, make_detector(image_std=[1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="size_divisible is 32 in the student and 64 in the teacher"):
        kd.distill(student, make_detector(size_divisible=64))
    with pytest.raises(ValueError, match=r"level_map.*'pool'.*stride 64"):
        kd.distill(student, make_detector("faster_rcnn"))
    with pytest.raises(ValueError, match="'0' and '0' differ in stride"):
        kd.distill(student, make_detector("faster_rcnn"), level_map={"0": "0"})
    model = kd.distill(student, make_detector("faster_rcnn"), level_map={"0": "1", "1": "2", "2": "3", "p6": "pool"})
    assert list(model.level_map) == ["0", "1", "2", "p6"]
    with pytest.raises(ValueError, match="shares parameters"):
        kd.distill(student, student)
    with pytest.raises(ValueError, match="teacher: got None"):
        kd.distill(student, None)
    with pytest.raises(TypeError, match="teacher: Linear has no module 'backbone'"):
        kd.distill(student, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="loss: got 'huber'"):
        kd.distill(student, make_detector(), loss="huber")
    with pytest.raises(ValueError, match="weight: got -1"):
        kd.distill(student, make_detector(), weight=-1)
    with pytest.raises(ValueError, match="window"):
        kd.distill(student, make_detector(), window_size=4)


def test_probing_leaves_batch_statistics_and_modes_alone(make_detector):
    student, teacher = make_detector(norm="bn"), make_detector(norm="bn")
    student.train()
    student.backbone.fpn.eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    kd.distill(student, teacher)
    assert student.backbone.body.training and not student.backbone.fpn.training
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_importing_the_package_does_not_import_lightning():
    program = "import sys, kd; sys.exit(any(name.startswith(('lightning', 'torchmetrics')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("loss", ["ssim", "pkd"])
def test_a_weight_set_to_0_between_steps_still_measures_the_levels(make_detector, batch, loss):
    model = kd.distill(make_detector(), make_detector(fpn_channels=24), loss, weight=2.0)
    torch.manual_seed(1)
    model(*batch)
    before = model.level_losses
    model.weight = 0.0
    torch.manual_seed(1)
    losses = model(*batch)
    assert losses["loss_distill"] == 0
    assert all(torch.allclose(model.level_losses[name], before[name]) for name in before)
    losses["loss_distill"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
