"""What mkdocs does beyond its plugins: pictures of the benchmarks, and docstrings' roles as plain code."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):(?=<code>)")


def on_files(files, config):
    """Adds the plots that stand beside the benchmarks' records, as figures/benchmarks/*.png."""
    for picture in sorted(Path("benchmarks/results").glob("*.png")):
        address = f"figures/benchmarks/{picture.name}"
        files.append(File.generated(config, address, abs_src_path=str(picture.resolve())))
    return files


def on_page_content(html, page, config, files):
    """Docstrings name functions by role; on a page that is code."""
    return ROLE.sub("", html)
