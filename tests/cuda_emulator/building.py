"""Compiles C++ and CUDA sources for the emulator with the host's compiler, each object once for each content."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "cuda_emulator"

COMMON = ("-std=c++20", "-Wall", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized", f"-I{HERE / 'include'}")
PLAIN = ("-O2", "-march=native")
ADDRESS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
THREAD = ("-O1", "-g1", "-fsanitize=thread")


class CompileError(RuntimeError):
    """The compiler refused a source; the text is what it said."""


def compiler() -> str | None:
    """The host's C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CompileError(f"{' '.join(command)}\n{result.stderr[-6000:]}")


def _digest(flags: Sequence[str], files: Sequence[Path]) -> str:
    parts = hashlib.sha256(" ".join([str(compiler()), *flags]).encode())
    for file in files:
        parts.update(file.read_bytes())
    return parts.hexdigest()[:16]


def _object(source: Path, flags: Sequence[str], headers: Sequence[Path]) -> Path:
    built = CACHE / f"{source.stem}-{_digest([str(source.parent.name), *flags], [source, *headers])}.o"
    if not built.exists():
        partial = built.with_suffix(f".{os.getpid()}.partial")
        _run([str(compiler()), *flags, "-x", "c++", "-c", str(source), "-o", str(partial)])
        partial.replace(built)
    return built


def link(
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    headers: Sequence[Path] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Compile the sources and the scheduler, and link them. Returns the file, from the cache where it is there.

    flags: PLAIN, ADDRESS or THREAD and whatever the sources need; headers: files whose content decides as well;
    link_flags: such as "-shared".
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    own = sorted([*HERE.glob("*.h"), *HERE.glob("include/*.h")])
    # The scheduler is not instrumented for ThreadSanitizer: its own order is none that a device has.
    threads = "-fsanitize=thread" in flags
    scheduler_flags = [flag for flag in flags if flag != "-fsanitize=thread"] + ["-DEMULATOR_TSAN"] * threads
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(_object, source, [*COMMON, *flags], [*own, *headers]) for source in sources]
        jobs.append(pool.submit(_object, HERE / "scheduler.cpp", [*COMMON, *scheduler_flags], own))
        objects = [job.result() for job in jobs]
    sanitize = [flag for flag in flags if flag.startswith("-fsanitize")]
    built = CACHE / f"{name}-{_digest([*sanitize, *link_flags], objects)}{'.so' if '-shared' in link_flags else ''}"
    if not built.exists():
        partial = built.with_suffix(f".{os.getpid()}.partial")
        _run([str(compiler()), *map(str, objects), *sanitize, *link_flags, "-pthread", "-o", str(partial)])
        partial.replace(built)
    return built
