"""``python -m fused_ssim``: what is built, and which backend tensors of each device take and why."""

from .dispatch import info


def report() -> str:
    """The facts of :func:`fused_ssim.info`, one a line."""
    facts = info()
    lines = [f"fused_ssim {facts['version']}, torch {facts['torch']}"]
    native = facts["native"]
    if isinstance(native, dict):
        width = max(map(len, native))
        lines += [f"  {name:<{width}}  {_readable(value)}" for name, value in native.items()]
    else:
        lines.append(f"  {native}")
    for device, choice in facts["backends"].items():  # type: ignore[attr-defined]
        lines.append(f"tensors on {device} take the backend {choice['chosen']!r}")
        lines += [f"  not {name!r}: {reason}" for name, reason in choice["unavailable"].items()]
    return "\n".join(lines)


def _readable(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)


if __name__ == "__main__":
    print(report())
