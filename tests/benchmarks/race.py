"""Contestants that take turns in one process, and the ratios of their times.

Machines drift and are shared. Each round times every contestant once, and a ratio is
taken within a round, so that both sides have met the same machine. (pytest-benchmark
finishes one contestant before it starts the next.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        run (Callable): What is timed.
        prepare (Callable): Called before each run, not timed; its answer goes to run.
        rounds (int, optional): Rounds to take part in, if not in all.
        share (float): What part of the work of the others a run does; times are
            divided by it.
        tells_seconds (bool): Whether the time is what run returns.
    """

    run: Callable[..., object]
    prepare: Callable[[], object] | None = None
    rounds: int | None = None
    share: float = 1.0
    tells_seconds: bool = False

    def time(self) -> float:
        arguments = (self.prepare(),) if self.prepare else ()
        start = time.perf_counter()
        answer = self.run(*arguments)
        seconds = time.perf_counter() - start
        if self.tells_seconds:
            assert isinstance(answer, float)
            seconds = answer
        return seconds / self.share


@dataclass
class Race:
    """Times in seconds, per contestant and round."""

    title: str
    ours: list[str]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One line per contestant: median, and its ratio to each of ours."""
        lines = [self.title]
        for name, times in self.seconds.items():
            line = f"  {name:44s} {1e3 * median(times):10.1f} ms"
            for own in self.ours:
                if own != name:
                    ratios = [a / b for a, b in zip(times, self.seconds[own])]  # noqa: B905
                    line += f"   x {median(ratios):.2f} of {own}"
                    line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(line)
        return lines


def race(
    title: str,
    ours: dict[str, Contestant],
    peers: dict[str, Contestant],
    rounds: int = 7,
) -> Race:
    """Let contestants take turns.

    In each turn a contestant of all rounds runs once without a clock, to find caches
    and memory as its own last run leaves them, not as another's does; slow ones, which
    run in fewer rounds, do not notice.
    """
    result = Race(title, list(ours))
    for turn in range(rounds):
        for name, contestant in {**ours, **peers}.items():
            if contestant.rounds is None:
                contestant.time()
            if contestant.rounds is None or turn < contestant.rounds:
                result.seconds.setdefault(name, []).append(contestant.time())
    return result
