"""What is built here; fails where it has no kernels for the device. python -m benchmarks.gpu_built [--capability 9.0]

setup.py builds without the CUDA kernels where nvcc fails, and everything that needs them would then be skipped.
"""

import argparse
import sys

import torch

from fused_ssim import native
from fused_ssim.__main__ import report


def serving(archs: tuple[str, ...], capability: tuple[int, int]) -> list[str]:
    """Those of ``archs`` that run on such a device, by the rule of :func:`fused_ssim.native.devices_of`."""
    device = 10 * capability[0] + capability[1]
    return [arch for arch in archs for least, most in [native.devices_of(arch)] if least <= device <= most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", help="of a device that is not here; default that of this machine's")
    args = parser.parse_args()
    print(report())
    if args.capability:
        major, minor = map(int, args.capability.split("."))
    else:
        major, minor = torch.cuda.get_device_capability()
    found = serving(native.cuda_archs, (major, minor))
    if not found:
        sys.exit(f"no kernels for a device of capability {major}.{minor}: {', '.join(native.cuda_archs) or 'no CUDA'}")
    print(f"for a device of capability {major}.{minor}: {', '.join(found)}")


if __name__ == "__main__":
    main()
