"""A copy of any COCO folder, no larger than the demo can learn: small images, the most frequent categories."""

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

from PIL import Image
from rich.progress import track

from kd.coco import UNREADABLE, CocoDetection, rgb, unreadable

SPLITS = ("train", "val")


def shrink(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    longest: int,
    train_limit: int,
    val_limit: int,
    categories: int = 0,
) -> Path:
    """Writes ``target`` (train2017/, val2017/, annotations/) from the COCO folder ``source``, unless it is there.

    Boxes and areas shrink with their image. The first images of each file are taken, up to the limits; images for
    training without a usable box are left out.

    Args:
        source: folder with train2017/, val2017/ and annotations/instances_{train,val}2017.json.
        target: folder to write.
        longest: longest side of the copies, in pixels; smaller images keep their size.
        train_limit: largest number of training images.
        val_limit: largest number of validation images.
        categories: how many to keep, those with the most boxes in the training file; 0 keeps all.

    Returns:
        ``target`` as a path.

    Raises:
        kd.coco.DataError: something in ``source`` is missing or wrong; it names the file.
    """
    source, target = Path(source), Path(target)
    stamp = {
        "longest": longest,
        "train_limit": train_limit,
        "val_limit": val_limit,
        "categories": categories,
        "source": _fingerprint(source),
    }
    stamp_file = target / "shrunk.json"
    if stamp_file.is_file() and json.loads(stamp_file.read_text()) == stamp:
        return target
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    kept: set[int] | None = None
    for split, limit in zip(SPLITS, (train_limit, val_limit), strict=True):
        kept = _shrink_split(source, partial, split, longest, limit, categories, kept)
    (partial / "shrunk.json").write_text(json.dumps(stamp))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def _shrink_split(
    source: Path, target: Path, split: str, longest: int, limit: int, categories: int, chosen: set[int] | None
) -> set[int]:
    """Copies one split, with the categories ``chosen``, or if that is None the most frequent; returns those it kept."""
    annotation_file = source / "annotations" / f"instances_{split}2017.json"
    folder = source / f"{split}2017"
    dataset = CocoDetection(folder, annotation_file, training=split == "train", labels="contiguous", limit=limit)
    content = json.loads(annotation_file.read_text(encoding="utf-8"))
    images = {int(image["id"]): image for image in content["images"]}
    rows = [{**a, "image_id": int(a["image_id"]), "category_id": int(a["category_id"])} for a in content["annotations"]]
    if chosen is None:
        counts = Counter(a["category_id"] for a in rows if not a.get("iscrowd", 0))
        chosen = {category for category, _ in counts.most_common(categories or None)}
    (target / f"{split}2017").mkdir(parents=True)
    scales, kept = {}, []
    for record in track(dataset.records, description=f"shrinking {split} images", transient=True):
        scale = min(1.0, longest / max(record.width, record.height))
        size = (max(1, round(scale * record.width)), max(1, round(scale * record.height)))
        name = f"{record.image_id}.jpg"
        small = _small(folder / record.file_name, size)
        small.save(target / f"{split}2017" / name, quality=92)
        kept.append({**images[record.image_id], "file_name": name, "width": size[0], "height": size[1]})
        scales[record.image_id] = (size[0] / record.width, size[1] / record.height)
    annotations = [
        _scaled(annotation, *scales[annotation["image_id"]])
        for annotation in rows
        if annotation["image_id"] in scales and annotation["category_id"] in chosen
    ]
    names = [category for category in content["categories"] if int(category["id"]) in chosen]
    (target / "annotations").mkdir(exist_ok=True)
    (target / "annotations" / annotation_file.name).write_text(
        json.dumps({"images": kept, "annotations": annotations, "categories": names})
    )
    return chosen


def _small(path: Path, size: tuple[int, int]) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.draft("RGB", size)
            return rgb(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=3)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _scaled(annotation: dict, sx: float, sy: float) -> dict:
    x, y, w, h = annotation["bbox"]
    scaled = {key: annotation[key] for key in ("id", "image_id", "category_id") if key in annotation}
    scaled["iscrowd"] = annotation.get("iscrowd", 0)
    return {**scaled, "bbox": [x * sx, y * sy, w * sx, h * sy], "area": annotation.get("area", w * h) * sx * sy}


def _fingerprint(source: Path) -> str:
    """Changes with the annotation files' names and contents."""
    digest = hashlib.sha256(str(source.resolve()).encode())
    for split in SPLITS:
        file = source / "annotations" / f"instances_{split}2017.json"
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
