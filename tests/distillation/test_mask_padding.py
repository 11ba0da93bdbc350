"""``mask_padding``: means over the cells that see an image, against plain writings with loops over images."""

import pytest
import torch
import yaml
from plain_ssim import rescaled, ssim_of_maps
from training_runs import logged, write_config

import kd
from kd.cli import main
from kd.losses import LOSSES, FeatureLoss, feature_loss
from kd.masks import valid_cells

SIZES = ((64, 50), (40, 96))  # of two images padded to 64 x 96
STRIDES = (8, 16, 32)


def pyramid(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(-(-64 // s), -(-96 // s)) for s in STRIDES]
    return [torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64) * 3 + 1 for shape in shapes]


def inside(n, y, x, stride):
    """Whether the cell has a pixel in image n, looked up pixel by pixel."""
    height, width = SIZES[n]
    return any(
        py < height and px < width
        for py in range(y * stride, (y + 1) * stride)
        for px in range(x * stride, (x + 1) * stride)
    )


def cells(level):
    """[N, h, w] bool, by loops."""
    n, _, h, w = pyramid(0)[level].shape
    return torch.tensor([[[inside(k, y, x, STRIDES[level]) for x in range(w)] for y in range(h)] for k in range(n)])


def test_valid_cells_are_those_with_a_pixel_of_the_image():
    found = valid_cells(SIZES, pyramid(0), STRIDES)
    for level, mask in enumerate(found):
        assert mask.dtype == torch.float64 and torch.equal(mask[:, 0].bool(), cells(level))
    counts = [mask.sum((1, 2, 3)).tolist() for mask in found]
    assert counts == [[8 * 7, 5 * 12], [4 * 4, 3 * 6], [2 * 2, 2 * 3]]
    # 96 pixels do not fill the second cell of stride 64; it begins behind an image of 64.
    (coarse,) = valid_cells(((64, 64), (64, 65)), [torch.zeros(2, 1, 1, 2)], (64,))
    assert coarse.tolist() == [[[[1.0, 0.0]]], [[[1.0, 1.0]]]]


def plain(loss, student, teacher, valid):
    """The masked loss of one level, written with loops over images and channels."""
    if loss in ("ssim", "l1", "l2"):
        s, t = rescaled(student), rescaled(teacher)  # psi sees whole maps, and so do SSIM's windows
        values = {"ssim": (1 - ssim_of_maps(s, t)) / 2, "l1": (s - t).abs(), "l2": (s - t) ** 2}[loss]
        return torch.cat([values[n, c][valid[n]] for n in range(2) for c in range(3)]).mean()
    if loss == "pkd":
        rows = []
        for c in range(3):
            pair = [torch.cat([x[n, c][valid[n]] for n in range(2)]) for x in (student, teacher)]
            pair = [(v - v.mean()) / v.std(correction=0) for v in pair]
            rows.append(1 - (pair[0] * pair[1]).mean())
        return torch.stack(rows).mean()
    divergences = []
    for n in range(2):
        for c in range(3):
            q, p = (torch.softmax(x[n, c][valid[n]], 0) for x in (student, teacher))
            divergences.append((p * (p / q).log()).sum())
    return torch.stack(divergences).mean()


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_masked_losses_equal_loops_over_the_images(loss):
    students, teachers = pyramid(1), pyramid(2)
    for x in students:
        x.requires_grad_()
    masks = valid_cells(SIZES, students, STRIDES)
    made = feature_loss(loss)
    found, without = made(students, teachers, masks), made(students, teachers)
    found_gradients = torch.autograd.grad(found.sum(), students)
    expected = torch.stack(
        [plain(loss, s, t, cells(k)) for k, (s, t) in enumerate(zip(students, teachers, strict=True))]
    )
    # A standard deviation's lower bound in PKD, SSIM's epsilon: far below what the mask changes.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(found_gradients, torch.autograd.grad(expected.sum(), students), strict=True):
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()) and ours.isfinite().all()
    assert (found - without).abs().min() > 1e-4
    everything = [torch.ones_like(mask) for mask in masks]
    torch.testing.assert_close(made(students, teachers, everything), without)


def test_padding_alone_changes_nothing_where_no_window_reaches_it():
    """Without psi, L2 does not depend on the padding at all; SSIM does near the border, so it is no crop."""
    students, teachers, others = pyramid(1)[:1], pyramid(2)[:1], pyramid(3)[:1]
    masks = valid_cells(SIZES, students, STRIDES[:1])
    changed = [torch.where(mask.bool(), s, o) for mask, s, o in zip(masks, students, others, strict=True)]
    l2, ssim = feature_loss("l2", normalize=None), feature_loss("ssim", normalize=None)
    assert torch.equal(l2(students, teachers, masks), l2(changed, teachers, masks))
    assert not torch.equal(l2(students, teachers), l2(changed, teachers))
    assert not torch.allclose(ssim(students, teachers, masks), ssim(changed, teachers, masks), rtol=1e-4)


def test_components_are_means_over_the_image_too():
    students, teachers = pyramid(1), pyramid(2)
    masks = valid_cells(SIZES, students, STRIDES)
    made = feature_loss("ssim")
    found, without = made.components(students, teachers, masks), made.components(students, teachers)
    for k in range(3):
        alone = feature_loss("ssim", exponents=tuple(float(k == part) for part in range(3)))
        torch.testing.assert_close(1 - 2 * alone(students, teachers, masks), found[:, k], rtol=1e-5, atol=1e-6)
    assert (found - without).abs().max() > 1e-3


@pytest.mark.parametrize("loss", ["ssim", "pkd"])
def test_the_distiller_masks_what_the_transform_pads(detector_name, make_detector, batch, loss):
    """Sizes and strides as the models' own transform and backbones have them; neither image fills the batch."""
    student, teacher = (make_detector(detector_name, backbone="resnet18", norm="bn").double() for _ in range(2))
    images = [image.double() for image in batch[0]]
    targets = [{**target, "boxes": target["boxes"].double()} for target in batch[1]]
    model = kd.distill(student, teacher, loss, mask_padding=True, adapters="never").train()
    model.log_components = True
    student.backbone.eval()  # no statistics of a batch, so that its features can be computed again
    found = model(images, targets)["loss_distill"]
    assert not student.backbone._forward_hooks and not student.transform._forward_hooks
    transformed, _ = student.transform(images)
    x = transformed.tensors
    ours, theirs = student.backbone(x), teacher.backbone(x)
    masks = [
        torch.stack([
            m.new_tensor([[y * s < h and c * s < w for c in range(m.shape[3])] for y in range(m.shape[2])])
            for h, w in transformed.image_sizes
        ])[:, None]
        for s, m in zip(([8, 16, 32, 64, 128] if detector_name == "retinanet" else [4, 8, 16, 32, 64]), ours.values(),
                        strict=True)
    ]  # fmt: skip
    assert all(float((1 - m).sum()) > 0 for m in masks[:3])
    expected = feature_loss(loss)(list(ours.values()), list(theirs.values()), masks)
    torch.testing.assert_close(found, 4.0 * expected.sum())
    if loss == "ssim":
        parts = model.feature_loss.components(list(ours.values()), list(theirs.values()), masks)
        torch.testing.assert_close(torch.stack(list(model.level_components.values())), parts)
    model.mask_padding = False
    assert abs(float(model(images, targets)["loss_distill"] - found)) > 1e-4 * float(found)


def test_what_can_not_be_masked_is_said(make_detector):
    class Mine(FeatureLoss):
        def level(self, student, teacher):
            return (student - teacher).abs().mean()

    student, teacher = make_detector(), make_detector()
    with pytest.raises(ValueError, match="mask_padding: Mine takes no mask"):
        kd.distill(student, teacher, Mine(), mask_padding=True)
    kd.distill(student, teacher, Mine())
    model = kd.distill(student, teacher, "l2", mask_padding=True)
    x = torch.rand(2, 3, 64, 96)
    with pytest.raises(ValueError, match="sizes: mask_padding needs those of all 2 images, got None"):
        model.distillation_loss(x, student.backbone(x))


def test_option_of_the_command_line(coco_root, tmp_path):
    losses = {}
    for masked in (False, True):
        run = tmp_path / str(masked)
        path = write_config("retinanet", coco_root, run, trainer__max_epochs=1, trainer__limit_val_batches=0)
        main(["fit", "--config", path, f"--model.mask_padding={masked}", "--trainer.limit_train_batches=1"])
        losses[masked] = logged(run, "loss_distill")[0]
        assert yaml.safe_load((run / "config.yaml").read_text())["model"]["mask_padding"] is masked
    assert losses[True] != pytest.approx(losses[False], rel=1e-4)
