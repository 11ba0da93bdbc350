"""What the demo trains, as data. The figures come from trials on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kd.compare.methods import Method
from kd.demo.digits import DigitsConfig
from kd.models import DetectorConfig
from kd.optimization import OptimizerConfig, ScheduleConfig

#: Options of :func:`kd.models.build` that teacher and student of both detectors share.
SHARED = {"p6_from": None, "aspect_ratios": (1.0, 2.0)}


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """One detector: how its teacher and student are built and how long they train."""

    name: str
    """Name for :func:`kd.models.build`."""
    title: str
    """Name for people."""
    options: Mapping[str, Any]
    """Builder options that teacher and student share."""
    teacher: Mapping[str, Any]
    """Further builder options of the teacher."""
    student: Mapping[str, Any]
    """Further builder options of the student: smaller."""
    teacher_steps: int
    student_steps: int
    lr: float
    """Peak learning rate of AdamW in the one-cycle schedule."""

    def config(self, role: str, num_classes: int, image_size: int, backbone_weights: str | None) -> DetectorConfig:
        """The detector of ``role`` "teacher" or "student", to be trained from ``backbone_weights``."""
        options = {**SHARED, **self.options, **(self.teacher if role == "teacher" else self.student)}
        options.update(min_size=image_size, max_size=image_size)
        if backbone_weights is not None:
            options["weights_backbone"] = backbone_weights
        return DetectorConfig(name=self.name, backbone="mobilenet_v2", num_classes=num_classes, options=options)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a COCO folder given with ``--data`` is used."""

    longest: int = 160
    """Longest side of the shrunken copies, in pixels."""
    train_images: int = 6000
    val_images: int = 500


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what the demo computes."""

    detectors: tuple[DetectorRecipe, ...]
    methods: tuple[Method, ...]
    data: DigitsConfig | Limits
    image_size: int
    """Longest side of the detectors' input, in pixels."""
    flip: float
    """Probability of a horizontal flip in training."""
    budget_min: int
    """Minutes that the whole run is meant to take at most on two quiet CPU cores, installation aside."""
    batch_size: int = 8
    eval_batch_size: int = 16
    clip_norm: float = 5.0
    """Gradients are clipped to this norm."""
    weight_decay: float = 1e-4
    rise: float = 0.2
    """Share of the steps in which the learning rate rises."""
    save_every: int = 100
    """Steps between two checkpoints; an interrupted training loses at most so many."""
    resamples: int = 300
    """Bootstrap draws behind the noise figures."""

    def optimizer(self, detector: DetectorRecipe) -> OptimizerConfig:
        """The optimiser of one detector's trainings."""
        return OptimizerConfig(name="adamw", lr=detector.lr, weight_decay=self.weight_decay)

    def schedule(self) -> ScheduleConfig:
        """The learning-rate schedule of every training."""
        return ScheduleConfig(name="one_cycle", one_cycle_rise=self.rise)


# A stride of 4 is what lets RetinaNet tell small digits apart: its head reads single cells, Faster R-CNN's pools 7x7.
RETINANET = DetectorRecipe(
    name="retinanet",
    title="RetinaNet",
    options={
        "tapped_blocks": ("3", "6", "13"),
        "anchor_sizes": ((18.0, 22.0, 26.0), (30.0, 36.0, 42.0), (50.0, 60.0, 72.0)),
        "head_norm": "group_norm",
        "box_loss": "giou",
        "topk_candidates": 200,
        "detections_per_img": 30,
    },
    teacher={"fpn_channels": 64, "head_convs": 3, "trainable_backbone_layers": 4},
    student={"fpn_channels": 32, "head_convs": 2, "trainable_backbone_layers": 3},
    teacher_steps=600,
    student_steps=400,
    lr=4e-3,
)
FASTER_RCNN = DetectorRecipe(
    name="faster_rcnn",
    title="Faster R-CNN",
    options={
        "tapped_blocks": ("6", "13", "17"),
        "anchor_sizes": ((20.0,), (40.0,), (72.0,)),
        "proposals": 100,
        "box_batch_size_per_image": 64,
        "rpn_batch_size_per_image": 64,
        "box_detections_per_img": 30,
    },
    teacher={"fpn_channels": 64, "box_head_width": 256, "trainable_backbone_layers": 3},
    student={"fpn_channels": 32, "box_head_width": 128, "trainable_backbone_layers": 2},
    teacher_steps=400,
    student_steps=300,
    lr=2e-3,
)
# The gradient goes through psi's minimum and maximum. Were they constants, the gradient would push all values of a
# channel up or down, which psi then undoes: in trials on RetinaNet the L2 student unlearnt everything (AP 4, against 39
# alone and 49 with the whole gradient).
PSI = {"normalize": "channel", "detach_range": False}
METHODS = (
    Method(name="none", title="student alone", loss="none"),
    Method(name="l2", title="student + L2", loss="l2", weight=4.0, options=PSI),
    Method(name="ssim", title="student + SSIM", loss="ssim", weight=4.0, options=PSI),
)
DIGITS = DigitsConfig(
    train_images=3200, val_images=300, image_size=128, min_digit=22, max_digit=64, max_digits_per_image=7
)


#: Builder options for a COCO folder at ``Limits.longest`` pixels, where objects have any size. RetinaNet starts at
#: stride 8 here: with 80 classes a level of stride 4 would take most of the time.
OWN_DATA_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "retinanet": {
        "tapped_blocks": ("6", "13", "17"),
        "anchor_sizes": ((14.0, 20.0, 28.0), (36.0, 50.0, 68.0), (90.0, 116.0, 144.0)),
    },
    "faster_rcnn": {"anchor_sizes": ((20.0,), (48.0,), (110.0,))},
}


def recipe(*, quick: bool = False, own_data: bool = False) -> Recipe:
    """The recipe of ``make demo``.

    Args:
        quick: RetinaNet alone, with fewer steps.
        own_data: for a COCO folder instead of the embedded digits: larger images, anchors up to their size, flips.
    """
    short = replace(RETINANET, teacher_steps=450, student_steps=300)
    detectors = (short,) if quick else (RETINANET, FASTER_RCNN)
    if own_data:
        # Photographs are harder than digits, and closer to what the ImageNet features know: more and smaller steps.
        detectors = tuple(
            replace(
                d,
                options={**d.options, **OWN_DATA_OPTIONS[d.name]},
                lr=d.lr / 4,
                teacher_steps=d.teacher_steps * 3 // 2,
                student_steps=d.student_steps * 3 // 2,
            )
            for d in detectors
        )
    return Recipe(
        detectors=detectors,
        methods=METHODS,
        data=Limits() if own_data else DIGITS,
        image_size=Limits().longest if own_data else DIGITS.image_size,
        flip=0.5 if own_data else 0.0,
        budget_min=5 if quick else 20,
    )
