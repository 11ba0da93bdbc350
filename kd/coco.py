"""COCO-format detection data: an annotation file beside a folder of images."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

Labels = Literal["coco", "contiguous"]
Target = dict[str, Tensor]
#: What Pillow raises at pictures that are none.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class DataError(ValueError):
    """Data on disk is missing or wrong; the message names the file and what to do."""


class Draw(NamedTuple):
    """One image as a sampler draws it: which one, and the seed of its augmentation."""

    index: int
    seed: int


class ImageRecord(NamedTuple):
    image_id: int
    file_name: str
    width: int
    height: int
    annotations: np.ndarray
    """[n, 7] float64: x, y, width, height (pixels), area (pixels^2), label, iscrowd; as in the annotation file. No
    tensor, of which each takes a file descriptor on its way to a loading process that is not forked."""

    def rows(self) -> Tensor:
        """``annotations`` as a tensor, which shares their memory."""
        return torch.from_numpy(self.annotations)


class CocoDetection(Dataset[tuple[Tensor, Target]]):
    """Images and targets as torchvision's detectors take them.

    An item is ``(image, target)``: the image is float32 [3, H, W] in [0, 1]; the target holds ``boxes`` float32 [n, 4]
    (x1, y1, x2, y2 in pixels), ``labels`` int64 [n], ``area`` float32 [n], ``iscrowd`` int64 [n], ``image_id`` int64
    [].

    Args:
        images: folder with the images.
        annotations: COCO-format JSON file ("images", "annotations", "categories").
        training: drop crowd and degenerate boxes (width or height below one pixel after clipping to the image), and
            images left without a box. Otherwise everything is kept as the COCO evaluation needs it.
        labels: "coco" uses category ids as labels, "contiguous" numbers the categories 1..K by ascending id.
        transform: ``(image, target) -> (image, target)`` on tv_tensors; a torchvision v2 transform.
        limit: use only the first ``limit`` images.

    Raises:
        DataError: a missing file, folder, image or key; an annotation of an unknown image or category; no images.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        training: bool = False,
        labels: Labels = "coco",
        transform: Callable[..., Any] | None = None,
        limit: int | None = None,
    ) -> None:
        if labels not in ("coco", "contiguous"):
            raise ValueError(f"labels: got {labels!r}, expected 'coco' or 'contiguous'")
        self.images, self.annotations = Path(images), Path(annotations)
        self.training, self.transform = training, transform
        content = _read_json(self.annotations)
        self.categories = _categories(content, self.annotations, labels)
        """Category id -> name."""
        ids = sorted(self.categories)
        self.label_of_category = {c: (c if labels == "coco" else k) for k, c in enumerate(ids, start=1)}
        times = Counter(self.categories.values())
        self.label_names = {
            self.label_of_category[c]: name if times[name] == 1 else f"{name} ({c})"
            for c, name in sorted(self.categories.items())
        }
        """Label -> name; where several categories have one name, with their id behind it."""
        self.records = _records(content, self.annotations, self.label_of_category)
        if training:
            self.records = [r for r in self.records if _usable(r).any()]
        if limit is not None and limit < 1:
            raise DataError(f"limit: got {limit}, expected at least 1, or None for all images")
        if limit is not None:
            self.records = self.records[:limit]
        if not self.records:
            raise DataError(f"{self.annotations}: no images{' with boxes' if training else ''} in it")
        _check_images_exist(self.images, (r.file_name for r in self.records), self.annotations)

    @property
    def num_classes(self) -> int:
        """Classes a detector needs for these labels, background included: the largest label plus one."""
        return max(self.label_names) + 1

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: int | Draw) -> tuple[Tensor, Target]:
        index = draw.index if isinstance(draw, Draw) else draw
        record = self.records[index]
        image = self._read_image(record)
        rows = record.rows()[_usable(record)] if self.training else record.rows()
        boxes = rows[:, :4].clone()
        boxes[:, 2:] += boxes[:, :2]
        if self.training:
            boxes = _clip(boxes, record)
        size = (record.height, record.width)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=size),
            "labels": rows[:, 5].long(),
            "area": rows[:, 4].float(),
            "iscrowd": rows[:, 6].long(),
            "image_id": torch.tensor(record.image_id),
        }
        if self.transform is not None:
            # Augmentation is a function of the drawn seed, so workers, their number and a resumed run change nothing.
            with torch.random.fork_rng(devices=[], enabled=isinstance(draw, Draw)):
                if isinstance(draw, Draw):
                    torch.manual_seed(draw.seed)
                image, target = self.transform(image, target)
        target["boxes"] = target["boxes"].as_subclass(Tensor)
        return transforms.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor), target

    def aspect_ratio(self, index: int) -> float:
        """Width / height of an image."""
        return self.records[index].width / self.records[index].height

    def _read_image(self, record: ImageRecord) -> tv_tensors.Image:
        path = self.images / record.file_name
        try:
            with Image.open(path) as file:
                image = transforms.to_image(rgb(file))
                fits = image.shape[-2:] == (record.height, record.width)
                turned = not fits and file.getexif().get(ExifTags.Base.Orientation, 1) > 4
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        if not fits:
            reason = (
                "its EXIF orientation, which is not applied, turns it on its side: store it upright, as annotated"
                if turned
                else "images and annotations are not of the same data set"
            )
            raise DataError(
                f"{path}: the image is {image.shape[-1]}x{image.shape[-2]} but {self.annotations} says "
                f"{record.width}x{record.height} (width x height); {reason}"
            )
        return image


def unreadable(path: Path, error: Exception) -> DataError:
    """What is said of a picture that raised one of :data:`UNREADABLE`."""
    return DataError(f"{path}: can not be read as an image ({error}); download or write this file again")


def rgb(picture: Image.Image) -> Image.Image:
    """An opened picture in 8-bit RGB; of 16-bit greys the upper byte, as OpenCV takes it (Pillow would clip at 255).

    Raises:
        ValueError: its values are 32-bit numbers, whose range nothing tells.
    """
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode!r}, expected 8 or 16 bits a channel")
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value / 256)
    return picture.convert("RGB")


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch as torchvision's detectors take it: a list of images and a list of targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file; give its path, or the COCO folder that holds annotations/")
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); download or write it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list {key!r} in it; expected a COCO detection file (instances_*.json)")
    return content


def _categories(content: dict[str, Any], path: Path, labels: Labels) -> dict[int, str]:
    try:
        categories = {int(c["id"]): str(c.get("name", c["id"])) for c in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a category without a usable id ({error!r})") from error
    if not categories or (labels == "coco" and min(categories) < 1):
        raise DataError(
            f"{path}: category ids {sorted(categories)[:5]}, expected ids from 1 on (0 is the background); "
            "with labels: contiguous they may begin anywhere"
        )
    return categories


def _records(content: dict[str, Any], path: Path, label_of_category: dict[int, int]) -> list[ImageRecord]:
    images: dict[int, tuple[str, int, int]] = {}
    for image in content["images"]:
        name = image.get("id", "without id") if isinstance(image, dict) else image
        try:
            image_id = int(image["id"])
            described = str(image["file_name"]), int(image["width"]), int(image["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: image {name} lacks a usable id, file_name, width or height ({error!r})"
            ) from error
        if image_id in images:
            raise DataError(f"{path}: image id {image_id} twice")
        images[image_id] = described
    rows: dict[int, list[list[float]]] = {image_id: [] for image_id in images}
    for annotation in content["annotations"]:
        name = annotation.get("id", "without id") if isinstance(annotation, dict) else annotation
        try:
            image_id, category = int(annotation["image_id"]), int(annotation["category_id"])
            x, y, width, height = (float(v) for v in annotation["bbox"])
            area = float(annotation.get("area", width * height))
            crowd = int(annotation.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: annotation {name} lacks a usable bbox, image_id, category_id, area or iscrowd ({error!r})"
            ) from error
        if image_id not in rows:
            raise DataError(f"{path}: annotation {name} belongs to image {image_id}, which the file does not list")
        if category not in label_of_category:
            raise DataError(f"{path}: annotation {name} is of category {category}, which the file does not list")
        if not all(map(math.isfinite, (x, y, width, height, area))):
            raise DataError(f"{path}: annotation {name} has a box or area that is not finite: {annotation['bbox']}")
        rows[image_id].append([x, y, width, height, area, label_of_category[category], crowd])
    return [
        ImageRecord(image_id, *described, np.array(rows[image_id], dtype=np.float64).reshape(-1, 7))
        for image_id, described in images.items()
    ]


def _clip(boxes: Tensor, record: ImageRecord) -> Tensor:
    limit = torch.tensor([record.width, record.height] * 2, dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def _usable(record: ImageRecord) -> Tensor:
    """Which rows can be trained on: no crowd, and at least a pixel wide and high inside of the image."""
    rows = record.rows()
    boxes = rows[:, :4].clone()
    boxes[:, 2:] += boxes[:, :2]
    boxes = _clip(boxes, record)
    return (rows[:, 6] == 0) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)


def _check_images_exist(folder: Path, names: Iterable[str], annotations: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder (named by the images of {annotations})")
    # One listing instead of a stat per file: COCO's 118,287 files are checked in a fraction of a second.
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in present:
            present[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        if base not in present[parent]:
            missing.append(name)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of the images listed in {annotations} are missing, e.g. {missing[0]}; "
            "download them or give the folder they are in"
        )
