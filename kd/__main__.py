"""``python -m kd`` is the command ``kd``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """kd: detector distillation

  kd fit | validate | test   train and evaluate one detector (kd fit --help)
  kd compare                 the same student by several methods and seeds, in one table
  kd ablate                  the paper's ablations of the SSIM loss, in one table
  kd inspect                 pictures of what a student has learnt, level by level
  kd report                  one page about finished runs: table, curves, pictures, configuration
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
    elif command in ("compare", "ablate"):
        from kd.compare.command import main as compare

        sys.exit(compare(command, rest))
    elif command == "inspect":
        from kd.inspection.command import main as inspect

        sys.exit(inspect(rest))
    elif command == "report":
        from kd.report.command import main as report

        sys.exit(report(rest))
    else:
        from kd.cli import main as lightning

        lightning(given)


if __name__ == "__main__":
    main()
