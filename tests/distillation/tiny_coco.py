"""A COCO folder of a few coloured rectangles."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

COLOURS = {3: (220, 40, 40), 7: (40, 60, 220)}  # category id -> colour of its rectangles


def write_coco(root: Path, images_per_split=8, size=(72, 56)):
    """A COCO folder of coloured rectangles: categories 3 and 7, a crowd box, a degenerate box, an empty image."""
    generator = torch.Generator().manual_seed(1)
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, annotations = [], []
        for image_id in range(10, 10 + images_per_split):
            width, height = size if image_id % 2 else size[::-1]
            picture = Image.new("RGB", (width, height), (128, 128, 128))
            if image_id != 10:  # image 10 stays empty
                category = 3 if image_id % 3 else 7
                x, y = torch.randint(4, 16, (2,), generator=generator).tolist()
                w, h = torch.randint(16, 34, (2,), generator=generator).tolist()
                ImageDraw.Draw(picture).rectangle((x, y, x + w - 1, y + h - 1), fill=COLOURS[category])
                boxes = [([x, y, w, h], category, 0)]
                if image_id == 11:
                    boxes += [([0.0, 0.0, 20.0, 12.0], 3, 1), ([30.0, 8.0, 0.0, 5.0], 7, 0)]
                for box, category_id, crowd in boxes:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image_id,
                            "category_id": category_id,
                            "bbox": box,
                            "area": box[2] * box[3] * 0.9,
                            "iscrowd": crowd,
                        }
                    )
            name = f"{image_id:012d}.png"
            picture.save(root / split / name)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
