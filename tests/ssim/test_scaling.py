"""Gradients times what arrives from upstream, in place."""

import pytest
import torch
from judge import assert_close, tolerance

from fused_ssim import ops

GRADS = {
    "dense": torch.rand(2, 3, 16, 20),
    "more than all blocks take at once": torch.rand(1, 1, 170, 601),
    "odd": torch.rand(3, 5, 7, 3),
    "channels last": torch.rand(2, 6, 9, 11).to(memory_format=torch.channels_last),
    "samples inside": torch.rand(5, 2, 6, 7).transpose(0, 1),
    "between other pixels": torch.rand(2, 3, 9, 16)[:, :, 1:-1, 3:-2],
    "every other column": torch.rand(2, 3, 8, 16)[..., ::2],
    "one pixel further": torch.rand(2 * 3 * 8 * 8 + 1)[1:].view(2, 3, 8, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("samples", [False, True], ids=["one factor", "a factor for each sample"])
@pytest.mark.parametrize("name", GRADS)
def test_nothing_but_the_gradient_is_scaled(kernel_once, name, samples, dtype):
    """Of two gradients the other is left alone, and so is the first sample of one with factors of their own: 1."""
    original = GRADS[name]
    around = torch.full((original.untyped_storage().size() // 4,), 0.625, dtype=dtype, device=kernel_once.device)
    grad = around.as_strided(original.shape, original.stride(), original.storage_offset())
    grad.copy_(original)
    other = torch.rand(grad.shape[0], 2, 4, 4, dtype=torch.float64).to(dtype).to(kernel_once.device)
    untouched = other.clone()
    n = grad.shape[0]
    factor = torch.stack([torch.linspace(2, 3, n), torch.full((n,), 4.0)]) if samples else torch.tensor([0.75, 4.0])
    want = grad.cpu().double() * (factor[0].view(-1, 1, 1, 1) if samples else factor[0]) / 2
    ops._operators(kernel_once.name).scale_([grad, other], factor.to(kernel_once.device), [2.0, 4.0])
    assert_close(grad.cpu(), want, tolerance(dtype).value, "the scaled gradient")
    assert torch.equal(other, untouched)
    grad.fill_(0.625)
    assert (around == 0.625).all(), "pixels beside the gradient were changed"
