"""Image restoration by SSIM: pixels that start as noise climb until they look like the picture.

    python examples/restore_image.py [--image photo.png] [--out restored.png]

Needs torchvision to read and write pictures.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

import fused_ssim


def rings(side: int) -> Tensor:
    """A picture (1, 3, side, side) with every scale and direction: rings that grow finer, in three shades."""
    axis = torch.linspace(-1, 1, side)
    radius = axis[:, None].square() + axis[None, :].square()
    picture = [0.5 + 0.5 * torch.cos(frequency * radius) for frequency in (12.0, 16.0, 20.0)]
    return torch.stack(picture).unsqueeze(0)


def restore(target: Tensor, steps: int, learning_rate: float = 0.05) -> tuple[Tensor, list[float]]:
    """Noise that became ``target`` (1, 3, H, W), and its SSIM before each step."""
    torch.manual_seed(0)
    picture = torch.rand_like(target).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=learning_rate)
    similarities = []
    for _ in range(steps):
        optimizer.zero_grad()
        similarity = fused_ssim.ssim(picture, target)
        (1 - similarity).backward()
        optimizer.step()
        similarities.append(similarity.item())
    return picture.detach().clamp(0, 1), similarities


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a picture of your own; otherwise rings are drawn")
    parser.add_argument("--side", type=int, default=256, help="side of the rings in pixels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("restored.png"), help="target and result, side by side")
    args = parser.parse_args(arguments)

    target = rings(args.side)
    if args.image is not None:
        target = to_tensor(Image.open(args.image).convert("RGB")).unsqueeze(0)
    picture, similarities = restore(target, args.steps)
    for step in range(0, args.steps, max(1, args.steps // 10)):
        print(f"step {step:4}: SSIM {similarities[step]:.4f}")
    print(f"     after: SSIM {fused_ssim.ssim(picture, target):.4f}")
    save_image(torch.cat([target, picture], dim=3), args.out)
    print(args.out)
    return similarities


if __name__ == "__main__":
    main()
