"""Time of the CPU kernel alone, without autograd: ``python -m benchmarks.cpu_kernel [--beside DIRECTORY]``.

For work on the kernel: nanoseconds a pixel for one SSIM and its gradient by x, the least of many calls, so that what
else the machine does counts as little as it can. ``--beside`` names another checkout with a build in place; the two
take turns, each in a process of its own.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

SHAPES = (
    (1, 256, 100, 152),
    (2, 256, 50, 76),
    (8, 256, 25, 38),
    (8, 256, 13, 19),
    (8, 256, 7, 10),
    (16, 3, 270, 480),
    (1, 3, 1080, 1920),
    (1, 1, 64, 64),
    (1, 1, 256, 256),
    (1, 1, 1024, 1024),
)
PADDINGS = ("same", "valid", "reflect")
TURNS = 8
TURN_SECONDS = 0.1


def serve(threads: int, instruction_set: str) -> None:
    """Answers each line ``[shape, padding]`` with the least seconds of a call."""
    import torch

    from fused_ssim import native, ops
    from fused_ssim.window import kernel_taps

    torch.set_num_threads(threads)
    if instruction_set and not native._C.set_cpu_instruction_set(instruction_set):
        sys.exit(f"--isa must be one of {native._C.cpu_instruction_sets()}, got {instruction_set!r}")
    generator = torch.Generator().manual_seed(0)
    images = {}
    for line in sys.stdin:
        shape, padding = json.loads(line)
        shape = tuple(shape)
        if shape not in images:
            x = torch.rand(shape, generator=generator)
            images = {shape: (x, 0.6 * x + 0.4 * torch.rand(shape, generator=generator))}
        x, y = images[shape]
        scale = 1 / x.numel()
        definition = (kernel_taps(11, 1.5), [1.0] * 3, 1e-4, 9e-4, 1.0, padding, 11)
        least, end = math.inf, time.perf_counter() + TURN_SECONDS
        with torch.no_grad(), ops._below_autograd():
            while time.perf_counter() < end:
                start = time.perf_counter()
                result = torch.ops.fused_ssim.ssim_sums(
                    [x], [y], [], [0.0], [scale], [0.0], [1.0], *definition, "", True, False, True, False
                )
                least = min(least, time.perf_counter() - start)
                del result
        print(least, flush=True)


def start(directory: Path, threads: int, instruction_set: str) -> subprocess.Popen:
    command = [sys.executable, "-P", __file__, "--serve", "--threads", str(threads), "--isa", instruction_set]
    environment = os.environ | {"PYTHONPATH": str(directory)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=directory)


def ask(process: subprocess.Popen, shape: tuple[int, ...], padding: str) -> float:
    assert process.stdin and process.stdout
    print(json.dumps([shape, padding]), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        sys.exit("a process of the kernel ended; what it printed says why")
    return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="another checkout, with a build in place")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="", help="instruction set of the kernel, the best by default")
    parser.add_argument("--paddings", nargs="+", choices=PADDINGS, default=["same"])
    parser.add_argument("--shapes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), default=SHAPES)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.threads, options.isa)
    here = Path(__file__).resolve().parents[1]
    trees = [here, *([options.beside.resolve()] if options.beside else [])]
    processes = [start(tree, options.threads, options.isa) for tree in trees]
    print(f"{'shape':24} {'padding':8} ns a pixel, {options.threads} thread(s): " + ", ".join(map(str, trees)))
    for shape in options.shapes:
        for padding in options.paddings:
            least = [math.inf] * len(processes)
            for _ in range(TURNS):
                for i, process in enumerate(processes):
                    least[i] = min(least[i], ask(process, shape, padding))
            figures = " ".join(f"{seconds / math.prod(shape) * 1e9:8.3f}" for seconds in least)
            print(f"{shape!s:24} {padding:8} {figures}", flush=True)
    for process in processes:
        process.communicate()


if __name__ == "__main__":
    main()
