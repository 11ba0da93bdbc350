import pytest
import torch
from foreign_checkpoints import detectron2_names, mmdet_names
from torch import nn

from kd.conversion import FORMATS, load_features
from kd.models import DetectorConfig, build


def source_detector(name, **options):
    torch.manual_seed(1)
    model = build(name, backbone="resnet50", num_classes=4, fpn_channels=32, norm="frozen_bn", **options).eval()
    for key, buffer in model.backbone.named_buffers():
        if key.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    return model


def original_features(model, rgb, kind):
    """The features as the original library computes them from pixels in [0, 1]."""
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    if kind.bgr:
        rgb, mean = rgb.flip(1), mean.flip(0)
        std = torch.tensor(kind.pixel_std)
    x = (255 * rgb - mean[None, :, None, None]) / std[None, :, None, None]
    if kind.stride_in_1x1:
        for layer in (2, 3, 4):
            block = getattr(model.backbone.body, f"layer{layer}")[0]
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    return model.backbone(x)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("format_name", list(FORMATS))
def test_converted_features_equal_the_original(name, format_name, tmp_path):
    kind = FORMATS[format_name]
    relu = {"relu_before_p7": kind.relu_before_p7} if name == "retinanet" else {}
    original = source_detector(name, **relu)
    # Weights for BGR pixels of another range: as large as the real ones, so that activations do not vanish.
    if kind.pixel_std:
        original.backbone.body.conv1.weight.data /= 57
    levels, first = (3, 3) if name == "retinanet" else (4, 2)
    state = mmdet_names(original, levels) if kind.library == "mmdet" else detectron2_names(original, first)
    torch.save({"state_dict": state, "meta": {"epoch": 12}}, tmp_path / "teacher.pth")
    config = DetectorConfig(
        name=name, backbone="resnet50", num_classes=4, weights=str(tmp_path / "teacher.pth"),
        weights_format=format_name, options={"fpn_channels": 32},
    )  # fmt: skip
    converted = build(config).eval()
    assert converted.heads_are_trained is False  # there are none of this detector in the file
    rgb = torch.rand(1, 3, 64, 96)
    normalised = torch.stack([converted.transform.normalize(image) for image in rgb])
    with torch.no_grad():
        expected, found = original_features(original, rgb, kind), converted.backbone(normalised)
    assert list(found) == list(expected)
    for level in expected:
        assert expected[level].std() > 1e-6
        torch.testing.assert_close(
            found[level], expected[level], rtol=1e-3, atol=1e-4 * float(expected[level].abs().max())
        )


def test_wrong_checkpoints_are_errors():
    original = source_detector("retinanet", relu_before_p7=False)
    state = mmdet_names(original, 3)
    target = source_detector("retinanet", relu_before_p7=False)
    with pytest.raises(ValueError, match="weights_format: got 'keras'"):
        load_features(target, state, "keras")
    with pytest.raises(ValueError, match="build the detector with relu_before_p7=False"):
        load_features(source_detector("retinanet"), state, "mmdet")
    with pytest.raises(ValueError, match=r"1 missing \(body.layer3.5.conv3.weight\)"):
        load_features(target, {k: v for k, v in state.items() if k != "backbone.layer3.5.conv3.weight"}, "mmdet")
    with pytest.raises(ValueError, match=r"entry 'neck.bottleneck.weight' is not known"):
        load_features(target, {**state, "neck.bottleneck.weight": torch.zeros(1)}, "mmdet")
    with pytest.raises(ValueError, match=r"1 unexpected \(body.layer5.0.conv1.weight\)"):
        load_features(target, {**state, "backbone.layer5.0.conv1.weight": torch.zeros(1)}, "mmdet")
    with pytest.raises(ValueError, match="weights must name a file"):
        build(DetectorConfig(backbone="resnet18", weights_format="mmdet"))


def test_which_library_has_a_relu_before_p7():
    """mmdetection's RetinaNet sets relu_before_extra_convs=False; detectron2's LastLevelP6P7 applies one."""
    relu = {name: kind.relu_before_p7 for name, kind in FORMATS.items()}
    assert relu == {"mmdet": False, "mmdet_caffe": False, "detectron2": True, "detectron2_x101": True}
