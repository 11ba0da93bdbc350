"""The embedded data set: real handwritten digits on real photographs, written as a COCO folder.

Digits are scikit-learn's ``load_digits`` (8x8 pixels, 1,797 of them, UCI optical recognition set); backgrounds are
crops of the two photographs in scikit-learn's ``load_sample_images``. Training and validation share neither a digit
nor a photograph column.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

#: Fraction of every photograph's width, from the left, that training crops come from.
TRAIN_WIDTH = 0.68
#: Columns between the two parts of a photograph that nobody uses, so that no crop touches both.
GAP_PX = 8
#: Fraction of the digits of every class that training images use.
TRAIN_DIGITS = 0.8


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """What the embedded data set looks like; equal configurations give equal pixels."""

    train_images: int = 3200
    """Number of training images."""
    val_images: int = 400
    """Number of validation images."""
    image_size: int = 128
    """Side of the square images, in pixels."""
    min_digit: int = 18
    """Smallest side of a digit's cell, in pixels; cells are drawn log-uniformly."""
    max_digit: int = 72
    """Largest side of a digit's cell, in pixels."""
    max_digits_per_image: int = 4
    """Every image holds between one and this many digits."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images", "max_digits_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 8 <= self.min_digit <= self.max_digit < self.image_size:
            raise ValueError(
                "expected 8 <= min_digit <= max_digit < image_size, "
                f"got min_digit={self.min_digit}, max_digit={self.max_digit}, image_size={self.image_size}"
            )
        if self.image_size > 160:
            raise ValueError(f"image_size must be at most 160, the crops the photographs allow, got {self.image_size}")


def write_digits(root: str | os.PathLike, config: DigitsConfig | None = None) -> Path:
    """Writes the data set to ``root`` (train2017/, val2017/, annotations/) unless it is there already.

    Args:
        root: folder of the data set. A folder that holds another configuration's images is replaced; a folder that this
            function didn't write is refused.
        config: sizes and seed; the defaults of :class:`DigitsConfig` when left out.

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: ``root`` exists, isn't empty, and wasn't written by this function.
    """
    config = config or DigitsConfig()
    root = Path(root)
    stamp = root / "digits.json"
    if stamp.is_file():
        if json.loads(stamp.read_text()) == asdict(config):
            return root
    elif root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty and was not written by the demo; name another folder or remove it")
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in ("train", "val"):
        _write_split(partial, split, config)
    (partial / "digits.json").write_text(json.dumps(asdict(config), indent=1))
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)
    return root


def digit_split(split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits of one split: images (N, 8, 8) in [0, 1] and labels (N,); ``train`` and ``val`` share none."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng([seed, 1]).permutation(len(digits.target))
    keep = []
    for label in range(10):
        of_class = order[digits.target[order] == label]
        cut = round(TRAIN_DIGITS * len(of_class))
        keep.append(of_class[:cut] if split == "train" else of_class[cut:])
    index = np.concatenate(keep)
    return digits.images[index] / 16.0, digits.target[index]


def photo_split(split: str) -> list[Image.Image]:
    """The photographs' parts that belong to one split; the parts of ``train`` and ``val`` don't overlap."""
    from sklearn.datasets import load_sample_images

    parts = []
    for photo in load_sample_images().images:
        height, width = photo.shape[:2]
        cut = int(TRAIN_WIDTH * width)
        left, right = (0, cut) if split == "train" else (cut + GAP_PX, width)
        parts.append(Image.fromarray(photo[:, left:right]).crop((0, 0, right - left, height)))
    return parts


def _write_split(root: Path, split: str, config: DigitsConfig) -> None:
    rng = np.random.default_rng([config.seed, 2, 0 if split == "train" else 1])
    digits, labels = digit_split(split, config.seed)
    photos = photo_split(split)
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, (config.train_images if split == "train" else config.val_images) + 1):
        canvas, boxes = _compose(rng, photos, digits, labels, config)
        name = f"{image_id:012d}.jpg"
        canvas.save(folder / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": canvas.width, "height": canvas.height})
        for label, (x, y, w, h) in boxes:
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1,
                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [],
            })  # fmt: skip
    content = {
        "info": {"description": "handwritten digits (UCI, via scikit-learn) on scikit-learn's sample photographs"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": d + 1, "name": str(d), "supercategory": "digit"} for d in range(10)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def _compose(rng, photos, digits, labels, config):
    """One image and its ``[(label, (x, y, w, h)), ...]``."""
    canvas = _background(rng, photos, config.image_size)
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    placed: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(rng.integers(1, config.max_digits_per_image + 1)):
        index = rng.integers(len(labels))
        cell = round(math.exp(rng.uniform(math.log(config.min_digit), math.log(config.max_digit))))
        alpha = _ink(rng, digits[index], cell)
        height, width = alpha.shape
        for _ in range(20):
            x = int(rng.integers(0, config.image_size - width + 1))
            y = int(rng.integers(0, config.image_size - height + 1))
            if all(not _touch((x, y, width, height), box) for _, box in placed):
                break
        else:
            continue  # No free place left for a digit of this size.
        patch = pixels[y : y + height, x : x + width]
        colour = _contrasting(rng, patch.mean(axis=(0, 1)))
        patch += alpha[:, :, None] * (colour - patch)
        placed.append((int(labels[index]), (x, y, width, height)))
    noisy = pixels + rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)), placed


def _background(rng, photos, size: int) -> Image.Image:
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(min(size, *photo.size) // 2, min(photo.size) + 1))
    left, top = rng.integers(0, photo.width - side + 1), rng.integers(0, photo.height - side + 1)
    crop = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _ink(rng, digit: np.ndarray, cell: int) -> np.ndarray:
    """A digit enlarged to a ``cell`` x ``cell`` square, turned a little, cut to its ink: opacity (h, w) in [0, 1]."""
    image = Image.fromarray((digit * 255).astype(np.uint8)).resize((cell, cell), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    alpha = np.asarray(image.filter(ImageFilter.GaussianBlur(cell / 60)), dtype=np.float32) / 255
    alpha = np.clip((alpha - 0.2) / 0.5, 0, 1)
    rows, columns = np.flatnonzero(alpha.max(1) > 0.5), np.flatnonzero(alpha.max(0) > 0.5)
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _contrasting(rng, background: np.ndarray) -> np.ndarray:
    """A random ink colour at least 70 grey levels lighter or darker than the background's mean colour (3,)."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - background.mean()) >= 70:
            return colour.astype(np.float32)


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int], margin: int = 2) -> bool:
    return (
        a[0] < b[0] + b[2] + margin
        and b[0] < a[0] + a[2] + margin
        and a[1] < b[1] + b[3] + margin
        and b[1] < a[1] + a[3] + margin
    )
