"""Prints the ratio of medians within each group of benchmarks."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, float]] = {}
    for bench in session.benchmarks if session else []:
        # The time of one unit of work, where a round does several.
        units = bench.extra_info.get("units", 1)
        groups.setdefault(bench.group, {})[bench.name] = bench.stats.median / units
    terminalreporter.section("ratios of medians")
    for group, medians in sorted(groups.items()):
        ours = [name for name in medians if name.startswith("test_ours")]
        peers = [name for name in medians if name not in ours]
        for mine in ours:
            for peer in sorted(peers, key=medians.__getitem__):
                terminalreporter.write_line(
                    f"{group}: {mine} {1e3 * medians[mine]:.1f} ms, "
                    f"{peer} {1e3 * medians[peer]:.1f} ms, "
                    f"ratio {medians[peer] / medians[mine]:.1f}"
                )
