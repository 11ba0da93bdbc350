"""Triton's interpreter at a bearable speed: it patches the language anew in every call of a device function."""

import inspect

import triton.language as tl
from triton.runtime import interpreter


class _NothingToRestore:
    def restore(self) -> None:
        pass


def patch_once() -> None:
    """Let the interpreter patch each language module once, for good; for a process that compiles no kernel."""
    original, done = interpreter._patch_lang, set()

    def patch(function):
        modules = {m.__name__ for m in function.__globals__.values() if inspect.ismodule(m) and m in (tl, tl.core)}
        if not modules <= done:
            original(function)
            done.update(modules)
        return _NothingToRestore()

    interpreter._patch_lang = patch
