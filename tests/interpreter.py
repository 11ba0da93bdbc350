"""Triton's interpreter at a bearable speed: it patches the language anew in every call of a device function."""

import inspect
from functools import cache

import triton.language as tl
from triton.runtime import interpreter


class _NothingToRestore:
    def restore(self) -> None:
        pass


@cache
def patch_once() -> None:
    """Let the interpreter patch each language module once, for good; for a process that compiles no kernel."""
    original, patched, seen = interpreter._patch_lang, set(), set()

    def patch(function):
        if function.__module__ not in seen:
            seen.add(function.__module__)
            modules = {m.__name__ for m in function.__globals__.values() if inspect.ismodule(m) and m in (tl, tl.core)}
            if not modules <= patched:
                original(function)
                patched.update(modules)
        return _NothingToRestore()

    interpreter._patch_lang = patch
    whole, of_scalar = interpreter._get_np_dtype, cache(interpreter._get_np_dtype)
    interpreter._get_np_dtype = lambda of: whole(of) if isinstance(of, tl.pointer_type) else of_scalar(of.scalar)
