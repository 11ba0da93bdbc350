"""Side streams and CUDA graphs: what no emulator shows."""

import pytest
import torch
from judge import pair

import fused_ssim
from fused_ssim import dispatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.fixture(params=["cuda", "triton"])
def backend(request) -> str:
    reason = dispatch.unavailable(request.param, "cuda")
    if reason is not None:
        pytest.skip(reason)
    return request.param


def step(x, y, backend):
    value = fused_ssim.ssim_loss(x, y, backend=backend)
    return value.detach(), *torch.autograd.grad(value, x)


def test_side_stream_sees_its_own_input_and_hands_on_its_output(backend):
    x, y = (t.cuda() for t in pair((2, 64, 100, 152)))
    want = step(x.clone().requires_grad_(), y, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x)  # a launch on another stream would compute zeros
        got = step(late.requires_grad_(), y, backend)
    torch.cuda.current_stream().wait_stream(stream)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def test_graph_capture_and_replay(backend):
    shape = (2, 16, 50, 76)
    x, y = (t.cuda() for t in pair(shape))
    x.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(x, y, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, y, backend)
    for seed in (1, 2):
        new_x, new_y = (t.cuda() for t in pair(shape, seed=seed))
        with torch.no_grad():
            x.copy_(new_x)
            y.copy_(new_y)
        graph.replay()
        for g, w in zip(captured, step(new_x.requires_grad_(), new_y, backend), strict=True):
            assert torch.equal(g, w)
