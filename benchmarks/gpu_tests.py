"""pytest that fails, too, where no test passed or one was skipped for want of a device: a skip is no "ok" there.

python -m benchmarks.gpu_tests PYTEST_ARGUMENTS
"""

import re
import sys
from collections import Counter

import pytest

WANTS_DEVICE = re.compile(r"\b(cuda|triton): |no CUDA device|built without CUDA|compiler for the emulator")


class Tally:
    """Counts what passed, and why the rest was skipped."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[reason] += 1

    def complaint(self) -> str | None:
        """Why the run proves nothing, or None where it does."""
        wanting = {reason: count for reason, count in self.skipped.items() if WANTS_DEVICE.search(reason)}
        if wanting:
            return f"skipped for want of a device: {wanting}"
        return None if self.passed else "no test passed"


def main(arguments: list[str]) -> int:
    tally = Tally()
    code = int(pytest.main(arguments, plugins=[tally]))
    complaint = tally.complaint()
    print(
        f"gpu_tests: {tally.passed} passed, {tally.skipped.total()} skipped" + (f"; {complaint}" if complaint else "")
    )
    return code or int(complaint is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
