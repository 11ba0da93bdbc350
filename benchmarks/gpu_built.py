"""What is built here; fails where it has no kernels for the device. python -m benchmarks.gpu_built [--capability 9.0]

setup.py builds without the CUDA kernels where nvcc fails, and everything that needs them would then be skipped.
"""

import argparse
import sys

import torch

from fused_ssim import native
from fused_ssim.__main__ import report


def serving(archs: tuple[str, ...], capability: tuple[int, int]) -> list[str]:
    """Those of ``archs`` that run on such a device: its code, that of a lesser minor, or PTX of anything older."""
    found = []
    for arch in archs:
        kind, _, number = arch.partition("_")
        exact = not number.isdigit()  # "90a" runs nowhere else
        digits = number.rstrip("af")
        major, minor = int(digits[:-1]), int(digits[-1])
        if exact:
            fits = (major, minor) == capability
        elif kind == "sm":
            fits = major == capability[0] and minor <= capability[1]
        else:
            fits = (major, minor) <= capability
        if fits:
            found.append(arch)
    return found


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
