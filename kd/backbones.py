"""Backbones with a feature pyramid (FPN), built from torchvision's classification networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from kd.weights import downloading, is_file_name, load_strictly, read_state_dict, weights_enum

RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d",
    "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
NORMS = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d}
P6Source = Literal["c5", "p5", "pool"]
Norm = Literal["frozen_bn", "bn"]


class LastLevelP6P7NoReLU(LastLevelP6P7):
    """P6 and P7 without the ReLU before P7: what mmdetection's RetinaNet computes
    (``relu_before_extra_convs=False``)."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


def backbone_with_fpn(
    backbone: str,
    *,
    fpn_channels: int = 256,
    returned_stages: Sequence[int] = (2, 3, 4, 5),
    tapped_blocks: Sequence[str] | None = None,
    p6_from: P6Source | None = "pool",
    relu_before_p7: bool = True,
    weights_backbone: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    norm: Norm | None = None,
    width_mult: float = 1.0,
) -> BackboneWithFPN:
    """Build a classification network with an FPN on top; the modules and their names are torchvision's.

    Args:
        backbone: one of ``RESNETS`` or ``MOBILENETS``.
        fpn_channels: channels of every FPN level.
        returned_stages: the stages C1..C5 (stride 2..32) that feed the pyramid, ascending; their keys are "0", "1", ...
            ResNets have no C1. A MobileNet stage is tapped at its last block, C5 at the last convolution.
        tapped_blocks: instead of ``returned_stages``, the children to tap: ``("6", "13", "17")`` of a MobileNet's
            ``features``; blocks behind the last one are left out, which gives a truncated, cheaper network.
        p6_from: what the extra levels come from: "c5" or "p5" give RetinaNet's P6 and P7 by convolutions, "pool" gives
            Faster R-CNN's max-pooled level, None gives no extra level.
        relu_before_p7: False computes P7 as mmdetection does.
        weights_backbone: classification weights: a torchvision enum name or a file with torchvision's names.
        trainable_backbone_layers: how many stages are trained, counted from the last: 0 (all frozen) to 5 or more
            (all). None: 3 with ``weights_backbone``, otherwise all.
        norm: "frozen_bn" or "bn" in the network. None: "frozen_bn" with ``weights_backbone``, otherwise "bn".
        width_mult: channel multiplier of a MobileNet.

    Raises:
        ValueError: an argument outside of what is listed here, or weights that do not fit.
    """
    if norm is None:
        norm = "frozen_bn" if weights_backbone is not None else "bn"
    if norm not in NORMS:
        raise ValueError(f"norm: got {norm!r}, expected one of {sorted(NORMS)}")
    if fpn_channels < 1:
        raise ValueError(f"fpn_channels: got {fpn_channels}, expected a positive number")
    network, stages = _network(backbone, NORMS[norm], width_mult)
    if weights_backbone is not None:
        _load_classification_weights(network, weights_backbone, backbone)
    _freeze(network, stages, trainable_backbone_layers, pretrained=weights_backbone is not None)
    blocks = _blocks_to_tap(network, stages, returned_stages, tapped_blocks)
    channels = [_out_channels(child) for name, child in network.named_children() if name in blocks]
    result = BackboneWithFPN(
        network,
        {block: str(level) for level, block in enumerate(blocks)},
        channels,
        fpn_channels,
        extra_blocks=_extra_blocks(p6_from, channels[-1], fpn_channels, relu_before_p7),
    )
    if p6_from is None:
        result.fpn.extra_blocks = None
    return result


def _network(name: str, norm_layer: type[nn.Module], width_mult: float) -> tuple[nn.Module, dict[int, list[str]]]:
    """The network without its classifier's use, and the names of its children by stage (stage k has stride 2**k)."""
    if name in RESNETS:
        if width_mult != 1.0:
            raise ValueError(
                f"width_mult: {name} has a fixed width, only MobileNets take width_mult (got {width_mult})"
            )
        if name == "resnext101_32x4d":
            network: nn.Module = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4, norm_layer=norm_layer)
        else:
            network = models.get_model(name, weights=None, norm_layer=norm_layer)
        return network, {1: ["conv1", "bn1"], **{k: [f"layer{k - 1}"] for k in (2, 3, 4, 5)}}
    if name in MOBILENETS:
        network = models.get_model(name, weights=None, norm_layer=norm_layer, width_mult=width_mult).features
        return network, _stages_by_stride(network)
    raise ValueError(f"backbone: got {name!r}, expected one of {', '.join(RESNETS + MOBILENETS)}")


def _stages_by_stride(features: nn.Module) -> dict[int, list[str]]:
    stages: dict[int, list[str]] = {}
    stage = 0
    for name, block in features.named_children():
        stage += sum(m.stride == (2, 2) for m in block.modules() if isinstance(m, nn.Conv2d))
        stages.setdefault(stage, []).append(name)
    return stages


def _out_channels(child: nn.Module) -> int:
    if hasattr(child, "out_channels"):
        return int(child.out_channels)
    last = child[-1]  # a ResNet's layer
    return int((last.conv3 if isinstance(last, Bottleneck) else last.conv2).out_channels)


def _blocks_to_tap(
    network: nn.Module, stages: dict[int, list[str]], returned: Sequence[int], tapped: Sequence[str] | None
) -> list[str]:
    if tapped is None:
        possible = [k for k in stages if isinstance(network, nn.Sequential) or k > 1]
        if not returned or any(k not in possible for k in returned) or list(returned) != sorted(set(returned)):
            raise ValueError(f"returned_stages: got {list(returned)}, expected ascending stages out of {possible}")
        return [stages[k][-1] for k in returned]
    names = [name for name, _ in network.named_children()]
    tapped = [str(block) for block in tapped]
    usable = [name for name in names if name.startswith("layer") or isinstance(network, nn.Sequential)]
    if not tapped or any(block not in usable for block in tapped):
        raise ValueError(f"tapped_blocks: got {tapped}, expected names out of {usable}")
    if [names.index(block) for block in tapped] != sorted({names.index(block) for block in tapped}):
        raise ValueError(f"tapped_blocks: got {tapped}, expected each once and in the network's order")
    return tapped


def _extra_blocks(p6_from: str | None, c5_channels: int, channels: int, relu_before_p7: bool) -> ExtraFPNBlock:
    if p6_from in ("pool", None):
        return LastLevelMaxPool()
    if p6_from not in ("c5", "p5"):
        raise ValueError(f"p6_from: got {p6_from!r}, expected 'c5', 'p5', 'pool' or None")
    block = (LastLevelP6P7 if relu_before_p7 else LastLevelP6P7NoReLU)(
        c5_channels if p6_from == "c5" else channels, channels
    )
    # Torchvision guesses the source from equal channel counts, which is wrong for a C5 as wide as the pyramid.
    block.use_P5 = p6_from == "p5"
    return block


def _freeze(network: nn.Module, stages: dict[int, list[str]], trainable: int | None, *, pretrained: bool) -> None:
    if trainable is None:
        trainable = 3 if pretrained else len(stages)
    if trainable < 0:
        raise ValueError(f"trainable_backbone_layers: got {trainable}, expected 0 (all frozen) or more")
    trained = {name for stage in sorted(stages, reverse=True)[:trainable] for name in stages[stage]}
    for name, child in network.named_children():
        if name not in trained:
            child.requires_grad_(False)


def _load_classification_weights(network: nn.Module, weights: str | Path, backbone: str) -> None:
    if is_file_name(weights):
        state = read_state_dict(weights)
    else:
        known = weights_enum(str(weights))
        with downloading(known):
            state = dict(known.get_state_dict(progress=False, check_hash=True))
    state = {name: value for name, value in state.items() if not name.startswith(("fc.", "classifier."))}
    if isinstance(network, ResNet):
        state.update({name: value for name, value in network.state_dict().items() if name.startswith("fc.")})
    else:
        state = {name.removeprefix("features."): value for name, value in state.items()}
    load_strictly(network, state, f"{str(weights)!r} for {backbone}")
