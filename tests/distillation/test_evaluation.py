import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import RetinaNet
from training_runs import logged, write_config

from kd.cli import main
from kd.coco import CocoDetection
from kd.evaluation import CocoEvaluator, evaluate_detector
from kd.models import build


@pytest.fixture
def case(tmp_path):
    """Twelve images with objects of all sizes, crowds and areas other than the box's; and imperfect detections."""
    generator = torch.Generator().manual_seed(7)

    def uniform(low, high):
        return float(low + (high - low) * torch.rand((), generator=generator))

    images, annotations, detections = [], [], []
    for image_id in range(1, 13):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 400, "height": 300})
        found = []
        for k in range(int(torch.randint(0, 7, (), generator=generator))):
            # quarters of a pixel are exact in float32, so both evaluations see the very same boxes
            w, h = (round(uniform(8, 150) * 4) / 4 for _ in range(2))
            x, y = round(uniform(0, 400 - w) * 4) / 4, round(uniform(0, 300 - h) * 4) / 4
            category = int(torch.randint(1, 4, (), generator=generator))
            area = round(w * h * uniform(0.4, 1.0))
            crowd = int(k == 4)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "bbox": [x, y, w, h],
                 "area": area, "iscrowd": crowd}
            )  # fmt: skip
            for _ in range(2 if crowd else 1):
                if uniform(0, 1) < 0.85:
                    shift = [round(uniform(-6, 6) * 4) / 4 for _ in range(2)]
                    label = category if uniform(0, 1) < 0.85 else 1
                    found.append(([x + shift[0], y + shift[1], w, h], label, uniform(0.1, 1)))
        for _ in range(2):
            found.append(([round(uniform(0, 200)), round(uniform(0, 200)), 40.0, 30.0], 2, uniform(0.05, 0.7)))
        detections.append(found)
    path = tmp_path / "annotations.json"
    categories = [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    for image in images:
        (tmp_path / image["file_name"]).touch()
    return tmp_path, path, detections


def as_tensors(found):
    boxes = torch.tensor([b for b, _, _ in found]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        "scores": torch.tensor([s for _, _, s in found]),
    }


def targets_of(dataset):
    """The evaluation targets without reading pictures."""
    result = []
    for record in dataset.records:
        rows = record.rows()
        boxes = rows[:, :4].clone()
        boxes[:, 2:] += boxes[:, :2]
        result.append(
            {"boxes": boxes.float(), "labels": rows[:, 5].long(), "area": rows[:, 4].float(),
             "iscrowd": rows[:, 6].long(), "image_id": torch.tensor(record.image_id)}
        )  # fmt: skip
    return result


def pycocotools_figures(path, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        rows = [
            {"image_id": k, "category_id": label, "bbox": box, "score": float(torch.tensor(score))}
            for k, found in enumerate(detections, start=1)
            for box, label, score in found
        ]
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75", "APS", "APM", "APL"), 100 * evaluation.stats[:6], strict=True))


def test_figures_equal_pycocotools(case):
    folder, path, detections = case
    targets = targets_of(CocoDetection(folder, path))
    evaluator = CocoEvaluator()
    for found, target in zip(detections, targets, strict=True):
        evaluator.process([as_tensors(found)], [target])
    figures = evaluator.evaluate()
    expected = pycocotools_figures(path, detections)
    assert 5 < expected["AP"] < 95 and expected["APS"] > 0  # a case that says something
    assert figures == pytest.approx(expected, abs=1e-4)
    # crowd and area matter in this case: without them the figures are others
    for key, value in (("iscrowd", 0), ("area", 100.0)):
        spoilt = CocoEvaluator()
        for found, target in zip(detections, targets, strict=True):
            spoilt.process([as_tensors(found)], [{**target, key: torch.full_like(target[key], value)}])
        assert spoilt.evaluate() != pytest.approx(expected, abs=1e-2)


def test_kd_validate_gives_pycocotools_figures(case, capsys, monkeypatch):
    """The whole way: annotation file, pictures, batches, Lightning's loop, the table. The detector is one that knows
    the stored detections; every picture is filled with its image id."""
    folder, path, detections = case
    for image_id in range(1, 13):
        Image.new("RGB", (400, 300), (image_id,) * 3).save(folder / f"{image_id}.png")

    def forward(self, images, targets=None):
        assert not self.training and targets is None
        return [as_tensors(detections[round(255 * float(image[0, 0, 0])) - 1]) for image in images]

    monkeypatch.setattr(RetinaNet, "forward", forward)
    run = folder / "run"
    config = write_config("retinanet", folder, run)
    student = yaml.safe_load(Path(config).read_text())["model"]["student"]
    torch.save(build(student).state_dict(), folder / "weights.pth")
    data = {"val_images": ".", "val_annotations": path.name, "eval_batch_size": 5, "workers": 1}
    main(["validate", "--config", config, f"--model.student.weights={folder / 'weights.pth'}",
          *(f"--data.{name}={value}" for name, value in data.items())])  # fmt: skip
    expected = pycocotools_figures(path, detections)
    assert {name: logged(run, name, "validate") for name in expected} == {
        name: [pytest.approx(value, abs=1e-3)] for name, value in expected.items()
    }
    assert "AP50" in capsys.readouterr().out


def test_repeated_images_count_once_and_classes_are_named(case):
    folder, path, detections = case
    targets = targets_of(CocoDetection(folder, path))
    once, twice = CocoEvaluator(), CocoEvaluator()
    for evaluator, order in ((once, range(12)), (twice, [*range(11, -1, -1), 0, 3, 5])):
        for k in order:
            evaluator.process([as_tensors(detections[k])], [targets[k]])
    names = {1: "class 1", 2: "class 2", 3: "class 3"}
    figures = once.evaluate(names)
    assert figures == twice.evaluate(names)
    per_class = [figures[f"AP/class {k}"] for k in (1, 2, 3)]
    assert sum(per_class) / 3 == pytest.approx(figures["AP"], abs=1e-3) and len(set(per_class)) == 3


def test_nothing_processed_is_an_error():
    with pytest.raises(RuntimeError, match="no image was processed"):
        CocoEvaluator().evaluate()


def test_evaluate_detector_restores_the_mode(make_detector, coco_root):
    from kd.data import CocoDataModule

    data = CocoDataModule(str(coco_root), workers=0)
    data.setup("validate")
    model = make_detector().train()
    figures = evaluate_detector(model, data.val_dataloader())
    assert model.training and list(figures) == ["AP", "AP50", "AP75", "APS", "APM", "APL"]
