"""fused_ssim beside its peers: how right, how fast and how large. ``python -m benchmarks.run`` does all of it."""
