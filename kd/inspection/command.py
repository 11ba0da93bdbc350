"""``kd inspect``: the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from kd.coco import UNREADABLE, CocoDetection, DataError, rgb
from kd.inspection.figures import figures_of, png
from kd.inspection.maps import inspect_image
from kd.run_folder import RunFolder, RunFolderError

#: Validation images shown where none are named.
IMAGES_SHOWN = 4


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="kd inspect",
        description="Pictures of what a student has learnt: detections beside ground truth and teacher, features of "
        "both per FPN level, and where luminance, contrast, structure, SSIM and L2 see a difference.",
    )
    made.add_argument("--student", type=Path, required=True, metavar="RUN", help="folder of a run of kd fit or compare")
    made.add_argument(
        "--teacher", type=Path, metavar="RUN|FILE",
        help="the teacher, where the run has none: folder of the run that trained it, or a YAML file with the fields "
        "of model.teacher",
    )  # fmt: skip
    made.add_argument("--out", type=Path, default=Path("inspection"), metavar="FOLDER", help="where (%(default)s)")
    made.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE",
        help=f"image files; without any, {IMAGES_SHOWN} validation images of the run",
    )  # fmt: skip
    return made


def main(arguments: Sequence[str]) -> int:
    """Run ``kd inspect``; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        for file in inspect_run(RunFolder(options.student), _teacher(options.teacher), options.images, options.out):
            print(file)
    except (RunFolderError, DataError, ValueError, FileNotFoundError) as error:
        print(f"kd inspect: {error}", file=sys.stderr)
        return 1
    return 0


def inspect_run(run: RunFolder, teacher: Mapping[str, Any] | None, images: Sequence[Path], out: Path) -> list[Path]:
    """Write the figures of each image below ``out``; returns the files.

    Args:
        run: the student's training.
        teacher: fields of :class:`kd.models.DetectorConfig`; None takes the run's own teacher, if it has one.
        images: image files; empty takes some of the run's validation images.
        out: folder to write to.
    """
    distiller = run.distiller(teacher)
    detects = getattr(distiller.teacher, "heads_are_trained", True)
    out.mkdir(parents=True, exist_ok=True)
    files, named = [], Counter[str]()
    for name, image, target, names in _pictures(run, images):
        named[name] += 1
        if named[name] > 1:
            name = f"{name}-{named[name]}"  # of another folder
        inspection = inspect_image(distiller, image, teacher_detects=detects)
        for kind, figure in figures_of(inspection, target, names).items():
            files.append(out / f"{name}_{kind}.png")
            files[-1].write_bytes(png(figure))
    return files


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` positions spread evenly over ``count``, or all of them if they are fewer."""
    wanted = min(wanted, count)
    return [round(k * (count - 1) / max(wanted - 1, 1)) for k in range(wanted)]


def _pictures(
    run: RunFolder, images: Sequence[Path]
) -> list[tuple[str, Tensor, dict[str, Tensor] | None, Mapping[int, str]]]:
    """(name, image, ground truth if known, label names) of each image."""
    try:
        data: CocoDetection | None = run.validation_images()
    except DataError:
        if not images:
            raise
        data = None  # the data have moved; the pictures are still worth drawing
    names = data.label_names if data else {}
    known = {Path(record.file_name).parts: k for k, record in enumerate(data.records)} if data else {}
    if not images:
        assert data is not None
        return [(Path(data.records[k].file_name).stem, *data[k], names) for k in spread(len(data), IMAGES_SHOWN)]
    made = []
    for file in images:
        # By as many folders as the annotations name, because files of one name may lie in several.
        parts = Path(os.path.abspath(file)).parts
        found = [known[parts[k:]] for k in range(len(parts)) if parts[k:] in known]
        target = data[found[0]][1] if data and found else None
        made.append((file.stem, _read(file), target, names))
    return made


def _read(file: Path) -> Tensor:
    try:
        with Image.open(file) as opened:
            return to_tensor(rgb(opened))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {str(file)!r}") from None
    except UNREADABLE as error:
        raise ValueError(f"{file}: can not be read as an image ({error})") from error


def _teacher(given: Path | None) -> Mapping[str, Any] | None:
    if given is None:
        return None
    if given.is_dir():
        run = RunFolder(given)
        weights = given / "student_last.pth"
        if not weights.is_file():
            raise RunFolderError(f"--teacher: {given} has no student_last.pth, its training has not ended")
        return {**run.model["student"], "weights": str(weights), "weights_format": "torchvision"}
    if not given.is_file():
        raise FileNotFoundError(f"--teacher: {given} is neither a run's folder nor a YAML file")
    content = yaml.safe_load(given.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "name" not in content:
        raise ValueError(f"--teacher: {given} must hold a detector's fields (name, backbone, weights, ...)")
    return content
