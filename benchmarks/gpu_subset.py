"""One small call of each kernel, for compute-sanitizer, which slows everything: python benchmarks/gpu_subset.py."""

import argparse
import itertools

import torch

import fused_ssim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU kernel")
    device = "cpu" if parser.parse_args().dry_run else "cuda"
    backends = [device] + ["triton"] * (fused_ssim.dispatch.unavailable("triton", device) is None)
    shapes = ((2, 4, 7, 10), (1, 2, 50, 76), (1, 1, 61, 301))
    for backend, shape, dtype, padding in itertools.product(
        backends, shapes, (torch.float32, torch.float16), ("same", "reflect")
    ):
        if backend == "triton" and (dtype, padding) != (torch.float32, "same"):
            continue  # each would be compiled first
        x, y = (torch.rand(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
        options = {"padding": padding, "backend": backend}
        (2 * fused_ssim.ssim_loss(x, y.detach(), **options)).backward()
        fused_ssim.ssim(x, y, reduction="none", **options).sum().backward()
        fused_ssim.pyramid_ssim_loss([x], [y], normalize="sample", **options).backward()
        if backend != "triton":
            levels = [x, x[..., :7, :9]], [y, y[..., :7, :9]]
            fused_ssim.pyramid_ssim_loss(*levels, normalize="channel", detach_range=False, **options).backward()
        assert x.grad is not None and x.grad.isfinite().all()
    print("went through")


if __name__ == "__main__":
    main()
