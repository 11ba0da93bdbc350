"""The reference against other people's SSIM, where the definitions agree.

They agree on a Gaussian window of 11 taps, sigma 1.5, normalised, K = (0.01, 0.03), exponents 1 and biased (population)
moments. Borders differ, so maps are compared where the window lies inside, or with the padding that the peer uses:
scikit-image mirrors with the edge repeated and then crops 5 pixels; pytorch-msssim is "valid"; torchmetrics 1.9
(earlier ones cropped) and kornia's "same" mirror as our "reflect"; kornia adds 1e-12 to the denominator.
"""

import numpy as np
import pytest
import torch
from judge import assert_close, pair

import fused_ssim

CLOSE = 1e-10


def ours(x, y, **options):
    return fused_ssim.ssim(x, y, backend="reference", **options)


@pytest.fixture(params=[1.0, 255.0], ids=["0 to 1", "0 to 255"])
def images(request):
    x, y = pair((2, 3, 27, 35), torch.float64)
    return request.param * x, request.param * y, request.param


def test_scikit_image(images):
    metrics = pytest.importorskip("skimage.metrics")
    x, y, data_range = images
    for i in range(x.shape[0]):
        value, full = metrics.structural_similarity(
            np.moveaxis(x[i].numpy(), 0, -1),
            np.moveaxis(y[i].numpy(), 0, -1),
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
            full=True,
        )
        inside = ours(x[i], y[i], data_range=data_range, padding="valid", reduction="none")
        full = torch.from_numpy(np.moveaxis(full, -1, 0).copy())[:, 5:-5, 5:-5]
        assert_close(inside, full, CLOSE, "map")
        assert_close(inside.mean(), torch.tensor(value), CLOSE, "mean")


def test_pytorch_msssim(images):
    peer = pytest.importorskip("pytorch_msssim")
    x, y, data_range = images
    # Its taps are float32, so its result is float32's.
    want = peer.ssim(x.float(), y.float(), data_range=data_range, size_average=False)
    assert_close(ours(x, y, data_range=data_range, padding="valid", reduction="sample"), want, 1e-5, "samples")


def test_torchmetrics(images):
    peer = pytest.importorskip("torchmetrics.functional.image")
    x, y, data_range = images
    want = peer.structural_similarity_index_measure(x, y, data_range=data_range, reduction="none")
    assert_close(ours(x, y, data_range=data_range, padding="reflect", reduction="sample"), want, 1e-6, "samples")


@pytest.mark.parametrize(("padding", "theirs"), [("reflect", "same"), ("valid", "valid")])
def test_kornia(images, padding, theirs):
    """kornia is what the paper's code calls."""
    peer = pytest.importorskip("kornia.metrics")
    x, y, data_range = images
    want = peer.ssim(x, y, 11, max_val=data_range, padding=theirs)
    got = ours(x, y, data_range=data_range, padding=padding, reduction="none")
    assert_close(got, want, 1e-6, "map")


def test_kornia_loss():
    """Its loss clamps to [0, 1] and averages; the gradient is that of ssim_loss."""
    peer = pytest.importorskip("kornia.losses")
    x, y = pair((1, 2, 27, 35), torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    peer.ssim_loss(a, y, 11).backward()
    fused_ssim.ssim_loss(b, y, padding="reflect", backend="reference").backward()
    assert_close(b.grad, a.grad, 1e-6, "gradient")


def test_a_window_written_out(backend):
    """One pixel from the definition of Wang et al., by numpy, sharing nothing with the reference."""
    x, y = pair((1, 1, 11, 11), torch.float64)
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    a, b = x[0, 0].numpy(), y[0, 0].numpy()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
    contrast = (2 * np.sqrt(va * vb) + c2) / (va + vb + c2)
    structure = (cov + c2 / 2) / (np.sqrt(va * vb) + c2 / 2)
    x, y = x.to(backend.device), y.to(backend.device)
    got = fused_ssim.ssim(x, y, padding="valid", backend=backend.name).item()
    assert got == pytest.approx(luminance * contrast * structure, rel=1e-12)
    # Where contrast and structure are taken apart, 1e-8 is added to the variances.
    got = fused_ssim.ssim(x, y, padding="valid", exponents=(0.5, 0.7, 1.3), backend=backend.name).item()
    assert got == pytest.approx(luminance**0.5 * contrast**0.7 * structure**1.3, rel=1e-5)
