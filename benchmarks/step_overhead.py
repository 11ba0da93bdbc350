"""One training step of the paper's students: what the teacher, the L2 loss and the SSIM losses add, in one run.

Two steps of seconds differ by more, from one to the next, than by the loss. So the loss is also measured alone, forward
and backward on features of the step's shapes, in many rounds: that is the figure to compare losses by.

python benchmarks/step_overhead.py [--device cuda] [--size 800] [--batch 1] [--rounds 7] [--out benchmarks/results/NAME]
"""

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import fused_ssim
import kd
from kd.compare.step_cost import BASELINE, Batch, StepCost, distilling_steps, measure
from kd.models import build
from kd.taps import tapped

#: Method -> loss and its options. All are rescaled per channel, as the losses do it by default.
METHODS = {
    "none": ("none", {}),
    "L2": ("l2", {}),
    "SSIM, reference": ("ssim", {"backend": "reference"}),
    "SSIM, fused": ("ssim", {}),
}
TITLES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}
#: Height and width of most COCO images, in pixels.
IMAGE = (480, 640)
BOXES_PER_IMAGE = 7
LOSS_ROUNDS = 21


def random_batch(size: int, device: torch.device) -> Batch:
    """``size`` random images with random boxes, COCO's on average."""
    generator = torch.Generator().manual_seed(0)
    height, width = IMAGE
    images = [torch.rand(3, height, width, generator=generator).to(device) for _ in range(size)]
    targets = []
    for _ in range(size):
        corners = torch.rand(BOXES_PER_IMAGE, 2, 2, generator=generator) * torch.tensor([width - 40.0, height - 40.0])
        low, high = corners.min(1).values, corners.max(1).values + 40
        labels = torch.randint(1, 91, (BOXES_PER_IMAGE,), generator=generator)
        targets.append({"boxes": torch.cat([low, high], 1).to(device), "labels": labels.to(device)})
    return images, targets


class Costs(NamedTuple):
    """Of one detector: a step by every method, and each method's loss alone, in ms."""

    steps: dict[str, StepCost]
    loss_ms: dict[str, float]


def loss_steps(distillers: Mapping[str, kd.Distiller], batch: Batch) -> dict[str, Callable[[], None]]:
    """Forward and backward pass of each loss on the student's features of ``batch`` and other random ones."""
    plain = next(iter(distillers.values())).student
    with torch.no_grad(), tapped(plain.backbone) as tap:
        plain(*batch)
    ours = [feature.detach().clone().requires_grad_() for feature in tap.features.values()]
    theirs = [torch.randn_like(feature) for feature in ours]

    def step(loss: torch.nn.Module) -> None:
        for feature in ours:
            feature.grad = None
        loss(ours, theirs).sum().backward()

    losses = {name: distiller.feature_loss for name, distiller in distillers.items()}
    return {name: partial(step, loss) for name, loss in losses.items() if loss is not None}


def costs(detector: str, args: argparse.Namespace) -> Costs:
    """Cost of a step of ``detector`` by every method."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    options = {"norm": "frozen_bn", "min_size": args.size, "max_size": args.size * 5 // 3}
    teacher = build(detector, backbone=args.teacher, **options)
    distillers = {
        name: kd.distill(
            build(detector, backbone=args.student, trainable_backbone_layers=3, **options).to(device),
            None if loss == "none" else teacher,
            loss,
            **loss_options,
        )
        for name, (loss, loss_options) in METHODS.items()
    }

    def sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
        # So small a rate that random weights do not run away during the measurement.
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-9, momentum=0.9)

    batch = random_batch(args.batch, device)
    alone = loss_steps(distillers, batch)
    loss_costs = measure(alone, LOSS_ROUNDS, device, next(iter(alone)))
    steps = measure(distilling_steps(distillers, sgd, batch, args.precision), args.rounds, device)
    return Costs(steps, {name: cost.median_ms for name, cost in loss_costs.items()})


def markdown(results: Mapping[str, Costs]) -> str:
    """The table."""
    lines = [
        "| detector | step | ms | over none with teacher | the loss alone, ms | of the step | peak MiB |",
        "|-|-|-|-|-|-|-|",
    ]
    for detector, measured in results.items():
        for name, cost in measured.steps.items():
            over = "" if name == BASELINE else f"{cost.overhead_percent:+.1f} %"
            loss = measured.loss_ms.get(name)
            alone = ("", "") if loss is None else (f"{loss:.1f}", f"{100 * loss / cost.median_ms:.2f} %")
            cells = (TITLES[detector], name, f"{cost.median_ms:.0f}", over, *alone, f"{cost.peak_memory_mb:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--detectors", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--student", default="resnet50")
    parser.add_argument("--teacher", default="resnet101")
    parser.add_argument("--size", type=int, default=800, help="shorter side of the network's input, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="32", choices=["32", "bf16-mixed", "16-mixed"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="without ending; benchmarks/results/step_overhead_DEVICE if left out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results = {detector: costs(detector, args) for detector in args.detectors}
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    settings = (
        f"{args.student} student, {args.teacher} teacher, {args.batch} image(s) of {IMAGE[1]} x {IMAGE[0]} with a "
        f"shorter side of {args.size} px, precision {args.precision}; {device}"
        + (f", {args.threads} threads" if args.device == "cpu" else "")
        + f"; medians of {args.rounds} interleaved rounds, of the loss alone {LOSS_ROUNDS}. Peak: tensors allocated "
        "during the step."
    )
    table = f"{markdown(results)}\n\n{settings}\n"
    print(table)
    out = args.out or Path("benchmarks/results") / f"step_overhead_{torch.device(args.device).type}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(table)
    content = {
        "settings": {key: str(value) for key, value in vars(args).items()},
        "machine": platform.machine(),
        "device": device,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision")},
        "fused_ssim": fused_ssim.info(),
        "costs": {
            name: {
                step: {**asdict(cost), "loss_ms": measured.loss_ms.get(step)} for step, cost in measured.steps.items()
            }
            for name, measured in results.items()
        },
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
