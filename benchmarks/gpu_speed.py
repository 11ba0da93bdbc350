"""Loss + gradient on a CUDA device: the fused loss beside mse_loss and the peers that are installed, taking turns.

python -m benchmarks.gpu_speed [--rounds 30] [--out benchmarks/results/gpu] [--dry-run]

CUDA events, medians, L2 flushed before each call. Each peer also on x.reshape(N*C, 1, H, W), its best form where it
loops over channels. A loss whose gradient is wrong is named and not timed. --dry-run goes through all of it on the CPU
with small shapes and writes no file: its times mean nothing. Under TRITON_INTERPRET=1 it takes Triton along.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_ssim
from benchmarks.peers import PEERS, by_planes

FPN = [(100, 152), (50, 76), (25, 38), (13, 19), (7, 10)]
SHAPES = [*((n, 256, h, w) for n in (1, 2, 8, 16) for h, w in FPN), (5, 5, 1080, 1920)]
DRY_SHAPES = [(1, 4, 13, 19), (2, 3, 25, 38)]
GRADIENT_LIMIT = 1e-3
"""Relative L2 distance of a gradient's direction from the fp64 reference above which a loss is not timed."""

TIMED = ("pytorch-msssim", "fussim", "rahul-goel/fused-ssim")
"""Peers of zero padding or whole windows, with a kernel of their own or the most users."""

Loss = Callable[[Tensor, Tensor], Tensor]


def losses(device: str) -> dict[str, tuple[Loss, str | None]]:
    """Each loss, and the padding with which the reference defines the same; None for mse_loss."""
    found: dict[str, tuple[Loss, str | None]] = {"mse_loss": (F.mse_loss, None)}
    for backend in ("cuda", "triton", "cpu"):
        if fused_ssim.dispatch.unavailable(backend, device) is None:
            name = f"fused_ssim {backend}"
            found[name] = (lambda x, y, b=backend: fused_ssim.ssim_loss(x, y, backend=b), "same")
    for peer in PEERS:
        if device in peer.devices and peer.name in TIMED:
            with contextlib.suppress(ImportError):
                loss = peer.build()
                found[peer.name] = (loss, peer.padding)
                found[f"{peer.name}, N*C planes"] = (by_planes(loss), peer.padding)
    return found


def gradient(loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (result,) = torch.autograd.grad(loss(x, y), x)
    return result


def gradient_error(loss: Loss, padding: str, device: str) -> float:
    """Relative L2 distance of the gradient's direction from the fp64 reference, on a small pair."""
    x, y = torch.rand(2, 3, 40, 53, device=device), torch.rand(2, 3, 40, 53, device=device)
    mine = gradient(loss, x, y).double()
    true = gradient(
        lambda a, b: fused_ssim.ssim_loss(a, b, padding=padding, backend="reference"), x.double(), y.double()
    )
    return float((mine / mine.norm() - true / true.norm()).norm())


def milliseconds(run: Callable[[], object], device: str, flush: Tensor) -> float:
    """One call, with nothing of its data in the cache."""
    flush.zero_()
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(
    chosen: dict[str, Loss], shape: tuple[int, ...], device: str, rounds: int, seconds: float
) -> dict[str, float]:
    """Median milliseconds of loss + gradient, the losses taking turns until the rounds or the time are over."""
    x, y = torch.rand(shape, device=device), torch.rand(shape, device=device)
    flush = torch.empty((256 << 20) if device == "cuda" else 1, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    deadline = time.monotonic() + seconds
    for number in range(rounds + 2):
        for name, loss in chosen.items():
            spent = milliseconds(lambda loss=loss: gradient(loss, x, y), device, flush)
            if number >= 2 or spent > 1e3 * seconds / 10:  # the first two warm up
                times[name].append(spent)
        if time.monotonic() > deadline and all(times.values()):
            break
    return {name: statistics.median(values) for name, values in times.items()}


def targets(medians: dict[str, float]) -> str:
    """How the Triton kernel stands beside the CUDA kernel and the fastest peer, where there are all three."""
    triton, cuda = medians.get("fused_ssim triton"), medians.get("fused_ssim cuda")
    peers = {n: t for n, t in medians.items() if n != "mse_loss" and not n.startswith("fused_ssim")}
    said = []
    if triton and cuda:
        said.append(f"Triton / CUDA {triton / cuda:.2f} (target: at most 2)")
    if triton and peers:
        fastest = min(peers, key=peers.__getitem__)
        said.append(f"{fastest} / Triton {peers[fastest] / triton:.2f} (target: at least 1.5)")
    return ", ".join(said) or "no Triton kernel to compare"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=200.0, help="for all shapes together")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    shapes, rounds = (DRY_SHAPES, 2) if args.dry_run else (SHAPES, args.rounds)
    torch.manual_seed(0)
    every = losses(device)
    errors = {n: gradient_error(f, padding, device) for n, (f, padding) in every.items() if padding is not None}
    chosen = {n: f for n, (f, _) in every.items() if errors.get(n, 0.0) < GRADIENT_LIMIT}
    for name in every.keys() - chosen.keys():
        print(f"not timed: {name}, gradient off by {errors[name]:.3g}")
    results = {}
    print("| shape | " + " | ".join(f"{n} ms" for n in chosen) + " | fused GB/s |\n" + "|" + "-|" * (len(chosen) + 2))
    for shape in shapes:
        try:
            medians = measure(chosen, shape, device, rounds, args.seconds / len(shapes))
        except torch.cuda.OutOfMemoryError as error:
            print(f"{shape}: {error}")
            continue
        ours = min(t for n, t in medians.items() if n.startswith("fused_ssim"))
        pixels = shape[0] * shape[1] * shape[2] * shape[3]
        rate = 12 * pixels / ours / 1e6  # x and y read, the gradient written
        results[str(shape)] = {"milliseconds": medians, "fused_gb_per_s": rate, "targets": targets(medians)}
        print(f"| {shape} | " + " | ".join(f"{medians[n]:.3f}" for n in chosen) + f" | {rate:.0f} |")
    for shape, result in results.items():
        print(f"{shape}: {targets(result['milliseconds'])}")
    if args.dry_run:
        print("dry run: went through, measured nothing")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "fused_ssim": fused_ssim.info(),
        "gradient_errors": errors,
        "results": results,
    }
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
