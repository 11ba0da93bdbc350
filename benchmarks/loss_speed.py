"""Loss + gradient: the fused SSIM loss beside mse_loss and other SSIM packages, interleaved in one run.

python benchmarks/loss_speed.py [--threads 2] [--rounds 15] [--out benchmarks/results/cpu]
"""

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_ssim

SHAPES = [(1, 256, 100, 152), (2, 256, 50, 76), (8, 256, 13, 19), (16, 3, 270, 480), (1, 3, 1080, 1920)]
GRADIENT_LIMIT = 1e-3
"""Relative L2 error of the gradient above which a peer computes something else than SSIM and is not timed."""

Loss = Callable[[Tensor, Tensor], Tensor]


def peers() -> dict[str, tuple[Loss, str]]:
    """Each installed peer: its loss, and the padding with which the reference defines the same."""
    found: dict[str, tuple[Loss, str]] = {}
    try:
        import pytorch_msssim

        found["pytorch-msssim"] = (lambda x, y: 1 - pytorch_msssim.ssim(x, y, data_range=1.0), "valid")
    except ImportError:
        pass
    try:
        import kornia

        found["kornia"] = (lambda x, y: kornia.losses.ssim_loss(x, y, 11), "reflect")
    except ImportError:
        pass
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure

        found["torchmetrics"] = (lambda x, y: 1 - structural_similarity_index_measure(x, y, data_range=1.0), "reflect")
    except ImportError:
        pass
    try:
        import piq

        found["piq"] = (lambda x, y: 1 - piq.ssim(x, y, data_range=1.0, downsample=False), "valid")
    except ImportError:
        pass
    return found


def gradient(loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    loss(x, y).backward()
    assert x.grad is not None
    return x.grad


def gradient_error(loss: Loss, padding: str) -> float:
    """Relative L2 distance of the gradient's direction from the fp64 reference, on a small pair."""
    x, y = torch.rand(2, 3, 40, 53), torch.rand(2, 3, 40, 53)
    mine = gradient(loss, x, y).double()
    true = gradient(
        lambda a, b: fused_ssim.ssim_loss(a, b, padding=padding, backend="reference"), x.double(), y.double()
    )
    return float((mine / mine.norm() - true / true.norm()).norm())


def measure(losses: dict[str, Loss], shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Median seconds of loss + gradient, the losses taking turns."""
    x, y = torch.rand(shape), torch.rand(shape)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for round_number in range(rounds + 2):
        for name, loss in losses.items():
            # Slow peers get fewer turns: their medians need no more.
            if round_number > 4 and statistics.median(seconds[name]) > 1.0:
                continue
            start = time.perf_counter()
            gradient(loss, x, y)
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    fused: Loss = lambda x, y: fused_ssim.ssim_loss(x, y)  # noqa: E731
    losses: dict[str, Loss] = {"fused_ssim": fused, "mse_loss": F.mse_loss}
    errors = {"fused_ssim": gradient_error(fused, "same")}
    losses["fused_ssim reflect"] = lambda x, y: fused_ssim.ssim_loss(x, y, padding="reflect")
    losses["fused_ssim exponents"] = lambda x, y: fused_ssim.ssim_loss(x, y, exponents=(0.5, 0.5, 0.5))
    losses["reference"] = lambda x, y: fused_ssim.ssim_loss(x, y, backend="reference")
    for name, (loss, padding) in peers().items():
        errors[name] = gradient_error(loss, padding)
        if errors[name] < GRADIENT_LIMIT:
            losses[name] = loss
    results = {str(shape): measure(losses, shape, args.rounds) for shape in SHAPES}

    lines = ["| shape | " + " | ".join(losses) + " | fused / mse | fastest peer / fused |"]
    lines.append("|" + "---|" * (len(losses) + 3))
    ratios = []
    for shape, medians in results.items():
        known = [v for name, v in medians.items() if name in peers()]
        ratios.append(medians["fused_ssim"] / medians["mse_loss"])
        cells = " | ".join(f"{medians[name] * 1e3:.2f} ms" for name in losses)
        best = f"{min(known) / medians['fused_ssim']:.1f}" if known else "-"
        lines.append(f"| {shape} | {cells} | {ratios[-1]:.2f} | {best} |")
    mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
    lines.append(
        f"\nGeometric mean of fused / mse: {mean:.2f}. {args.threads} threads, medians of {args.rounds} rounds."
    )
    table = "\n".join(lines)
    print(table)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    versions = {}
    for package in ("torch", "pytorch-msssim", "kornia", "torchmetrics", "piq"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    args.out.with_suffix(".md").write_text(table + "\n")
    args.out.with_suffix(".json").write_text(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "cpu": torch.backends.cpu.get_cpu_capability(),
                "threads": args.threads,
                "versions": versions,
                "fused_ssim": fused_ssim.info(),
                "gradient_errors": errors,
                "median_seconds": results,
                "geometric_mean_fused_over_mse": mean,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
