import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from tiny_coco import write_coco
from torch.nn.parallel import DistributedDataParallel
from training_runs import BACKBONE, logged, write_config

import kd
from kd.evaluation import CocoEvaluator
from kd.models import DetectorConfig
from kd.training import ConfigurationError, DetectionTraining


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrapped_in_ddp_with_unused_parameters(one_process_group, make_detector, batch):
    """As torchvision's references wrap a detector; the teacher must be no part of what DDP broadcasts and reduces."""
    student, teacher = make_detector(), make_detector(backbone="resnet18")
    student.never_used = torch.nn.Linear(2, 2)
    model = kd.distill(student, teacher).train()
    gradients = []
    for wrapped in (model, DistributedDataParallel(model, find_unused_parameters=True)):
        model.zero_grad()
        losses = wrapped(*batch)
        sum(losses.values()).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    theirs = {id(t) for t in [*teacher.parameters(), *teacher.buffers()]}
    assert not any(id(t) in theirs for t in [*wrapped.parameters(), *wrapped.buffers()])
    assert sum(g is not None and float(g.abs().max()) > 0 for g in gradients[1]) > 50
    for one, other in zip(*gradients, strict=True):
        assert one is None or torch.equal(one, other)


def test_the_evaluation_sends_no_tensors_of_the_cpu(one_process_group, monkeypatch):
    """NCCL refuses them, and each process has gathered all images already: the metric must not do so once more."""

    def refused(*args, **kwargs):
        raise RuntimeError("No backend type associated with device type cpu")

    for name in ("all_gather", "barrier"):
        monkeypatch.setattr(dist, name, refused)
    evaluator = CocoEvaluator()
    box = {"boxes": torch.tensor([[2.0, 2.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    truth = {**box, "area": torch.tensor([784.0]), "iscrowd": torch.tensor([0]), "image_id": torch.tensor(1)}
    evaluator.process([{**box, "scores": torch.tensor([0.9])}], [truth])
    assert evaluator.evaluate()["AP"] == pytest.approx(100)


def test_lightnings_own_sampler_is_refused_with_several_processes(monkeypatch):
    """It would shuffle and share out what the data module has shared out already."""
    module = DetectionTraining(DetectorConfig(backbone="mobilenet_v2", num_classes=4, options=BACKBONE))
    for processes, own, refused in ((2, True, True), (2, False, False), (1, True, False)):
        connector = SimpleNamespace(use_distributed_sampler=own)
        trainer = SimpleNamespace(world_size=processes, _accelerator_connector=connector, datamodule=None)
        monkeypatch.setattr(DetectionTraining, "trainer", trainer)
        if refused:
            with pytest.raises(ConfigurationError, match=r"trainer\.use_distributed_sampler: set it to False"):
                module.on_fit_start()
        else:
            module.on_fit_start()


@pytest.mark.slow
def test_two_processes_equal_one_on_the_same_global_batch(tmp_path):
    # One size, so that no batch pads: padding depends on which images share a process.
    root = write_coco(tmp_path / "coco", images_per_split=7, size=(64, 64))
    states, figures, losses = [], [], []
    for processes in (1, 2):
        run = tmp_path / f"{processes}"
        path = Path(write_config("retinanet", root, run, data__batch_size=2 // processes))
        content = yaml.safe_load(path.read_text())
        # Its activations neither vanish nor explode untrained, so that rounding is not magnified by the rescaling.
        for role in ("student", "teacher"):
            content["model"][role]["backbone"] = "resnet18"
            del content["model"][role]["options"]["width_mult"]
        content["trainer"].update(devices=processes, strategy="ddp" if processes > 1 else "auto")
        content["model"]["optimizer"] = {"name": "sgd", "lr": 0.001}
        path.write_text(yaml.safe_dump(content))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "kd", "fit", "--config", str(path)],
            capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        states.append(torch.load(run / "student_last.pth", weights_only=True))
        figures.append(logged(run, "AP50"))
        losses.append(logged(run, "loss"))
    assert len(losses[0]) == 6 and losses[0] != pytest.approx(losses[1], abs=1e-3)  # a rank's batch is half of it
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=1e-5)
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
