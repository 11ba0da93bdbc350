"""One small call of each kernel, for compute-sanitizer, which slows everything: python benchmarks/gpu_subset.py."""

import argparse

import torch

import fused_ssim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU kernel")
    device = "cpu" if parser.parse_args().dry_run else "cuda"
    for shape in ((2, 4, 7, 10), (1, 2, 50, 76), (1, 1, 61, 301)):
        for dtype in (torch.float32, torch.float16):
            for padding in ("same", "reflect"):
                x, y = (torch.rand(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
                options = {"padding": padding, "backend": device}
                (2 * fused_ssim.ssim_loss(x, y.detach(), **options)).backward()
                fused_ssim.ssim(x, y, reduction="none", **options).sum().backward()
                fused_ssim.pyramid_ssim_loss([x], [y], normalize="sample", **options).backward()
                assert x.grad is not None and x.grad.isfinite().all()
    print("went through")


if __name__ == "__main__":
    main()
