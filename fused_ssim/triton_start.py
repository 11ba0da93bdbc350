"""Compiles a Triton kernel and starts it: once for all sizes.

``kernel[grid](...)`` compiles anew where an integer in a tuple is 1, a multiple of 16 or needs 64 bits, so for nearly
every size, and hands on a 1 as no tensor; ``do_not_specialize`` holds for arguments that are integers themselves.
"""

from collections.abc import Hashable
from typing import Any

import triton
from triton.runtime.driver import driver

from . import triton_backend

_compiled: dict[Hashable, Any] = {}


def start(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, options: dict[str, int] | None = None, **constants: Hashable
) -> None:
    """Runs ``kernel`` on the current device and stream.

    arguments: integers and tuples of them, in the kernel's order; the first is a tuple of levels, and of all tuples its
    length alone may change from call to call. options: of the compiler. constants: what the kernel takes as constexpr.
    """
    options = options or {}
    if triton_backend.interpreted:
        kernel[grid](*arguments, **constants, **options)
        return
    key = (kernel, driver.active.get_current_device(), len(arguments[0]), *options.values(), *constants.items())
    if key not in _compiled:
        names = kernel.arg_names
        signature = dict(zip(names, map(_type, arguments), strict=False)) | dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(kernel, {name: signature[name] for name in names}, constants)
        _compiled[key] = triton.compiler.compile(source, options=options)
    everything = *arguments, *(constants[name] for name in kernel.arg_names[len(arguments) :])
    _compiled[key][(*grid, 1, 1)[:3]](*everything)


def _type(argument: Any) -> Any:
    if not isinstance(argument, tuple):
        return "i64"
    types = map(_type, argument)
    return type(argument)(*types) if hasattr(argument, "_fields") else tuple(types)
