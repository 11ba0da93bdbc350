"""Converted heads against a plain writing of what mmdetection and detectron2 compute, from the original entries."""

import math

import pytest
import torch
from foreign_checkpoints import detectron2_names, mmdet_names
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, roi_align

from kd.conversion import FORMATS
from kd.converted_heads import COCO_CATEGORY_IDS, UnroundedAnchors, load_heads
from kd.models import DetectorConfig, build

CHANNELS, CLASSES, WIDTH = 16, 80, 24
RATIOS = (0.5, 1.0, 2.0)
RETINANET = {
    "mmdet": ("bbox_head.cls_convs.{}.conv", "bbox_head.reg_convs.{}.conv", "bbox_head.retina_cls",
              "bbox_head.retina_reg", 1),
    "detectron2": ("head.cls_subnet.{}", "head.bbox_subnet.{}", "head.cls_score", "head.bbox_pred", 2),
}  # fmt: skip
FASTER_RCNN = {
    "mmdet": ("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.shared_fcs.0",
              "roi_head.bbox_head.shared_fcs.1", "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"),
    "detectron2": (*(f"proposal_generator.rpn_head.{n}" for n in ("conv", "objectness_logits", "anchor_deltas")),
                   "roi_heads.box_head.fc1", "roi_heads.box_head.fc2", "roi_heads.box_predictor.cls_score",
                   "roi_heads.box_predictor.bbox_pred"),
}  # fmt: skip


def layer(state, name, *shape, scale, bias=0.0):
    fan_in = math.prod(shape[1:])
    # float32 first, as the model stores it; the computation is in float64
    state[f"{name}.weight"] = (torch.randn(shape) * scale / math.sqrt(fan_in)).double()
    state[f"{name}.bias"] = (torch.randn(shape[0]) * 0.1 + bias).double()


def apply(state, name, x):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.linear(x, weight, bias) if x.dim() == 2 else F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def retinanet_heads(library):
    classes, boxes, logits, deltas, step = RETINANET[library]
    state = {}
    for i in range(4):
        for name in (classes, boxes):
            layer(state, name.format(step * i), CHANNELS, CHANNELS, 3, 3, scale=1.4)
    layer(state, logits, 9 * CLASSES, CHANNELS, 3, 3, scale=1.2, bias=-2.0)
    layer(state, deltas, 36, CHANNELS, 3, 3, scale=0.3)
    return state


def faster_rcnn_heads(library):
    rpn, objectness, deltas, fc1, fc2, scores, boxes = FASTER_RCNN[library]
    state = {}
    layer(state, rpn, CHANNELS, CHANNELS, 3, 3, scale=1.4)
    layer(state, objectness, 3, CHANNELS, 1, 1, scale=1.0)
    layer(state, deltas, 12, CHANNELS, 1, 1, scale=0.3)
    layer(state, fc1, WIDTH, CHANNELS * 49, scale=1.4)
    layer(state, fc2, WIDTH, WIDTH, scale=1.4)
    layer(state, scores, CLASSES + 1, WIDTH, scale=3.0)
    layer(state, boxes, 4 * CLASSES, WIDTH, scale=1.0)
    return state


def anchors(height, width, stride, sizes, library):
    """x1, y1, x2, y2 in the order of the channels: mmdetection has ratios outside of sizes, detectron2 the reverse."""
    shapes = [(s, r) for r in RATIOS for s in sizes] if library == "mmdet" else [(s, r) for s in sizes for r in RATIOS]
    rows = []
    for y in range(height):
        for x in range(width):
            for s, r in shapes:
                w, h = s / r**0.5, s * r**0.5
                rows.append((x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2))
    return torch.tensor(rows, dtype=torch.float64)


def decoded(base, delta, size, weights=(1.0, 1.0, 1.0, 1.0)):
    dx, dy, dw, dh = (delta / torch.tensor(weights, dtype=torch.float64)).unbind(-1)
    w, h = base[..., 2] - base[..., 0], base[..., 3] - base[..., 1]
    limit = math.log(1000 / 16)
    x, y = base[..., 0] + w / 2 + dx * w, base[..., 1] + h / 2 + dy * h
    w, h = w * dw.clamp(max=limit).exp(), h * dh.clamp(max=limit).exp()
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    return torch.stack([boxes[..., k].clamp(0, size[(k + 1) % 2]) for k in range(4)], -1)


def best(boxes, scores, labels, iou=0.5):
    keep = batched_nms(boxes, scores, labels, iou)[:100]
    return boxes[keep], scores[keep], labels[keep]


def rows(x, width):
    """A map [1, A * width, h, w] as [h * w * A, width]."""
    return x[0].permute(1, 2, 0).reshape(-1, width)


def original_retinanet(state, features, size, library):
    classes, boxes, logits, deltas, step = RETINANET[library]
    found = []
    for level, x in enumerate(features):
        c = r = x
        for i in range(4):
            c, r = (F.relu(apply(state, name.format(step * i), v)) for name, v in ((classes, c), (boxes, r)))
        stride = 8 * 2**level
        sizes = [4 * stride * 2 ** (k / 3) for k in range(3)]
        base = anchors(*x.shape[-2:], stride, sizes, library)
        scores = rows(apply(state, logits, c), CLASSES).sigmoid().flatten()
        keep = scores.topk(min(1000, len(scores))).indices
        keep = keep[scores[keep] > 0.05]
        box = decoded(base[keep // CLASSES], rows(apply(state, deltas, r), 4)[keep // CLASSES], size)
        found.append((box, scores[keep], keep % CLASSES))
    return best(*(torch.cat(part) for part in zip(*found, strict=True)))


def original_faster_rcnn(state, features, size, library):
    rpn, objectness, deltas, fc1, fc2, scores, boxes = FASTER_RCNN[library]
    found = []
    for level, x in enumerate(features):
        stride = 4 * 2**level
        hidden = F.relu(apply(state, rpn, x))
        base = anchors(*x.shape[-2:], stride, [8 * stride], library)
        logit = rows(apply(state, objectness, hidden), 1)[:, 0]
        keep = logit.topk(min(1000, len(logit))).indices
        box = decoded(base[keep], rows(apply(state, deltas, hidden), 4)[keep], size)
        found.append((box, logit[keep].sigmoid(), torch.full_like(keep, level)))
    box, score, level = (torch.cat(part) for part in zip(*found, strict=True))
    wide = ((box[:, 2:] - box[:, :2]) > 1e-3).all(1)
    proposals = box[wide][batched_nms(box[wide], score[wide], level[wide], 0.7)[:1000]]
    area = (proposals[:, 2] - proposals[:, 0]) * (proposals[:, 3] - proposals[:, 1])
    level = (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3)
    pooled = [
        roi_align(features[int(k)], [p[None]], 7, 1 / (4 * 2 ** int(k)), 0, aligned=True)
        for p, k in zip(proposals, level, strict=True)
    ]
    hidden = F.relu(apply(state, fc2, F.relu(apply(state, fc1, torch.cat(pooled).flatten(1)))))
    probability = apply(state, scores, hidden).softmax(1)[:, :CLASSES]  # the background is the last
    delta = apply(state, boxes, hidden).view(-1, CLASSES, 4)
    box = decoded(proposals[:, None].expand(-1, CLASSES, 4), delta, size, (10.0, 10.0, 5.0, 5.0))
    row, label = (probability > 0.05).nonzero().unbind(1)
    return best(box[row, label], probability[row, label], label)


def checkpoint(name, library, tmp_path):
    torch.manual_seed(3)
    source = build(name, backbone="resnet18", num_classes=4, fpn_channels=CHANNELS, norm="frozen_bn",
                   **({"relu_before_p7": library != "mmdet"} if name == "retinanet" else {}))  # fmt: skip
    fpn = source.eval().backbone.fpn
    outputs = [b[0] for b in fpn.layer_blocks] + [
        getattr(fpn.extra_blocks, p) for p in ("p6", "p7") if name == "retinanet"
    ]
    with torch.no_grad():
        for output, level in zip(outputs, source.backbone(torch.zeros(1, 3, 64, 64)), strict=False):
            output.weight /= source.backbone(torch.randn(1, 3, 96, 160))[level].std()
        if library == "detectron2":  # its pixels are not divided by their standard deviation
            source.backbone.body.conv1.weight /= 57
    levels, first = (3, 3) if name == "retinanet" else (4, 2)
    state = mmdet_names(source, levels) if library == "mmdet" else detectron2_names(source, first)
    state = {k: v for k, v in state.items() if "of_another_detector" not in k}
    heads = (retinanet_heads if name == "retinanet" else faster_rcnn_heads)(library)
    torch.save({"state_dict": {**state, **heads}}, tmp_path / "file.pth")
    return heads, str(tmp_path / "file.pth")


def config(name, library, path, **changes):
    box_head = {} if name == "retinanet" else {"box_head_width": WIDTH}
    options = {"fpn_channels": CHANNELS, "min_size": 96, "max_size": 160, **box_head}
    return DetectorConfig(**{"name": name, "backbone": "resnet18", "weights": path, "weights_format": library,
                             "options": options, **changes})  # fmt: skip


@pytest.mark.parametrize("library", ["mmdet", "detectron2"])
@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_detections_equal_the_originals(name, library, tmp_path):
    state, path = checkpoint(name, library, tmp_path)
    model = build(config(name, library, path)).eval().double()
    assert model.heads_are_trained is True
    # 96 x 150 pixels are padded to 96 x 160: on the coarse levels 160 is no multiple of the stride.
    image = torch.rand(3, 96, 150, dtype=torch.float64)
    if name == "retinanet":
        model.detections_per_img = 100
    with torch.no_grad():
        found = model([image])[0]
        batch, _ = model.transform([image])
        features = list(model.backbone(batch.tensors).values())
        original = original_retinanet if name == "retinanet" else original_faster_rcnn
        boxes, scores, labels = original(state, features, (96, 150), library)
    assert len(scores) > 20 and len(labels.unique()) > 5
    torch.testing.assert_close(found["scores"], scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["boxes"], boxes, rtol=0, atol=1e-4)
    assert found["labels"].tolist() == [COCO_CATEGORY_IDS[k] for k in labels]


def test_category_ids_are_cocos():
    known = {
        0: 1,
        10: 11,
        11: 13,
        23: 25,
        24: 27,
        25: 28,
        26: 31,
        39: 44,
        56: 62,
        60: 67,
        61: 70,
        62: 72,
        73: 84,
        79: 90,
    }
    assert len(COCO_CATEGORY_IDS) == 80 and {k: COCO_CATEGORY_IDS[k] for k in known} == known


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_contiguous_labels_and_heads_that_do_not_fit(name, tmp_path):
    state, path = checkpoint(name, "mmdet", tmp_path)
    contiguous = build(config(name, "mmdet", path, num_classes=81)).eval().double()
    image = torch.rand(3, 96, 150, dtype=torch.float64)
    sparse = build(config(name, "mmdet", path)).eval().double()
    ours, theirs = contiguous([image])[0], sparse([image])[0]
    torch.testing.assert_close(ours["scores"], theirs["scores"])
    assert [COCO_CATEGORY_IDS[k - 1] for k in ours["labels"]] == theirs["labels"].tolist()
    with pytest.raises(ValueError, match=r"num_classes: got 21, but the file's heads have 80 classes; use 81 or 91"):
        build(config(name, "mmdet", path, num_classes=21))
    without = build(config(name, "mmdet", path, num_classes=21, convert_heads=False))
    assert without.heads_are_trained is False
    for key in ("weight", "bias"):
        lost = next(k for k in state if k.endswith(key) and "rpn_conv" not in k and "cls" not in k)
        with pytest.raises(ValueError, match="1 missing"):
            load_heads(sparse, {k: v for k, v in state.items() if k != lost}, "mmdet")
    with pytest.raises(ValueError, match=r"entry 'bbox_head.gn.weight' .* convert_heads=False"):
        load_heads(sparse, {**state, "bbox_head.gn.weight": torch.zeros(1)}, "mmdet")


def test_other_detectors_heads_are_left(tmp_path):
    """A Cascade R-CNN's three box heads are none that Faster R-CNN could use."""
    heads, _ = checkpoint("faster_rcnn", "mmdet", tmp_path)
    cascade = {k.replace("bbox_head.", "bbox_head.0."): v for k, v in heads.items()}
    assert load_heads(build("faster_rcnn", backbone="resnet18"), cascade, "mmdet") is False
    assert {kind.library for kind in FORMATS.values()} == {"mmdet", "detectron2"}


@pytest.mark.parametrize("library", ["mmdet", "detectron2"])
def test_anchors_lie_on_the_nominal_strides(library):
    """On maps that 160 pixels do not fill in whole strides, where torchvision would use 53 pixels instead of 64."""
    sizes = [tuple(4 * s * 2 ** (k / 3) for k in range(3)) for s in (64, 128)]
    generator = UnroundedAnchors(sizes, (64, 128), by_size=library == "detectron2")
    maps = [torch.zeros(1, 1, 2, 3, dtype=torch.float64), torch.zeros(1, 1, 1, 2, dtype=torch.float64)]
    found = generator(ImageList(torch.zeros(2, 3, 96, 160), [(96, 150), (90, 160)]), maps)
    expected = torch.cat([anchors(2, 3, 64, sizes[0], library), anchors(1, 2, 128, sizes[1], library)])
    assert len(found) == 2
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-3)
