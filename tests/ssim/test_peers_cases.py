"""The cases of the peers' own tests, on our drop-ins, with tolerances that a wrong gradient does not pass.

fused-ssim (rahul-goel) compares with a convolution and with pytorch-msssim, by absolute tolerances that gradients of a
mean are below; fussim adds windows, constant images, autocast; pytorch-msssim compares with scikit-image to 5e-4. Here
gradients are those of the sum, by relative L2 against float64.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judge import assert_close, relative_l2
from torch import nn

import fused_ssim
from fused_ssim.compat import pytorch_msssim as compat

LIMIT = 1e-5
VALUE_LIMIT = 1e-6  # absolute: the mean SSIM of independent noise is nearly 0


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    return request.param


def noise(*shape, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator).to(device), torch.rand(*shape, generator=generator).to(device)


def by_convolution(x, y, padding, window=11, sigma=1.5, data_range=1.0):
    """Mean SSIM by one 2-D convolution for each moment: how the peers' tests write it, and unlike our reference."""
    line = torch.exp(-((torch.arange(window, dtype=x.dtype, device=x.device) - window // 2) ** 2) / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    kernel = kernel.expand(x.shape[1], 1, window, window)

    def mean(t):
        return F.conv2d(t, kernel, padding=window // 2 if padding == "same" else 0, groups=t.shape[1])

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    values = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return values.mean()


def value_and_gradients(function, x, y):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y)
    return value.detach(), *torch.autograd.grad(value * x.numel(), (x, y), allow_unused=True)


def assert_same(ours, x, y, both=False, **definition):
    """``ours(x, y)`` and its gradients are those of the convolution in float64."""
    value, grad_x, grad_y = value_and_gradients(ours, x, y)
    want, want_x, want_y = value_and_gradients(
        lambda a, b: by_convolution(a, b, **definition), x.double().cpu(), y.double().cpu()
    )
    assert abs(value.item() - want.item()) < VALUE_LIMIT
    assert_close(grad_x.cpu(), want_x, LIMIT, "gradient by the first")
    if both:
        assert_close(grad_y.cpu(), want_y, LIMIT, "gradient by the second")
    else:
        assert grad_y is None


# ---- fused-ssim ----


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("shape", [(5, 5, 54, 96), (1, 1, 64, 64), (1, 3, 64, 128), (8, 3, 33, 47)], ids=str)
def test_images(device, shape, padding):
    x, y = noise(*shape, device=device)
    assert_same(lambda a, b: fused_ssim.fused_ssim(a, b, padding=padding), x, y, padding=padding)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_large_image(device, padding):
    x, y = noise(1, 1, 540, 960, device=device)
    assert_same(lambda a, b: fused_ssim.fused_ssim(a, b, padding=padding), x, y, padding=padding)


def test_valid_is_what_pytorch_msssim_computes(device):
    peer = pytest.importorskip("pytorch_msssim")
    x, y = noise(2, 3, 50, 61, device=device)
    got = value_and_gradients(lambda a, b: fused_ssim.fused_ssim(a, b, padding="valid"), x, y)
    want = value_and_gradients(peer.SSIM(data_range=1.0, channel=3), x, y)
    assert abs(got[0].item() - want[0].item()) < VALUE_LIMIT
    assert_close(got[1], want[1], LIMIT, "gradient")


def test_without_training_the_value_is_the_same(device):
    x, y = noise(1, 3, 64, 64, device=device)
    x.requires_grad_()
    trained = fused_ssim.fused_ssim(x, y, train=True)
    untrained = fused_ssim.fused_ssim(x, y, train=False)
    with torch.no_grad():
        inference = fused_ssim.fused_ssim(x, y)
    assert trained.requires_grad and not untrained.requires_grad and not inference.requires_grad
    assert trained.item() == untrained.item() == inference.item()


def test_an_image_is_optimised_until_it_is_the_other():
    """Their example, which also ends only if the gradient of a nearly equal pair still points the right way."""
    y = noise(1, 1, 32, 32)[0]
    x = noise(1, 1, 32, 32, seed=1)[0].requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = 1 - fused_ssim.fused_ssim(x, y)
        loss.backward()
        optimizer.step()
        if loss.item() < 1e-4:
            break
    assert loss.item() < 1e-4


# ---- fussim ----


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("level", [0.0, 1e-6, 0.5, 1.0])
def test_identical_images(device, level, padding):
    for x in (torch.full((1, 3, 32, 32), level, device=device), level * noise(1, 3, 32, 32, device=device)[0]):
        assert fused_ssim.fused_ssim(x, x.clone(), padding=padding).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("window", [7, 9, 11])
@pytest.mark.parametrize("shape", [(1, 1, 21, 21), (8, 3, 64, 64), (1, 3, 64, 128)], ids=str)
def test_windows(device, shape, window):
    """Their windows of 7 and 9 taps are other ones; ours are what pytorch-msssim computes for the same arguments."""
    x, y = noise(*shape, device=device)
    assert_same(
        lambda a, b: compat.ssim(a, b, data_range=1.0, win_size=window), x, y, True, padding="valid", window=window
    )


@pytest.mark.parametrize("function", ["drop-in", "compat"])
def test_autocast(device, function):
    x, y = noise(2, 3, 64, 64, device=device)
    calls = {"drop-in": fused_ssim.fused_ssim, "compat": lambda a, b: compat.ssim(a, b, data_range=1.0)}
    plain = value_and_gradients(calls[function], x, y)
    with torch.autocast(device, dtype=torch.bfloat16):
        mixed = value_and_gradients(calls[function], x, y)
    assert mixed[0].dtype == torch.float32 and mixed[1].dtype == torch.float32
    # Not 2e-2 as for a kernel that rounds its inputs: autocast leaves float32 inputs alone.
    assert mixed[0].item() == plain[0].item() and torch.equal(mixed[1], plain[1])


def test_an_autoencoder_under_autocast_learns(device):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 3, stride=2, padding=1, output_padding=1),
        nn.Sigmoid(),
    ).to(device)
    images = noise(4, 3, 32, 32, device=device)[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = 1 - fused_ssim.fused_ssim(model(images), images)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_arguments_that_they_refuse():
    x = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="shape"):
        fused_ssim.fused_ssim(x, torch.rand(1, 3, 128, 128))
    with pytest.raises(ValueError, match="padding"):
        fused_ssim.fused_ssim(x, x, padding="invalid")
    with pytest.raises(ValueError, match="odd"):
        compat.ssim(x, x, win_size=8)


def test_an_inverted_image_is_clipped_at_zero(device):
    x = noise(1, 1, 64, 64, device=device)[0]
    assert compat.ssim(x, 1 - x, data_range=1.0).item() < -0.5
    assert compat.ssim(x, 1 - x, data_range=1.0, nonnegative_ssim=True).item() == 0.0


# ---- pytorch-msssim ----


@pytest.fixture(scope="module")
def photo():
    """A crop of a photograph, (96, 80, 3) in [0, 255]."""
    data = pytest.importorskip("skimage.data")
    return data.astronaut()[10:106, 170:250].astype(np.float64)


def test_noise_on_a_photograph(photo, device):
    """Value by value and as a batch, against scikit-image, to 1e-5 where they ask for 5e-4."""
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(0)
    noisy = [(photo + sigma * random.random(photo.shape)).clip(0, 255) for sigma in range(0, 101, 10)]
    want = [
        metrics.structural_similarity(
            photo,
            image,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            win_size=11,
            use_sample_covariance=False,
        )
        for image in noisy
    ]

    def tensor(image):
        return torch.from_numpy(image).permute(2, 0, 1).float().to(device)

    clean = tensor(photo).expand(len(noisy), -1, -1, -1)
    batch = compat.ssim(torch.stack([tensor(image) for image in noisy]), clean, data_range=255, size_average=False)
    single = [compat.ssim(tensor(image)[None], tensor(photo)[None], data_range=255).item() for image in noisy]
    assert batch.tolist() == pytest.approx(want, abs=1e-5)
    assert single == pytest.approx(want, abs=1e-5)
    assert all(a > b for a, b in itertools.pairwise(single))


def test_a_thin_volume_is_an_image(photo):
    """Eleven equal slices give what one gives: theirs to 5e-4."""
    x = torch.from_numpy(photo).permute(2, 0, 1)[None]
    y = (x + 40 * noise(*x.shape)[0]).clamp(0, 255)
    volume = [t.unsqueeze(2).expand(-1, -1, 11, -1, -1) for t in (x, y)]
    assert_close(compat.ssim(*volume), compat.ssim(x, y), 1e-9, "value")


def test_both_inputs_learn(device):
    x = (255 * noise(4, 3, 64, 64)[0]).round().to(device) / 255
    assert_same(compat.SSIM(data_range=1.0), x, 0.5 * x, True, padding="valid")


def test_the_limit_refuses_a_gradient_of_zeros_and_a_flipped_sign():
    """What an absolute tolerance of 1e-4 on the gradient of the mean lets through."""
    x, y = noise(2, 3, 256, 256)
    gradient = value_and_gradients(fused_ssim.fused_ssim, x, y)[1]
    of_the_mean = gradient / x.numel()
    assert torch.allclose(of_the_mean, torch.zeros_like(of_the_mean), rtol=1e-4, atol=1e-4)
    assert relative_l2(torch.zeros_like(gradient), gradient) > LIMIT
    assert relative_l2(-gradient, gradient) > LIMIT
