"""One-line distillation in a plain torchvision training loop.

    python examples/distill_torchvision.py [--teacher-steps 100] [--steps 100]

Teacher and student are torchvision's Faster R-CNN and learn to find coloured rectangles that are drawn on the fly, from
random weights, so that the script needs no download. With detectors and data of your own the line is the same one.
"""

import argparse

import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import kd


def batch(images: int, side: int, generator: torch.Generator) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, side, side), and for each the box (x0, y0, x1, y1) and label of the rectangle in it."""
    pictures, targets = [], []
    for _ in range(images):
        picture = 0.3 * torch.rand(3, side, side, generator=generator)
        size = torch.randint(side // 4, side // 2, (2,), generator=generator)
        corner = (torch.rand(2, generator=generator) * (side - size)).long()
        (x0, y0), (x1, y1) = corner.tolist(), (corner + size).tolist()
        colour = torch.randint(0, 3, (1,), generator=generator).item()
        picture[colour, y0:y1, x0:x1] += 0.6
        pictures.append(picture)
        targets.append({"boxes": torch.tensor([[x0, y0, x1, y1]]).float(), "labels": torch.tensor([colour + 1])})
    return pictures, targets


def detector(side: int) -> nn.Module:
    return fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=side, max_size=side
    )


def train(model: nn.Module, steps: int, side: int, images: int) -> list[dict[str, float]]:
    """The loop that everybody has; it does not know whether ``model`` is a detector or a distiller."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    history = []
    model.train()
    for step in range(steps):
        losses = model(*batch(images, side, generator))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
        if step % max(1, steps // 10) == 0:
            print(f"step {step:4}: " + ", ".join(f"{name} {value:.3f}" for name, value in history[-1].items()))
    return history


def main(arguments: list[str] | None = None) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher-steps", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--side", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=4, help="images in a batch")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    teacher, student = detector(args.side), detector(args.side)
    print("teacher alone")
    train(teacher, args.teacher_steps, args.side, args.images)

    print("student")
    model = kd.distill(student, teacher, loss="ssim", weight=4.0)
    history = train(model, args.steps, args.side, args.images)
    return history, model.student.state_dict()  # which loads into the plain torchvision builder


if __name__ == "__main__":
    main()
