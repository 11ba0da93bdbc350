"""What the command line offers besides plain training: precision, accumulation, clipping, logs, saved options."""

import io
import re
import warnings

import pytest
import torch
import yaml
from foreign_checkpoints import mmdet_names
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_coco import write_coco
from training_runs import BACKBONE, logged, write_config

from kd import teacher_check
from kd.cli import main
from kd.distiller import Distiller
from kd.evaluation import CocoEvaluator
from kd.losses import SSIMFeatureLoss
from kd.models import build
from kd.run_folder import learning_curves
from kd.training import DetectionTraining, NonFiniteLossError

PLAIN = {
    "trainer__limit_val_batches": 0, "data__flip": 0.0, "trainer__max_epochs": 2,
    "model__optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0},
    "model__schedule": {"name": "constant", "warmup_steps": 0},
}  # fmt: skip


def weights_after(path, run, *arguments):
    main(["fit", "--config", path, *arguments])
    return torch.load(run / "student_last.pth", weights_only=True)


def moved(state, other):
    return float(sum((state[name] - other[name]).double().square().sum() for name in state).sqrt())


def test_bf16_computes_features_in_bf16_and_the_loss_in_float32(coco_root, tmp_path, monkeypatch):
    seen = []
    tapped, forward = Distiller.distillation_loss, SSIMFeatureLoss.forward
    monkeypatch.setattr(
        Distiller,
        "distillation_loss",
        lambda self, x, f, sizes: (seen.append(f["0"].dtype), tapped(self, x, f, sizes))[1],
    )
    monkeypatch.setattr(
        SSIMFeatureLoss,
        "forward",
        lambda self, s, t, **options: (
            seen.append((s[0].dtype, t[0].dtype, torch.is_autocast_enabled("cpu"))),
            forward(self, s, t, **options),
        )[1],
    )
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        run = tmp_path / precision
        # Not RetinaNet: its P7 is one pixel wide here, and torch 2.14.1 leaves uninitialised memory in the bf16 weight
        # gradient of a convolution of such maps (on processors with AVX-512 BF16).
        path = write_config(
            "faster_rcnn", coco_root, run, trainer__precision=precision, trainer__limit_train_batches=2, **PLAIN
        )
        state = weights_after(path, run)
        losses[precision] = logged(run, "loss_distill")
        assert {v.dtype for k, v in state.items() if k.endswith("weight")} == {torch.float32}
    assert set(seen) == {torch.float32, torch.bfloat16, (torch.float32, torch.float32, False)}
    assert losses["bf16-mixed"][0] == pytest.approx(losses["32-true"][0], rel=0.05)
    assert losses["bf16-mixed"] != losses["32-true"]


def test_accumulated_steps_equal_one_step_of_all_their_images(tmp_path):
    root = write_coco(tmp_path / "coco", images_per_split=5, size=(64, 64))
    # ResNets' activations neither vanish nor explode untrained, so that rounding is not magnified by the rescaling.
    options = {k: v for k, v in BACKBONE.items() if k != "width_mult"}
    detector = {"name": "retinanet", "backbone": "resnet18", "num_classes": 8, "options": options}
    changes = {**PLAIN, "model__student": detector, "model__teacher": detector}
    changes["model__optimizer"] = {"name": "sgd", "lr": 0.001}
    states = {}
    for batch_size in (2, 1):
        run = tmp_path / str(batch_size)
        path = write_config("retinanet", root, run, data__train_limit=2, data__batch_size=batch_size, **changes)
        states[batch_size] = weights_after(path, run, f"--trainer.accumulate_grad_batches={2 // batch_size}")
        assert logged(run, "loss")[-1] < logged(run, "loss")[0]  # the weights did move
    for name, value in states[2].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped(coco_root, tmp_path):
    runs = {}
    for name, arguments in (
        ("start", ["--model.optimizer.lr=1e-30"]),
        ("free", []),
        ("clipped", ["--trainer.gradient_clip_val=0.01"]),
    ):
        run = tmp_path / name
        path = write_config("retinanet", coco_root, run, **PLAIN)
        runs[name] = weights_after(path, run, "--trainer.limit_train_batches=2", *arguments)
    # four steps of rate .01 along gradients no longer than .01
    assert 0 < moved(runs["clipped"], runs["start"]) < 4 * 0.01 * 0.01 * 1.01
    assert moved(runs["free"], runs["start"]) > 10 * 4 * 0.01 * 0.01


def test_components_are_logged_where_they_were_measured(coco_root, tmp_path):
    """Every second step, whichever steps the other quantities are logged in, and nowhere else."""
    path = write_config(
        "retinanet", coco_root, tmp_path / "run", trainer__log_every_n_steps=3, model__log_components_every=2, **PLAIN
    )
    main(["fit", "--config", path])
    curves = learning_curves(tmp_path / "run")
    assert curves["loss"][0] == [2, 5]
    steps, values = curves["structure/0"]
    assert steps == [0, 2, 3, 5] and len(set(values)) == 4  # two epochs of three steps


def test_logs_saved_options_and_evaluation_without_the_teacher(coco_root, tmp_path, capsys):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1, trainer__deterministic=True)
    main(
        ["fit", "--config", path, "--model.log_components_every=1", "--model.class_metrics=true", "--model.weight=2.5"]
    )
    levels = ("0", "1", "2", "p6", "p7")
    columns = [
        "loss",
        "loss_distill",
        "classification",
        "bbox_regression",
        "AP",
        "APS",
        "APL",
        "AP/red",
        "AP/blue",
        "lr-AdamW",
    ]
    columns += [f"{name}/{level}" for name in ("distill", "luminance", "contrast", "structure") for level in levels]
    events = EventAccumulator(str(run))
    events.Reload()
    assert set(columns) <= set(events.Tags()["scalars"])
    for column in columns:
        assert logged(run, column), column
    total = sum(logged(run, f"distill/{level}")[0] for level in levels)
    assert logged(run, "loss_distill")[0] == pytest.approx(2.5 * total, rel=1e-4)
    assert all(-1 <= v <= 1.0001 for level in levels for v in logged(run, f"structure/{level}"))

    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["model"]["weight"], saved["model"]["log_components_every"], saved["data"]["flip"]) == (2.5, 1, 0.5)
    before = (run / "config.yaml").read_bytes()
    capsys.readouterr()
    best = str(run / "checkpoints/best.ckpt")
    for command in ("validate", "test"):
        options = ["--model.class_metrics=true", "--model.teacher.weights=gone.pth"]
        main([command, "--config", path, "--ckpt_path", best, *options])
        assert (run / command / f"config_{command}.yaml").is_file()
        printed = capsys.readouterr().out
        assert "AP50" in printed and "AP/red" in printed
    assert (run / "config.yaml").read_bytes() == before
    # What was saved is a configuration again, and gives the same run.
    first = torch.load(run / "student_last.pth", weights_only=True)
    again = weights_after(
        str(run / "config.yaml"), tmp_path / "again", f"--trainer.default_root_dir={tmp_path / 'again'}"
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.loss=huber"], r"kd: loss: got 'huber'"),
        (["--model.adapters=never"], r"kd: adapters: 'never', but channels"),
        (["--model.student.name=yolo"], r"kd: detector: got 'yolo'"),
        (["--model.loss_options={'window_size': 4}"], r"kd: .*window_size"),
        (["--model.teacher.weights=gone.pth"], r"kd: weights: no file 'gone.pth'"),
        (["--data.batch_size=0"], r"kd: batch_size"),
        (["--data.batch_size=9"], r"kd: batch_size: 9 on 1 processes needs 9 training images, the data set has 7"),
        (["--model.level_map={'0': 'p9'}"], r"kd: level_map: no level '0' in the student or 'p9' in the teacher"),
        (["--ckpt_path=nowhere.ckpt"], r"kd: .*nowhere.ckpt"),
        (["--teacher_check.min_ap=200"], r"kd: teacher_check: got"),
    ],
)
def test_wrong_options_end_with_a_sentence(coco_root, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["fit", "--config", write_config("retinanet", coco_root, tmp_path / "run"), *arguments])


@pytest.mark.parametrize(("split", "kind"), [("train2017", "PNG"), ("train2017", "JPEG"), ("val2017", "JPEG")])
def test_a_corrupt_image_in_a_loading_process_ends_with_its_name(coco_root, tmp_path, split, kind):
    image = coco_root / split / "000000000013.png"
    content = io.BytesIO()
    Image.open(image).save(content, kind)
    image.write_bytes(content.getvalue()[:-40])
    path = write_config("retinanet", coco_root, tmp_path / "run", data__workers=1)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", path])
    message = str(stopped.value)
    assert message.startswith(f"kd: {image}: can not be read as an image (") and "\n" not in message


def test_a_nan_leaves_no_checkpoint_of_itself(coco_root, tmp_path, monkeypatch):
    step = DetectionTraining.training_step
    error = NonFiniteLossError

    def failing(self, batch, batch_idx):
        if batch_idx == 1:
            raise error("on purpose")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionTraining, "training_step", failing)
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, save_every=10, trainer__max_epochs=1)
    with pytest.raises(SystemExit, match="kd: on purpose"):
        main(["fit", "--config", path])
    assert not list(run.glob("**/*.ckpt"))
    error = RuntimeError
    with pytest.raises(RuntimeError, match="on purpose"):
        main(["fit", "--config", path])
    assert (run / "checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(("save_every", "validation"), [(1, 1.0), (10, 1.0), (10, 0)])
def test_weights_spoilt_by_a_gradient_are_never_saved(coco_root, tmp_path, monkeypatch, save_every, validation):
    """The loss of the last batch is finite, its gradient is not: no later loss shows it before the checkpoints."""

    def spoil(self):
        if self.trainer.global_step == 2:
            self.student.backbone.fpn.inner_blocks[0][0].bias.grad.fill_(float("nan"))

    monkeypatch.setattr(DetectionTraining, "on_after_backward", spoil)
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, save_every=save_every, trainer__max_epochs=1,
                        trainer__limit_val_batches=validation)  # fmt: skip
    with pytest.raises(
        SystemExit, match=r"kd: epoch 0, after step 3: .* not finite, student.*image ids .*\[1\d, 1\d\]"
    ):
        main(["fit", "--config", path])
    left = {file.name: torch.load(file, weights_only=True) for file in run.glob("**/*.ckpt")}
    assert {name: content["global_step"] for name, content in left.items()} == (
        {"last.ckpt": 2} if save_every == 1 else {}
    )
    assert all(value.isfinite().all() for content in left.values() for value in content["state_dict"].values())
    assert not list(run.glob("*.pth"))
    monkeypatch.undo()
    main(["fit", "--config", path, *(["--ckpt_path", "last"] if left else [])])
    assert (run / "student_last.pth").is_file()


def test_earlier_options_are_kept_and_the_command_line_goes_before_a_checkpoints(coco_root, tmp_path):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1)
    main(["fit", "--config", path])
    first = (run / "config.yaml").read_text()
    last = str(run / "checkpoints/last_epoch.ckpt")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        main(["fit", "--config", path, "--ckpt_path", last])  # the same options: nothing to say or to keep
    assert not [w for w in said if "other options" in str(w.message)] and not list(run.glob("config_*.yaml"))
    for number, weight in ((1, 9.0), (2, 8.0)):
        before = (run / "config.yaml").read_text()
        with pytest.warns(
            UserWarning, match=rf"other options.*model.weight was .*, is {weight}.*as config_{number}.yaml"
        ):
            main(["fit", "--config", path, "--ckpt_path", last, f"--model.weight={weight}", "--trainer.max_epochs=2"])
        assert (run / f"config_{number}.yaml").read_text() == before
        assert yaml.safe_load((run / "config.yaml").read_text())["model"]["weight"] == weight
    assert yaml.safe_load((run / "config_1.yaml").read_text())["model"] == yaml.safe_load(first)["model"]


def test_curves_are_those_of_the_folders_last_run_without_its_evaluations(coco_root, tmp_path):
    run = tmp_path / "run"
    main(["fit", "--config", write_config("retinanet", coco_root, run)])
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1, model__loss="none")
    main(["fit", "--config", path])  # afresh, and shorter
    curves = learning_curves(run)
    assert curves["AP"][0] == [2] and curves["loss"][0] == [0, 1, 2]
    assert "loss_distill" not in curves
    main(["validate", "--config", path, "--ckpt_path", str(run / "checkpoints/best.ckpt")])
    assert learning_curves(run) == curves
    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("AP")] == [2, 5, 2]  # of both trainings
    assert list(run.glob("validate/*/metrics.csv"))


@pytest.mark.parametrize(
    ("optimizer", "schedule", "column"),
    [
        ("adamw", {"name": "multistep", "milestones": [1], "gamma": 0.5, "warmup_steps": 4}, "lr-AdamW"),
        ("sgd", {"name": "one_cycle"}, "lr-SGD"),
    ],
)
def test_a_resumed_run_takes_its_own_rates_not_the_checkpoints(coco_root, tmp_path, optimizer, schedule, column):
    own = {"trainer__max_epochs": 2, "trainer__limit_val_batches": 0, "model__loss": "none",
           "model__schedule": schedule,
           "model__optimizer": {"name": optimizer, "lr": 1e-4, "weight_decay": 0.3}}  # fmt: skip
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main(["fit", "--config", write_config("retinanet", coco_root, whole, **own)])
    before = {"trainer__max_epochs": 1, "model__optimizer": {"name": optimizer, "lr": 1e-3, "momentum": 0.5}}
    main(["fit", "--config", write_config("retinanet", coco_root, resumed, **{**own, **before})])
    main(["fit", "--config", write_config("retinanet", coco_root, resumed, **own), "--ckpt_path", "last"])
    rates = [learning_curves(run)[column][1][3:] for run in (whole, resumed)]
    assert len(rates[0]) == 3 and rates[0] == rates[1]
    groups = [
        torch.load(run / "checkpoints/last_epoch.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
        for run in (whole, resumed)
    ]
    assert groups[0] == groups[1] and groups[0][0]["weight_decay"] == 0.3


def test_evaluating_untrained_heads_is_refused(coco_root, tmp_path):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run)
    with pytest.raises(SystemExit, match=r"kd: validate: nothing says which weights; give --ckpt_path"):
        main(["validate", "--config", path])
    options = {k: v for k, v in BACKBONE.items() if k != "width_mult"}
    source = build("retinanet", backbone="resnet18", num_classes=8, relu_before_p7=False, **options)
    torch.save(mmdet_names(source, 3), tmp_path / "mmdet.pth")
    converted = {"name": "retinanet", "backbone": "resnet18", "num_classes": 8, "weights": str(tmp_path / "mmdet.pth"),
                 "weights_format": "mmdet", "convert_heads": False, "options": options}  # fmt: skip
    converted_path = write_config("retinanet", coco_root, run, model__student=converted)
    with pytest.raises(SystemExit, match=r"kd: test: .*mmdet.pth gave backbone and FPN only \(mmdet\)"):
        main(["test", "--config", converted_path])
    # A whole detector's weights are measured.
    whole = {**converted, "weights": str(tmp_path / "whole.pth"), "weights_format": "torchvision"}
    torch.save(build({**whole, "weights": None, "weights_format": "torchvision"}).state_dict(), whole["weights"])
    main(["validate", "--config", write_config("retinanet", coco_root, run, model__student=whole)])
    assert (run / "validate/config_validate.yaml").is_file()


def test_evaluation_finds_the_folders_checkpoints_or_refuses(coco_root, tmp_path, monkeypatch):
    path = write_config("retinanet", coco_root, tmp_path / "run", trainer__limit_val_batches=1)
    for name in ("last", "best"):
        with pytest.raises(SystemExit, match=rf"kd: --ckpt_path {name}: no {name}.*ckpt in .*run/checkpoints"):
            main(["validate", "--config", path, "--ckpt_path", name])
    main(["fit", "--config", path])
    loaded, load = [], DetectionTraining.on_load_checkpoint
    monkeypatch.setattr(
        DetectionTraining, "on_load_checkpoint", lambda self, c: (loaded.append(c["global_step"]), load(self, c))[1]
    )
    monkeypatch.setattr(CocoEvaluator, "evaluate", lambda self, names: {"AP": 1.0})
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["global_step"]
    for name in ("last", "best"):
        main(["validate", "--config", path, "--ckpt_path", name])
    assert loaded == [6, best]


def test_a_file_that_is_no_checkpoint_of_this_student_ends_with_a_sentence(coco_root, tmp_path):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1)
    main(["fit", "--config", path])
    best = run / "checkpoints/best.ckpt"
    (tmp_path / "cut.ckpt").write_bytes(best.read_bytes()[:9000])
    for file, options, message in (
        (run / "student_best.pth", [], r"is no checkpoint of a training.*model.student.weights"),
        (tmp_path / "cut.ckpt", [], r"can not be read as a checkpoint \("),
        (best, ["--model.student.num_classes=9"], r"is of another student: 2 of its weights.*cls_logits.weight"),
        (best, ["--model.student.backbone=mobilenet_v3_small"], r"is of another student: .*backbone.body"),
    ):
        for command in ("fit", "validate", "test"):
            with pytest.raises(SystemExit, match=rf"kd: ckpt_path: {file} {message}"):
                main([command, "--config", path, "--ckpt_path", str(file), *options])


def test_resuming_with_other_trained_parameters_ends_with_a_sentence(coco_root, tmp_path):
    """The optimiser's state would not fit them, or silently be of others."""
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1, trainer__limit_val_batches=0)
    main(["fit", "--config", path])
    fewer = "--model.student.options.trainable_backbone_layers=1"
    for options, message in (
        ([fewer], r"trained \d+ parameters, this run would train \d+; .*trainable_backbone_layers was None, is 1; "),
        (
            ["--model.loss=none"],
            r"was trained with adapters on the levels 0 \(16 to 24 .*, this run has no adapters",
        ),
        (
            ["--model.teacher.options.fpn_channels=20"],
            r"was .*0 \(16 to 24 channels\).* has .*0 \(16 to 20 ",
        ),
    ):
        for checkpoint in ("last", str(run / "checkpoints/last_epoch.ckpt")):
            with pytest.raises(SystemExit, match=rf"kd: ckpt_path: {run}/checkpoints/last.*ckpt {message}"):
                main(["fit", "--config", path, "--ckpt_path", checkpoint, "--trainer.max_epochs=2", *options])
    # To evaluate it, none of that matters.
    main(["validate", "--config", path, "--ckpt_path", "last", fewer, "--trainer.limit_val_batches=1"])


@pytest.mark.parametrize(("before", "now"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_resuming_with_another_optimiser_ends_with_a_sentence(coco_root, tmp_path, before, now):
    path = write_config("retinanet", coco_root, tmp_path / "run", trainer__max_epochs=1, trainer__limit_val_batches=0,
                        model__loss="none", model__optimizer={"name": before, "lr": 1e-3})  # fmt: skip
    main(["fit", "--config", path])
    with pytest.raises(SystemExit, match=rf"kd: ckpt_path: .*last.*ckpt was trained with {before}, .* '{now}'"):
        main(["fit", "--config", path, "--ckpt_path=last", "--trainer.max_epochs=2", f"--model.optimizer.name={now}"])


def test_a_converted_teacher_is_measured_where_its_heads_were_converted(coco_root, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(teacher_check, "rank_zero_info", said.append)
    options = {k: v for k, v in BACKBONE.items() if k != "width_mult"}
    source = build("retinanet", backbone="resnet18", num_classes=8, relu_before_p7=False, **options)
    state = {k: v for k, v in mmdet_names(source, 3).items() if "of_another" not in k}
    for name, value in source.head.state_dict().items():
        part, branch, leaf = name.split(".")[0], name.split(".")[1], name.split(".")[-1]
        short = "cls" if part.startswith("classification") else "reg"
        new = f"bbox_head.{short}_convs.{name.split('.')[2]}.conv" if branch == "conv" else f"bbox_head.retina_{short}"
        # seven classes: without the background's row
        rows = value.unflatten(0, (9, 8))[:, 1:].flatten(0, 1) if branch == "cls_logits" else value
        state[f"{new}.{leaf}"] = rows
    torch.save(state, tmp_path / "mmdet.pth")
    teacher = {"name": "retinanet", "backbone": "resnet18", "num_classes": 8, "weights": str(tmp_path / "mmdet.pth"),
               "weights_format": "mmdet", "options": options}  # fmt: skip
    for convert in (True, False):
        said.clear()
        run = tmp_path / f"run_{convert}"
        path = write_config(
            "retinanet", coco_root, run, model__teacher={**teacher, "convert_heads": convert},
            teacher_check={"images": 2, "min_ap": 0}, **{**PLAIN, "trainer__max_epochs": 1},
        )  # fmt: skip
        main(["fit", "--config", path, "--trainer.limit_train_batches=1"])
        assert ("AP50" if convert else "AP not measured") in said[0] and len(said) == 1
        assert len(logged(run, "teacher/AP")) == int(convert)


def test_the_progress_bar_shows_losses_and_the_time_left(coco_root, tmp_path, capsys):
    path = write_config("retinanet", coco_root, tmp_path / "run", trainer__enable_progress_bar=True, **PLAIN)
    main(["fit", "--config", path, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"])
    shown = capsys.readouterr()
    last = (shown.out + shown.err).rsplit("Epoch 0", 1)[-1]
    for name in ("loss", "loss_distill", "classification", "bbox_regression"):
        assert re.search(rf"\b{name}[=:]\s*\d", last), last
    assert re.search(r"\d+:\d\d", last), last


@pytest.mark.parametrize("end", ["--trainer.max_time=00:00:00:02", "--trainer.max_steps=4"])
def test_a_run_without_a_number_of_epochs(coco_root, tmp_path, end):
    endless = ["--trainer.max_epochs=-1", "--trainer.limit_val_batches=0", end]
    schedule = {"name": "multistep", "milestones": [1], "warmup_steps": 0}
    path = write_config("retinanet", coco_root, tmp_path / "run", model__loss="none", model__schedule=schedule)
    main(["fit", "--config", path, *endless])
    rates = learning_curves(tmp_path / "run")["lr-AdamW"][1]
    assert rates[:4] == pytest.approx([0.003] * 3 + [0.0003])
    if "time" in end:
        with pytest.raises(SystemExit, match=r"kd: schedule.name: 'one_cycle' needs .*max_epochs or trainer.max_steps"):
            main(["fit", "--config", path, *endless, "--model.schedule.name=one_cycle"])
    else:
        assert len(rates) == 4


def test_a_run_without_loggers(coco_root, tmp_path):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__logger=False, **PLAIN)
    weights_after(path, run, "--trainer.limit_train_batches=1")
    assert (run / "config.yaml").is_file() and not list(run.glob("**/metrics.csv"))
