"""Where the time of the tests goes: on the processor, for a clock tells little on a busy machine.

`make test-times` ends with the totals of rooms and of the test functions that cost most. A test has
the time of its process and of processes that it started and waited for; what fixtures take counts
with the test that needs them first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

FUNCTIONS = 40


def used() -> float:
    """Seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def room_of(nodeid: str) -> str:
    """The folder within `tests`, if the file lies in one."""
    parts = nodeid.partition("::")[0].split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


class Times:
    """Notes the time of every phase of a test in its report, and sums what the reports say."""

    def __init__(self) -> None:
        self.last = used()

    def pytest_runtest_logstart(self) -> None:
        """What came before, such as collecting, is no test's."""
        self.last = used()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: Any = yield
        now = used()
        report.processor_time, self.last = now - self.last, now
        return report

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        reports = [
            report
            for kind in terminalreporter.stats.values()
            for report in kind
            if hasattr(report, "processor_time")
        ]
        for title, name_of, most in (
            ("rooms", room_of, None),
            ("test functions", lambda nodeid: nodeid.partition("[")[0], FUNCTIONS),
        ):
            terminalreporter.section(f"processor time by {title}")
            for line in totals(reports, name_of, most):
                terminalreporter.write_line(line)


def totals(reports: list[Any], name_of: Callable[[str], str], most: int | None) -> list[str]:
    """Seconds, tests and name; the dearest first, and their sum at the end."""
    seconds: Counter[str] = Counter()
    tests: dict[str, set[str]] = {}
    for report in reports:
        name = name_of(report.nodeid)
        seconds[name] += report.processor_time
        tests.setdefault(name, set()).add(report.nodeid)
    rows = [(spent, len(tests[name]), name) for name, spent in seconds.most_common(most)]
    rows.append((sum(seconds.values()), sum(map(len, tests.values())), "in all"))
    return [f"{spent:8.1f} s {count:5d}  {name}" for spent, count, name in rows]
