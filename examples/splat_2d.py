"""The loss of 3-D Gaussian splatting, L1 + SSIM in one pass, fitting 2-D Gaussians to a picture in plain PyTorch.

    python examples/splat_2d.py [--gaussians 400] [--out splats.png]

A trainer of 3-D Gaussians has the same line: ``loss = fused_ssim.l1_ssim_loss(rendered, photo, ssim_weight=0.2)``.
Needs torchvision to write the picture.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

import fused_ssim


class Splats(nn.Module):
    """Coloured Gaussians in front of black, the first before the others; positions and sizes in units of the side."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.rand(count, 2))
        self.log_size = nn.Parameter(torch.full((count, 2), math.log(0.6 / math.sqrt(count))))
        self.angle = nn.Parameter(math.pi * torch.rand(count))
        self.colour = nn.Parameter(torch.randn(count, 3))
        self.opacity = nn.Parameter(torch.zeros(count))

    def forward(self, side: int) -> Tensor:
        """The picture, (1, 3, side, side)."""
        axis = (torch.arange(side) + 0.5) / side
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        away = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2) - self.centre[:, None]  # [K, pixels, 2]
        cos, sin = torch.cos(self.angle)[:, None], torch.sin(self.angle)[:, None]
        along, across = away[..., 0] * cos + away[..., 1] * sin, away[..., 1] * cos - away[..., 0] * sin
        size = self.log_size.exp()[:, :, None]
        falloff = torch.exp(-0.5 * ((along / size[:, 0]).square() + (across / size[:, 1]).square()))
        alpha = torch.sigmoid(self.opacity)[:, None] * falloff  # [K, pixels]
        passed = torch.cumprod(1 - alpha, dim=0)
        weight = alpha * torch.cat([torch.ones_like(passed[:1]), passed[:-1]])
        return (torch.sigmoid(self.colour).T @ weight).reshape(1, 3, side, side)


def scene(side: int) -> Tensor:
    """Something to fit, (1, 3, side, side): a disc, a bar and a shaded ground."""
    axis = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    picture = torch.stack([0.2 + 0.5 * columns, 0.3 + 0.3 * rows, 0.6 - 0.4 * columns])
    picture[:, (columns - 0.35).square() + (rows - 0.4).square() < 0.05] = torch.tensor([0.9, 0.75, 0.2])[:, None]
    picture[:, (rows - columns - 0.1).abs() < 0.06] = torch.tensor([0.15, 0.2, 0.5])[:, None]
    return picture.unsqueeze(0)


def fit(target: Tensor, count: int, steps: int, ssim_weight: float = 0.2) -> tuple[Tensor, list[float]]:
    """The picture of ``count`` Gaussians fitted to ``target`` (1, 3, S, S), and the loss before each step."""
    torch.manual_seed(0)
    splats = Splats(count)
    optimizer = torch.optim.Adam(splats.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = fused_ssim.l1_ssim_loss(splats(target.shape[-1]), target, ssim_weight=ssim_weight)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return splats(target.shape[-1]), losses


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=400)
    parser.add_argument("--side", type=int, default=96, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("splats.png"), help="target and result, side by side")
    args = parser.parse_args(arguments)

    target = scene(args.side)
    picture, losses = fit(target, args.gaussians, args.steps)
    for step in range(0, args.steps, max(1, args.steps // 10)):
        print(f"step {step:4}: loss {losses[step]:.4f}")
    print(f"SSIM {fused_ssim.ssim(picture, target):.4f}, L1 {(picture - target).abs().mean():.4f}")
    save_image(torch.cat([target, picture], dim=3), args.out)
    print(args.out)
    return losses


if __name__ == "__main__":
    main()
