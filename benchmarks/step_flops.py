"""Floating-point operations of the paper's detectors per image, counted on tensors without data: nothing is computed.

python benchmarks/step_flops.py [--height 800] [--width 1088]
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd.models import build

#: Boxes per image that Faster R-CNN's box head sees in training.
SAMPLED_BOXES = 512
DETECTORS = [
    ("retinanet", "resnet18"), ("retinanet", "resnet50"), ("retinanet", "resnet101"),
    ("faster_rcnn", "resnet50"), ("faster_rcnn", "resnet101"), ("faster_rcnn", "resnext101_64x4d"),
]  # fmt: skip


def gflops(name: str, backbone: str, height: int, width: int) -> dict[str, float]:
    """GFLOP of one image (a multiply and an add are two): "features" (backbone and FPN) forward, "heads" forward, and
    "training": forward and backward with the stem and the first stage frozen. ResNeXt only teaches: its training is
    not counted (NaN; the counter does not know the gradient of grouped convolutions)."""
    with torch.device("meta"):
        model = build(name, backbone=backbone, norm="frozen_bn", trainable_backbone_layers=3)
        images = torch.empty(1, 3, height, width)
        boxes = torch.empty(SAMPLED_BOXES, 256, 7, 7)

    def heads(features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        if name == "retinanet":
            return list(model.head(list(features.values())).values())
        objectness, deltas = model.rpn.head(list(features.values()))
        return [*objectness, *deltas, *model.roi_heads.box_predictor(model.roi_heads.box_head(boxes))]

    with FlopCounterMode(display=False) as features_only:
        features = model.backbone(images)
    with FlopCounterMode(display=False) as heads_only:
        heads(features)
    counts = {"features": features_only.get_total_flops() / 1e9, "heads": heads_only.get_total_flops() / 1e9}
    if backbone.startswith("resnext"):
        return {**counts, "training": float("nan")}
    with FlopCounterMode(display=False) as training:
        torch.stack([output.sum() for output in heads(model.backbone(images))]).sum().backward()
    return {**counts, "training": training.get_total_flops() / 1e9}


def ssim_gflops(height: int, width: int, strides: tuple[int, ...] = (8, 16, 32, 64, 128)) -> float:
    """GFLOP of the fused SSIM loss and its gradient on 256 channels of every level: seven separable filters of 11 taps,
    each twice, a multiply and an add per tap."""
    pixels = sum(-(-height // stride) * -(-width // stride) for stride in strides)
    return 256 * pixels * 7 * 2 * 11 * 2 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    args = parser.parse_args()
    print("| detector | backbone | features, forward | heads, forward | training step |\n|-|-|-|-|-|")
    for name, backbone in DETECTORS:
        parts = gflops(name, backbone, args.height, args.width)
        print(f"| {name} | {backbone} | " + " | ".join(f"{v:.0f}".replace("nan", "-") for v in parts.values()) + " |")
    ssim = ssim_gflops(args.height, args.width)
    print(f"\nGFLOP per image of {args.width} x {args.height}. SSIM loss and gradient on P3 to P7: {ssim:.1f}")


if __name__ == "__main__":
    main()
