"""The formulas exist once for C++ and CUDA, once for Triton: the same functions in the same order."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_triton_math_is_the_twin_of_ssim_math():
    header = (ROOT / "csrc" / "ssim_math.h").read_text()
    of_cpp = []
    for indent, name, arguments in re.findall(r"^( *)(?:static )?SSIM_HD [\w<>]+ (\w+)\((.*)\)", header, re.M):
        names = re.findall(r"(\w+)(?:,|\)|$)", re.sub(r"\).*", "", arguments))
        of_cpp.append(("math_" * bool(indent) + name, names))
    tree = ast.parse((ROOT / "fused_ssim" / "triton_math.py").read_text())
    of_triton = [(f.name, [a.arg for a in f.args.args]) for f in tree.body if isinstance(f, ast.FunctionDef)]
    assert [name for name, _ in of_cpp] == [name for name, _ in of_triton]
    for (name, of_header), (_, of_python) in zip(of_cpp, of_triton, strict=True):
        moments = [a for a in of_header if a.startswith(("mu_", "e_"))]
        assert of_python[: len(moments)] == moments, name
