import io
import json
import os
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from PIL import ExifTags, Image
from tiny_coco import write_coco
from torchvision.transforms import v2

from kd.coco import CocoDetection, DataError, Draw
from kd.data import CocoDataModule
from kd.sampling import GroupedBatchSampler, aspect_ratio_groups


def paths(root, split="train2017"):
    return root / split, root / "annotations" / f"instances_{split}.json"


def edit(root, change, split="train2017"):
    file = paths(root, split)[1]
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_training_drops_what_can_not_be_learnt(coco_root):
    data = CocoDetection(*paths(coco_root), training=True)
    assert [r.image_id for r in data.records] == list(range(11, 18))  # image 10 has no box
    image, target = data[0]
    assert image.dtype == torch.float32 and image.shape == (3, 56, 72) and image.min() >= 0 and image.max() <= 1
    assert len(target["boxes"]) == 1 and target["iscrowd"].tolist() == [0]  # without the crowd and the degenerate box
    x1, y1, x2, y2 = target["boxes"][0].int().tolist()
    inside, outside = image[:, y1:y2, x1:x2], image[:, y2 + 1 :, :]
    assert inside.flatten(1).std(1).max() < 1e-6 and abs(inside.mean() - outside.mean()) > 0.01
    assert target["labels"].tolist() == [3] and target["image_id"] == 11


def test_evaluation_keeps_everything(coco_root):
    data = CocoDetection(*paths(coco_root, "val2017"))
    assert len(data) == 8
    assert data[0][1]["boxes"].shape == (0, 4)
    target = data[1][1]
    assert target["iscrowd"].tolist() == [0, 1, 0] and len(target["boxes"]) == 3
    torch.testing.assert_close(target["area"][1], torch.tensor(216.0))
    assert type(target["boxes"]) is torch.Tensor


def test_labels(coco_root):
    assert CocoDetection(*paths(coco_root)).num_classes == 8
    data = CocoDetection(*paths(coco_root), labels="contiguous")
    assert data.num_classes == 3 and data.label_names == {1: "red", 2: "blue"}
    assert {int(label) for _, t in data for label in t["labels"]} == {1, 2}


def test_category_ids_may_begin_at_0_where_labels_are_contiguous(coco_root):
    def from_0(content):
        content["categories"][0]["id"] = 0
        for annotation in content["annotations"]:
            annotation["category_id"] = {3: 0, 7: 7}[annotation["category_id"]]

    before = [target["labels"].tolist() for _, target in CocoDetection(*paths(coco_root), labels="contiguous")]
    edit(coco_root, from_0)
    data = CocoDetection(*paths(coco_root), labels="contiguous")
    assert data.label_names == {1: "red", 2: "blue"}
    assert [target["labels"].tolist() for _, target in data] == before


def test_ids_may_be_written_as_text(coco_root):
    before = [target for _, target in CocoDetection(*paths(coco_root))]
    edit(coco_root, lambda c: [image.update(id=str(image["id"])) for image in c["images"]])
    edit(coco_root, lambda c: [category.update(id=str(category["id"])) for category in c["categories"]])
    edit(coco_root, lambda c: [a.update({k: str(a[k]) for k in ("image_id", "category_id")}) for a in c["annotations"]])
    for (_, target), other in zip(CocoDetection(*paths(coco_root)), before, strict=True):
        assert all(torch.equal(target[key], other[key]) for key in other)


@pytest.mark.parametrize("limit", [0, -2])
def test_a_limit_leaves_at_least_one_image(coco_root, limit):
    with pytest.raises(DataError, match=rf"limit: got {limit}, expected at least 1, or None"):
        CocoDetection(*paths(coco_root), limit=limit)


def test_boxes_are_clipped_to_the_image(coco_root):
    edit(coco_root, lambda c: c["annotations"][-1].update(bbox=[-5.0, 10.0, 500.0, 20.0]))
    data = CocoDetection(*paths(coco_root), training=True)
    assert data[len(data) - 1][1]["boxes"].tolist() == [[0.0, 10.0, data.records[-1].width, 30.0]]


def test_augmentation_is_a_function_of_the_drawn_seed(coco_root):
    data = CocoDetection(*paths(coco_root), training=True, transform=v2.RandomHorizontalFlip(0.5))
    state = torch.get_rng_state()
    results = [data[Draw(0, seed)] for seed in (1, 1, 2, 3, 4, 5)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0][0], results[1][0])
    plain = CocoDetection(*paths(coco_root), training=True)[0]
    flipped = [not torch.equal(image, plain[0]) for image, _ in results]
    assert True in flipped and False in flipped
    image, target = results[flipped.index(True)]
    assert torch.equal(image, plain[0].flip(-1))
    x1, _, x2, _ = plain[1]["boxes"][0]
    torch.testing.assert_close(target["boxes"][0, [0, 2]], torch.stack([72 - x2, 72 - x1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), r"instances_train2017.json: no list 'categories'"),
        (lambda c: c["images"][0].pop("width"), r"image 10 lacks a usable .*\(KeyError\('width'\)\)"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotation 1 lacks a usable bbox.*'bbox'"),
        (lambda c: c["annotations"][0].update(image_id=99), r"annotation 1 belongs to image 99"),
        (lambda c: c["annotations"][0].update(category_id=5), r"annotation 1 is of category 5"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, float("nan"), 2]), r"not finite"),
        (lambda c: c["images"].append(c["images"][0]), r"image id 10 twice"),
        (lambda c: c["categories"][0].update(id=0), r"expected ids from 1 on.*labels: contiguous"),
        (lambda c: c["images"][0].update(id="a1"), r"image a1 lacks a usable id, .*'a1'"),
        (lambda c: c["images"][0].update(width=None), r"image 10 lacks a usable .*width or height \(TypeError"),
        (lambda c: c["images"].append([1]), r"image \[1\] lacks a usable id"),
        (lambda c: c["annotations"][0].update(image_id=[10]), r"annotation 1 lacks a usable .*image_id"),
        (lambda c: c["annotations"][0].update(area=None), r"annotation 1 lacks a usable .*area"),
    ],
)
def test_wrong_annotations_name_the_file(coco_root, change, message):
    edit(coco_root, change)
    with pytest.raises(DataError, match=message):
        CocoDetection(*paths(coco_root))


def test_missing_and_corrupt_files_name_themselves(coco_root):
    images, annotations = paths(coco_root)
    with pytest.raises(DataError, match=r"nowhere.json: no such annotation file"):
        CocoDetection(images, coco_root / "nowhere.json")
    with pytest.raises(DataError, match="nowhere: no such image folder"):
        CocoDetection(coco_root / "nowhere", annotations)
    (images / "000000000012.png").unlink()
    with pytest.raises(DataError, match=r"1 of the images .* are missing, e.g. 000000000012.png"):
        CocoDetection(images, annotations)
    (images / "000000000012.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"000000000012.png: can not be read as an image"):
        CocoDetection(images, annotations)[2]
    edit(coco_root, lambda c: c["images"][1].update(width=100))
    with pytest.raises(DataError, match=r"000000000011.png: the image is 72x56 .* says 100x56"):
        CocoDetection(images, annotations)[1]
    annotations.write_text("{")
    with pytest.raises(DataError, match=r"instances_train2017.json: not valid JSON"):
        CocoDetection(images, annotations)
    with pytest.raises(DataError, match=r"no such folder; data.root"):
        CocoDataModule(str(coco_root / "nowhere")).setup()


def test_pictures_of_16_bits_keep_their_values_and_those_of_no_known_range_are_refused(coco_root):
    images, annotations = paths(coco_root)
    record = CocoDetection(images, annotations).records[1]
    values = (torch.arange(record.width * record.height) * 16).reshape(record.height, record.width)  # up to 64,496
    grey = Image.fromarray(values.numpy().astype("uint16"))
    for mode, kind in (("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF")):
        picture = Image.frombytes(mode, grey.size, grey.tobytes() if mode == "I;16" else byteswapped(grey))
        picture.save(images / record.file_name, kind)
        image = CocoDetection(images, annotations)[1][0]
        torch.testing.assert_close(image, ((values // 256) / 255).expand(3, -1, -1).float())
    for mode in ("I", "F"):
        Image.new(mode, grey.size).save(images / record.file_name, "TIFF")
        with pytest.raises(DataError, match=rf"{record.file_name}: .*mode '{mode}'.*8 or 16 bits"):
            CocoDetection(images, annotations)[1]


def byteswapped(picture):
    data = bytearray(picture.tobytes())
    data[::2], data[1::2] = data[1::2], data[::2]
    return bytes(data)


def test_a_picture_turned_by_its_exif_orientation_is_told_from_a_wrong_one(coco_root):
    """Annotated as viewers show it, stored on its side: how cameras write portraits."""
    images, annotations = paths(coco_root)
    picture = Image.open(images / "000000000012.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(images / "000000000012.png", exif=exif)
    with pytest.raises(DataError, match=r"000000000012.png: .* says 56x72.*EXIF orientation.*store it upright"):
        CocoDetection(images, annotations)[2]


@pytest.mark.parametrize("kind", ["BMP", "PPM"])
def test_a_corrupt_picture_of_any_format_names_itself(coco_root, kind):
    images, annotations = paths(coco_root)
    content = io.BytesIO()
    Image.open(images / "000000000012.png").save(content, kind)
    # A side of billions of pixels; a side that is no number.
    spoilt = content.getvalue().replace(*((b"H\0\0\0", b"HHHH") if kind == "BMP" else (b"P6\n", b"P6\nx")), 1)
    assert spoilt != content.getvalue()
    (images / "000000000012.png").write_bytes(spoilt)
    with pytest.raises(DataError, match=r"000000000012.png: can not be read as an image"):
        CocoDetection(images, annotations)[2]


def test_a_data_set_goes_to_loading_processes_without_a_file_descriptor_per_image(coco_root):
    """Where they are not forked (Python 3.14, macOS), every tensor would take one: COCO has 118,287 images."""
    data = CocoDetection(*paths(coco_root))
    before = len(os.listdir("/proc/self/fd"))
    ForkingPickler.dumps(data)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("labels", ["coco", "contiguous"])
def test_categories_of_one_name_are_told_apart(coco_root, labels):
    """Whatever goes by name, such as a figure per class, would hold one of them only."""
    edit(coco_root, lambda c: [category.update(name="red") for category in c["categories"]])
    data = CocoDetection(*paths(coco_root), labels=labels)
    assert list(data.label_names.values()) == ["red (3)", "red (7)"]


def test_splits_of_different_categories_are_refused(coco_root):
    edit(coco_root, lambda c: c["categories"].append({"id": 9, "name": "green"}), "val2017")
    with pytest.raises(DataError, match=r"train2017.json and .*val2017.json list different categories"):
        CocoDataModule(str(coco_root)).setup()


def drawn(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_batches_are_grouped_seeded_and_cover_the_data():
    groups = aspect_ratio_groups([0.75] * 20 + [1.5] * 20)
    assert len(set(groups)) == 2
    sampler = GroupedBatchSampler(groups, 4, seed=5)
    first = drawn(sampler, 0)
    assert len(first) == len(sampler) == 10
    assert all(len({groups[d.index] for d in b}) == 1 for b in first)
    assert sorted(d.index for b in first for d in b) == list(range(40))
    assert first == drawn(GroupedBatchSampler(groups, 4, seed=5), 0)
    assert first != drawn(sampler, 1) and first != drawn(GroupedBatchSampler(groups, 4, seed=6), 0)
    fixed = GroupedBatchSampler(groups, 4, seed=5, reshuffle=False)
    assert drawn(fixed, 0) == drawn(fixed, 1) == first


def test_the_data_module_groups_by_aspect_ratio_unless_told_otherwise(tmp_path):
    root = write_coco(tmp_path / "coco", images_per_split=17)  # every other image upright
    shapes = {}
    for grouped in (True, False):
        module = CocoDataModule(str(root), batch_size=4, workers=0, aspect_ratio_grouping=grouped)
        module.setup()
        shapes[grouped] = [len({image.shape for image in images}) for images, _ in module.train_dataloader()]
    assert shapes[True] == [1] * 4 and max(shapes[False]) == 2


def test_processes_share_the_batches_of_one_process():
    groups = [0] * 13 + [1] * 10
    whole = drawn(GroupedBatchSampler(groups, 4, seed=1), 3)
    parts = [drawn(GroupedBatchSampler(groups, 2, seed=1, rank=r, world_size=2), 3) for r in (0, 1)]
    assert len(whole) == 5
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_skipped_batches_are_the_first_of_one_epoch():
    sampler = GroupedBatchSampler([0] * 12, 3, seed=1)
    whole = drawn(sampler, 0)
    sampler.skip = 3
    assert drawn(sampler, 0) == whole[3:]
    assert drawn(sampler, 0) == whole
    with pytest.raises(ValueError, match="needs 16 training images, the data set has 12"):
        GroupedBatchSampler([0] * 12, 8, world_size=2)


def test_data_module(coco_root):
    loaded = {}
    for workers in (0, 2):
        module = CocoDataModule(str(coco_root), batch_size=2, workers=workers, eval_batch_size=3)
        module.setup()
        batches = list(module.train_dataloader())
        assert len(batches) == 3
        loaded[workers] = batches
        assert [len(images) for images, _ in module.val_dataloader()] == [3, 3, 2]
    for (images, targets), (others, other_targets) in zip(loaded[0], loaded[2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, other_targets, strict=True))
    with pytest.raises(ValueError, match="flip: got 2"):
        CocoDataModule(str(coco_root), flip=2)
