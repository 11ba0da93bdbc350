"""State dicts under the names that mmdetection and detectron2 give their entries."""

import re

import torch


def mmdet_names(model, levels):
    """What mmdetection calls these entries (checked against its RetinaNet and Faster R-CNN configurations)."""
    state = {}
    for key, value in model.backbone.state_dict().items():
        key = re.sub(r"^body\.", "backbone.", key)
        key = re.sub(r"^fpn\.inner_blocks\.(\d)\.0", r"neck.lateral_convs.\1.conv", key)
        key = re.sub(r"^fpn\.layer_blocks\.(\d)\.0", r"neck.fpn_convs.\1.conv", key)
        key = re.sub(r"^fpn\.extra_blocks\.p(\d)", lambda m: f"neck.fpn_convs.{int(m[1]) - 6 + levels}.conv", key)
        state[key] = value
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(5)
    state["bbox_head.of_another_detector.weight"] = torch.zeros(3)
    return state


def detectron2_names(model, first):
    state = {}
    for key, value in model.backbone.state_dict().items():
        key = re.sub(r"^body\.conv1", "backbone.bottom_up.stem.conv1", key)
        key = re.sub(r"^body\.bn1", "backbone.bottom_up.stem.conv1.norm", key)
        key = re.sub(r"^body\.layer(\d)", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}", key)
        key = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key).replace("downsample.0", "shortcut")
        key = key.replace("downsample.1", "shortcut.norm")
        key = re.sub(r"^fpn\.inner_blocks\.(\d)\.0", lambda m: f"backbone.fpn_lateral{int(m[1]) + first}", key)
        key = re.sub(r"^fpn\.layer_blocks\.(\d)\.0", lambda m: f"backbone.fpn_output{int(m[1]) + first}", key)
        key = re.sub(r"^fpn\.extra_blocks", "backbone.top_block", key)
        state[key] = value
    state["head.of_another_detector.weight"] = state["pixel_mean"] = torch.zeros(3)
    return state
