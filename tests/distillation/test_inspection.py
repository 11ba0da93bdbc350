"""``kd inspect``: the maps are what the losses are means of, and the pictures come out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tiny_coco import write_coco

import kd
from kd.inspection import boxes, command
from kd.inspection.command import main
from kd.inspection.figures import figures_of
from kd.inspection.maps import inspect_image
from kd.run_folder import RunFolder, RunFolderError


def image_of(height, width):
    return torch.rand(3, height, width)


@pytest.mark.parametrize("loss", ["ssim", "l2"])
def test_maps_average_to_the_loss_of_the_level(loss, make_detector):
    torch.manual_seed(3)
    distiller = kd.distill(make_detector(), make_detector(backbone="resnet18", fpn_channels=24), loss).train()
    image = image_of(64, 96)
    inspection = inspect_image(distiller, image)
    assert distiller.training and not distiller.teacher.training
    student = distiller.student.eval()
    images, _ = student.transform([image])
    distiller.distillation_loss(images.tensors, student.backbone(images.tensors))
    assert [level.level for level in inspection.levels] == list(distiller.level_losses)
    for level in inspection.levels:
        map_ = level.ssim_loss if loss == "ssim" else level.squared_error
        expected = distiller.level_losses[level.level]
        assert float(map_.mean()) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
        assert expected > 1e-3 or map_.numel() == 1  # a single pixel is all the same after the rescaling
        assert level.student.shape == level.teacher.shape == (24, *map_.shape)
        assert float(level.student.min()) >= 0 and float(level.student.max()) <= 1
        assert float(level.channel_loss.mean()) == pytest.approx(float(level.ssim_loss.mean()), rel=1e-4, abs=1e-6)


def test_components_multiply_to_ssim(make_detector):
    """On one channel, where the mean over channels is the map itself; other exponents change the loss map alone."""
    torch.manual_seed(3)
    student, teacher = make_detector(fpn_channels=2, norm="bn"), make_detector(fpn_channels=1, norm="bn")
    distiller = kd.distill(student, teacher, "ssim", exponents=(1.0, 0.0, 1.0))
    levels = inspect_image(distiller, image_of(64, 96)).levels
    for level in levels:
        assert torch.allclose(1 - 2 * level.ssim_loss, level.luminance * level.structure, atol=1e-4)
    contrast = levels[0].contrast
    assert not torch.allclose(contrast, torch.ones_like(contrast), atol=1e-3)


def test_a_student_equal_to_its_teacher_shows_no_difference(make_detector):
    student = make_detector(norm="bn")
    teacher = make_detector(norm="bn")
    teacher.load_state_dict(student.state_dict())
    for level in inspect_image(kd.distill(student, teacher, "ssim"), image_of(60, 90)).levels:
        assert float(level.squared_error.abs().max()) == 0
        assert float(level.ssim_loss.abs().max()) < 1e-6
        assert float((level.structure - 1).abs().max()) < 1e-4


def test_the_picture_is_the_image_with_its_padding(make_detector):
    student = make_detector(min_size=64, max_size=96)
    image = image_of(64, 80)
    inspection = inspect_image(kd.distill(student, None, "none"), image)
    assert inspection.size == (64, 80) and inspection.transformed.shape == (3, 64, 96)
    assert torch.allclose(inspection.transformed[:, :, :80], image, atol=1e-3)
    assert inspection.levels == [] and inspection.teacher is None
    assert list(figures_of(inspection, None, {})) == ["detections"]


def test_command_writes_every_figure(compared, tmp_path, capsys):
    out, _ = compared
    run = out / "students/ssim-seed0"
    assert main(["--student", str(run), "--out", str(tmp_path)]) == 0
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 4 * 4 and [line for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    for file in files:
        with Image.open(file) as picture:
            colours = picture.convert("RGB").getcolors(maxcolors=2**24)
            assert min(picture.size) > 100 and len(colours) > 10, file
    # Of an image file that the annotations know, the ground truth is drawn; of another one it is not.
    known = next((out.parent / "coco/val2017").glob("*17.png"))
    unknown = tmp_path / "other.png"
    shutil.copy(known, unknown)
    assert main(["--student", str(run), "--out", str(tmp_path / "two"), str(known), str(unknown)]) == 0
    with_truth, without = ((tmp_path / "two" / f"{name}_detections.png").read_bytes() for name in (known.stem, "other"))
    assert with_truth != without
    maps = [(tmp_path / "two" / f"{name}_maps.png").read_bytes() for name in (known.stem, "other")]
    assert maps[0] == maps[1]


def test_images_of_one_name_keep_their_own_truth_and_figures(compared, tmp_path, monkeypatch):
    root = write_coco(tmp_path / "coco", images_per_split=2)
    annotations = root / "annotations/instances_val2017.json"
    content = json.loads(annotations.read_text())
    files = [root / "val2017" / folder / "1.png" for folder in "ab"]
    for file, image in zip(files, content["images"], strict=True):
        file.parent.mkdir()
        (root / "val2017" / image["file_name"]).rename(file)
        image["file_name"] = f"{file.parent.name}/1.png"
    annotations.write_text(json.dumps(content))
    run = RunFolder(compared[0] / "students/none-seed0")
    run.config["data"]["root"] = str(root)
    drawn = []
    monkeypatch.setattr(command, "figures_of", lambda found, target, names: (drawn.append(target), {"x": Figure()})[1])
    for images in ([], files):
        drawn.clear()
        written = command.inspect_run(run, None, images, tmp_path)
        assert [int(target["image_id"]) for target in drawn] == [10, 11]
        assert len(set(written)) == 2 and all(file.is_file() for file in written)
    # Of a copy elsewhere nothing says which of the two it is.
    monkeypatch.chdir(tmp_path)
    shutil.copy(files[0], "1.png")
    command.inspect_run(run, None, [Path("1.png")], tmp_path)
    assert drawn[-1] is None


def test_untrained_heads_of_a_teacher_are_not_drawn(compared, tmp_path, monkeypatch):
    """A converted teacher may have backbone and FPN only; its features are shown, its detections mean nothing."""
    shown = []
    monkeypatch.setattr(command, "figures_of", lambda inspection, *_: (shown.append(inspection), {})[1])
    run = RunFolder(compared[0] / "students/ssim-seed0")
    distiller = run.distiller()
    monkeypatch.setattr(RunFolder, "distiller", lambda *_: distiller)
    for distiller.teacher.heads_are_trained in (True, False):
        command.inspect_run(run, None, [], tmp_path)
    assert len(shown) == 8 and all(len(inspection.levels) == 5 for inspection in shown)
    assert [inspection.teacher is None for inspection in shown] == [False] * 4 + [True] * 4


def test_another_teacher_and_what_does_not_fit(compared, tmp_path, capsys):
    out, config = compared
    alone = out / "students/none-seed0"
    # A student of its own kind as the teacher: no adapters are needed, so their features can be compared.
    assert main(["--student", str(alone), "--teacher", str(out / "students/ssim-seed0"), "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*_maps.png"))) == 4
    # The wider teacher takes adapters that a student trained alone does not have.
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(yaml.safe_dump(yaml.safe_load(Path(config).read_text())["model"]["teacher"]))
    assert main(["--student", str(alone), "--teacher", str(teacher), "--out", str(tmp_path)]) == 1
    assert "adapters on the levels 0, 1, 2, p6, p7, which this run has not trained" in capsys.readouterr().err
    assert main(["--student", str(tmp_path)]) == 1
    assert "no config.yaml" in capsys.readouterr().err
    assert main(["--student", str(alone), "--out", str(tmp_path), str(teacher)]) == 1
    assert "can not be read as an image" in capsys.readouterr().err


def test_a_run_folder_gives_back_the_trained_models(compared):
    out, config = compared
    run = RunFolder(out / "students/ssim-seed0")
    distiller = run.distiller()
    stored = torch.load(run.path / "student_last.pth", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in distiller.student.state_dict().items())
    assert len(distiller.adapters) == 5 and distiller.level_map
    teacher = torch.load(yaml.safe_load(Path(config).read_text())["model"]["teacher"]["weights"], weights_only=True)
    assert all(torch.equal(value, teacher[name]) for name, value in distiller.teacher.state_dict().items())
    assert len(run.curves()["loss_distill"][0]) == 6 and "structure/0" in run.curves()
    with pytest.raises(RunFolderError, match=r"no config.yaml"):
        RunFolder(out)


@pytest.mark.parametrize("corner", [(0.0, 0.0), (60.0, 0.0), (60.0, 60.0), (-3.0, 30.0)])
def test_labels_stay_on_the_picture(corner):
    """A box at the picture's border has its label inside, where it is not cut off."""
    figure = Figure(figsize=(2, 2), dpi=100)
    axes = figure.add_axes((0.2, 0.2, 0.6, 0.6))
    x, y = corner
    target = {"boxes": torch.tensor([[x, y, x + 8, y + 8]]), "labels": torch.tensor([1])}
    boxes.draw_truth(axes, torch.zeros(3, 64, 64), target, {1: "person"})
    figure.draw_without_rendering()
    (label,) = axes.texts
    drawn, picture = label.get_window_extent(), axes.get_window_extent()
    assert picture.x0 - 1 <= drawn.x0 and drawn.x1 <= picture.x1 + 1
    assert picture.y0 - 1 <= drawn.y0 and drawn.y1 <= picture.y1 + 1


def test_names_of_categories_are_no_formulas():
    figure = Figure(figsize=(2, 2))
    axes = figure.add_subplot()
    target = {"boxes": torch.tensor([[4.0, 20.0, 40.0, 60.0]]), "labels": torch.tensor([1])}
    boxes.draw_truth(axes, torch.zeros(3, 64, 64), target, {1: "$5 {note$"})
    figure.draw_without_rendering()  # fails where it is parsed
    assert axes.texts[0].get_text() == "$5 {note$"
