import io
import urllib.error

import pytest
import torch
import torchvision.models.detection as torchvision_detection
from torchvision.models import WeightsEnum, mobilenet_v2, resnet18
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import FrozenBatchNorm2d

import kd
from kd.backbones import backbone_with_fpn
from kd.models import DetectorConfig, build, faster_rcnn, retinanet


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: retinanet(p6_from="p5"), torchvision_detection.retinanet_resnet50_fpn),
        (
            lambda: retinanet(head_norm="group_norm", box_loss="giou", norm="bn"),
            torchvision_detection.retinanet_resnet50_fpn_v2,
        ),
        (faster_rcnn, torchvision_detection.fasterrcnn_resnet50_fpn),
    ],
    ids=["retinanet", "retinanet_v2", "fasterrcnn"],
)
def test_same_as_torchvisions_builder(ours, theirs):
    mine, other = ours(), theirs(weights_backbone=None)
    assert shapes(mine) == shapes(other)
    mine.load_state_dict(other.state_dict())
    mine.train(), other.train()
    images = [torch.rand(3, 64, 96)]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([5])}]
    results = []
    for model in (mine, other):
        model.transform.min_size, model.transform.max_size = (64,), 96
        model.eval()  # no batch statistics of a single tiny image
        for module in model.children():
            module.training = True
        model.training = True
        torch.manual_seed(0)
        results.append(model(images, targets))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


BACKBONES = [
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_strides_4_to_64(backbone):
    with torch.device("meta"):  # shapes only
        features = backbone_with_fpn(backbone, fpn_channels=8)
        maps = features(torch.zeros(1, 3, 128, 256))
    assert [(k, tuple(v.shape[1:])) for k, v in maps.items()] == [
        ("0", (8, 32, 64)), ("1", (8, 16, 32)), ("2", (8, 8, 16)), ("3", (8, 4, 8)), ("pool", (8, 2, 4))
    ]  # fmt: skip


TORCHVISIONS = [name for name in torchvision_detection.__dict__ if name.startswith(("retinanet_", "fasterrcnn_"))]


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_torchvisions_builders_by_name(name):
    """All of them, v1 and v2, are torchvision's own, and can be distilled: a student has its builder's names."""
    with torch.device("meta"):
        model = build(name, num_classes=5)
        other = torchvision_detection.__dict__[name](num_classes=5, weights_backbone=None)
        assert shapes(model) == shapes(other)
        teacher = build(name, num_classes=91)
    distiller = kd.distill(model, teacher)
    assert distiller.level_map and shapes(distiller.student) == shapes(other)


def test_torchvisions_v2_teachers_fit_v1_students_and_mobilenet_takes_a_level_map():
    def made(name):
        with torch.device("meta"):
            return build(name)

    for name in ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"):
        assert len(kd.distill(made(name), made(f"{name}_v2")).level_map) == 5
    mobile, teacher = made("fasterrcnn_mobilenet_v3_large_fpn"), made("fasterrcnn_resnet50_fpn")
    with pytest.raises(ValueError, match=r"level_map.*student: '0' 256 channels stride 32, '1' .* stride 32, 'pool'"):
        kd.distill(mobile, teacher)
    assert list(kd.distill(mobile, teacher, level_map={"1": "3", "pool": "pool"}).level_map) == ["1", "pool"]


def test_weights_by_torchvisions_enum_name(monkeypatch):
    """Nothing is downloaded here: the enum's state dict is replaced, with what would have come noted."""
    asked = []

    def state_dict(self, *args, **kwargs):
        asked.append(str(self))
        return torch.load(file, weights_only=True)

    monkeypatch.setattr(WeightsEnum, "get_state_dict", state_dict)
    file = io.BytesIO()
    network = resnet18()
    torch.save(network.state_dict(), file)
    file.seek(0)
    body = backbone_with_fpn("resnet18", weights_backbone="ResNet18_Weights.IMAGENET1K_V1").body
    assert torch.equal(body.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    file = io.BytesIO()
    detector = torchvision_detection.retinanet_resnet50_fpn(weights_backbone=None)
    torch.save(detector.state_dict(), file)
    for name in ("RetinaNet_ResNet50_FPN_Weights.COCO_V1", "COCO_V1"):
        file.seek(0)
        made = build("retinanet_resnet50_fpn", weights=name)
        assert torch.equal(made.head.regression_head.bbox_reg.weight, detector.head.regression_head.bbox_reg.weight)
        # Frozen, and with the eps its AP was measured with.
        assert {m.eps for m in made.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}
    assert asked == ["ResNet18_Weights.IMAGENET1K_V1", *["RetinaNet_ResNet50_FPN_Weights.COCO_V1"] * 2]
    with pytest.raises(ValueError, match=r"weights: 'RetinaNet_ResNet50_FPN_Weights.COCO_V9' is neither a file nor"):
        build("retinanet_resnet50_fpn", weights="COCO_V9")


def test_weights_that_can_not_be_downloaded_end_with_a_sentence(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
    message = r"weights: '{}' can not be downloaded \(.*no network.*\); fetch https://.*\.pth .*checkpoints"
    with pytest.raises(ValueError, match=message.format("ResNet18_Weights.IMAGENET1K_V1")):
        build("retinanet", backbone="resnet18", weights_backbone="ResNet18_Weights.IMAGENET1K_V1")
    with pytest.raises(ValueError, match=message.format("RetinaNet_ResNet50_FPN_Weights.COCO_V1")):
        build("retinanet_resnet50_fpn", weights="COCO_V1")
    with pytest.raises(ValueError, match=message.format("ResNet50_Weights.IMAGENET1K_V1")):
        build("retinanet_resnet50_fpn", weights_backbone="ResNet50_Weights.IMAGENET1K_V1")


def test_extra_levels():
    body = {"fpn_channels": 512, "returned_stages": (3, 4, 5)}
    from_c5, from_p5 = (backbone_with_fpn("resnet18", p6_from=source, **body) for source in ("c5", "p5"))
    x = torch.rand(1, 3, 64, 64)
    from_p5.load_state_dict(from_c5.state_dict())  # C5 and P5 are equally wide here: only the source differs
    from_c5.eval(), from_p5.eval()
    assert not torch.allclose(from_c5(x)["p6"], from_p5(x)["p6"])
    assert torch.equal(from_c5(x)["2"], from_p5(x)["2"])
    torch.testing.assert_close(from_p5(x)["p6"], from_p5.fpn.extra_blocks.p6(from_p5(x)["2"]))
    no_relu = backbone_with_fpn("resnet18", p6_from="p5", relu_before_p7=False, **body).eval()
    no_relu.load_state_dict(from_p5.state_dict())
    maps = no_relu(x)
    torch.testing.assert_close(maps["p7"], no_relu.fpn.extra_blocks.p7(maps["p6"]))
    assert not torch.allclose(maps["p7"], from_p5(x)["p7"])
    assert list(backbone_with_fpn("resnet18", p6_from=None, **body).eval()(x)) == ["0", "1", "2"]


def test_tapped_blocks_truncate_and_stages_freeze():
    whole = backbone_with_fpn("mobilenet_v2", trainable_backbone_layers=2)
    assert list(whole.body)[-1] == "18"
    trained = {name.split(".")[0] for name, p in whole.body.named_parameters() if p.requires_grad}
    assert trained == {str(k) for k in range(7, 19)}
    cut = backbone_with_fpn("mobilenet_v2", tapped_blocks=("4", "7", "14"))
    assert list(cut.body)[-1] == "14"
    assert [b[0].in_channels for b in cut.fpn.inner_blocks] == [32, 64, 160]
    with torch.no_grad():
        assert [v.shape[-1] for v in cut.eval()(torch.rand(1, 3, 64, 64)).values()] == [8, 4, 2, 1]


def test_classification_weights_from_a_file(tmp_path):
    for network, name, prefix in ((mobilenet_v2(), "mobilenet_v2", "features."), (resnet18(), "resnet18", "")):
        path = tmp_path / f"{name}.pth"
        torch.save(network.state_dict(), path)
        features = backbone_with_fpn(name, weights_backbone=path)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in features.modules())
        state = network.state_dict()
        for key, value in features.body.state_dict().items():
            assert torch.equal(value, state[prefix + key])
        frozen = [p for p in features.body.parameters() if not p.requires_grad]
        assert frozen and len(frozen) < len(list(features.body.parameters()))
    with pytest.raises(ValueError, match=r"'.*mobilenet_v2.pth' for resnet18 does not fit .* missing .* unexpected"):
        backbone_with_fpn("resnet18", weights_backbone=tmp_path / "mobilenet_v2.pth")
    with pytest.raises(ValueError, match="of another shape"):
        backbone_with_fpn("mobilenet_v2", width_mult=0.5, weights_backbone=tmp_path / "mobilenet_v2.pth")


def test_build_from_configuration():
    config = DetectorConfig(backbone="resnet18", num_classes=4, options={"fpn_channels": 16, "min_size": 64})
    model = build(config)
    assert isinstance(model, RetinaNet) and model.transform.min_size == (64,)
    assert shapes(model) == shapes(build({"backbone": "resnet18", "num_classes": 4, "options": {"fpn_channels": 16}}))
    assert shapes(build("retinanet_resnet50_fpn", num_classes=7)) == shapes(retinanet(num_classes=7, p6_from="p5"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "yolo"}, "detector: got 'yolo'"),
        ({"backbone": "resnet19"}, "backbone: got 'resnet19'"),
        ({"backbone": "resnet18", "fpn_chanels": 3}, r"options: retinanet takes no \['fpn_chanels'\]"),
        ({"backbone": "resnet18", "anchor_sizes": [[8], [16]]}, "sizes for 2 levels, the pyramid has 5"),
        ({"backbone": "resnet18", "anchor_sizes": [[8], [16, 3], [4], [4], [4]]}, "equally many on every level"),
        ({"backbone": "resnet18", "box_loss": "l3"}, "box_loss: got 'l3'"),
        ({"backbone": "resnet18", "num_classes": 1}, "num_classes: got 1"),
        ({"backbone": "resnet18", "p6_from": "p4"}, "p6_from: got 'p4'"),
        ({"backbone": "resnet18", "norm": "sync"}, "norm: got 'sync'"),
        ({"backbone": "resnet18", "returned_stages": (1, 2)}, "returned_stages: got"),
        ({"backbone": "resnet18", "width_mult": 0.5}, "width_mult: resnet18 has a fixed width"),
        ({"backbone": "mobilenet_v2", "tapped_blocks": ("7", "4")}, "tapped_blocks: got"),
        ({"backbone": "mobilenet_v2", "trainable_backbone_layers": -1}, "trainable_backbone_layers: got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(arguments.pop("name", "retinanet"), **arguments)
