"""Draws the README's picture from the outcome of ``make demo``: what SSIM and L2 see between two real feature maps.

python docs/draw_feature_maps.py [--demo demo_out] [--out docs/figures]
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console

import fused_ssim
from kd.demo.recipe import recipe
from kd.demo.runs import Run, Trainings
from kd.taps import named_features

IMAGE = 4
CHANNELS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="output folder of a finished `make demo`")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    args = parser.parse_args()

    chosen = recipe()
    weights = args.demo / "cache" / "mobilenet_v2_imagenet_features.pth"
    trainings = Trainings(args.demo, args.demo / "digits", weights, chosen, Console())
    l2 = next(method for method in chosen.methods if method.name == "l2")
    run = Run(chosen.detectors[0], l2, 0)
    module = trainings._module(run)
    checkpoint = torch.load(trainings.folder(run) / "last.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()

    image, _ = trainings.validation[IMAGE]
    distiller = module.distiller
    with torch.no_grad():
        batch = distiller.student.transform([image])[0].tensors
        level = "0"
        theirs = named_features(distiller.teacher.backbone(batch))[level]
        ours = distiller.adapters[level](named_features(distiller.student.backbone(batch))[level])
        ours, theirs = (fused_ssim.reference.min_max(t, "channel") for t in (ours, theirs))
        squared = (ours - theirs).square()[0]
        dissimilar = fused_ssim.ssim_loss(ours, theirs, padding="reflect", reduction="none")[0]

    # The channels in which the two measures disagree most about where the error is.
    agreement = [
        float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
        for a, b in zip(squared, dissimilar, strict=True)
    ]
    channels = sorted(range(len(agreement)), key=agreement.__getitem__)[:CHANNELS]
    figure = Figure(figsize=(9.2, 1.95 * CHANNELS + 0.4), layout="constrained", facecolor="white")
    grid = figure.subplots(CHANNELS, 5)
    titles = (
        "image",
        "teacher's feature map",
        "student's feature map",
        "L2: squared error",
        "SSIM loss: (1 - SSIM) / 2",
    )
    for row, channel in zip(grid, channels, strict=True):
        row[0].imshow(image.permute(1, 2, 0))
        row[1].imshow(theirs[0, channel], cmap="viridis", vmin=0, vmax=1)
        row[2].imshow(ours[0, channel], cmap="viridis", vmin=0, vmax=1)
        row[3].imshow(squared[channel], cmap="magma", vmin=0)
        row[4].imshow(dissimilar[channel], cmap="magma", vmin=0)
        for axes in row:
            axes.set_axis_off()
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "ssim_and_l2.png", dpi=100)
    print(args.out / "ssim_and_l2.png")


if __name__ == "__main__":
    main()
