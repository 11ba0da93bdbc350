"""Training and evaluation as torchvision's detection references have them (references/detection: engine.py, utils.py,
train.py), which its users copy: warm-up inside of the first epoch, losses summed and reduced over processes, AMP."""

import math
import sys

import torch
import torch.distributed as dist
from torchvision.ops._utils import split_normalization_params


def reduce_dict(input_dict, average=True):
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size < 2:
        return input_dict
    with torch.inference_mode():
        names = sorted(input_dict.keys())
        values = torch.stack([input_dict[k] for k in names], dim=0)
        dist.all_reduce(values)
        if average:
            values /= world_size
        return dict(zip(names, values, strict=True))


def train_one_epoch(model, optimizer, data_loader, device, epoch, meters, scaler=None):
    model.train()
    lr_scheduler = None
    if epoch == 0:
        warmup_factor = 1.0 / 1000
        warmup_iters = min(1000, len(data_loader) - 1)
        lr_scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=warmup_factor, total_iters=warmup_iters
        )
    for images, targets in data_loader:
        images = [image.to(device) for image in images]
        targets = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in t.items()} for t in targets]
        with torch.amp.autocast(device.type, dtype=torch.bfloat16, enabled=scaler is not None):
            loss_dict = model(images, targets)
            losses = sum(loss for loss in loss_dict.values())
        # reduce losses over all GPUs for logging purposes
        loss_dict_reduced = reduce_dict(loss_dict)
        losses_reduced = sum(loss for loss in loss_dict_reduced.values())
        loss_value = losses_reduced.item()
        if not math.isfinite(loss_value):
            print(f"Loss is {loss_value}, stopping training")
            print(loss_dict_reduced)
            sys.exit(1)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(losses).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            losses.backward()
            optimizer.step()
        if lr_scheduler is not None:
            lr_scheduler.step()
        meters.append({"loss": loss_value, "lr": optimizer.param_groups[0]["lr"],
                       **{k: v.item() for k, v in loss_dict_reduced.items()}})  # fmt: skip


@torch.inference_mode()
def detections(model, data_loader, device):
    """What the reference's ``evaluate`` hands to pycocotools, by image id."""
    model.eval()
    results = {}
    for images, targets in data_loader:
        images = [image.to(device) for image in images]
        outputs = [{k: v.to("cpu") for k, v in t.items()} for t in model(images)]
        results.update({int(t["image_id"]): output for t, output in zip(targets, outputs, strict=True)})
    return results


def optimizer_of(model, lr, norm_weight_decay=None):
    """train.py's: SGD, where asked with another weight decay for normalisation layers."""
    if norm_weight_decay is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    else:
        groups = split_normalization_params(model)
        parameters = [
            {"params": p, "weight_decay": w} for p, w in zip(groups, (norm_weight_decay, 1e-4), strict=True) if p
        ]
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
