"""The table that the demo prints."""

from __future__ import annotations

from rich.table import Table

from synccache.demo.comparison import Comparison
from synccache.demo.words import decibel, pearson, percent

__all__ = ["table"]

_STEPS_PER_GROUP = 10  # decision letters are easier to count in tens


def table(comparison: Comparison) -> Table:
    """Figures of both runs side by side, and of what separates them."""
    settings, work, quality = comparison.settings, comparison.work, comparison.quality
    grid = Table(
        title=f"synccache demo: policy {settings.policy}, {settings.steps} steps",
        title_justify="left",
    )
    grid.add_column("")
    grid.add_column("uncached", justify="right")
    grid.add_column("compiled", justify="right")
    frames = len(comparison.uncached.frames)
    grid.add_row(
        f"seconds for {frames} frames",
        f"{work.uncached_seconds:.2f}",
        f"{work.compiled_seconds:.2f}",
    )
    grid.add_row(
        "CPU seconds, all threads",
        f"{work.uncached_cpu_seconds:.2f}",
        f"{work.compiled_cpu_seconds:.2f}",
    )
    grid.add_row("times faster (in CPU time)", "", f"{work.ratio:.2f} ({work.cpu_ratio:.2f})")
    grid.add_row("visual block work executed", percent(1.0), percent(work.executed_fraction))
    grid.add_row("bytes held in caches", "0", f"{work.bytes_held:,}")
    grid.add_row(
        "seconds to capture, to plan", "", f"{work.capture_seconds:.2f}, {work.plan_seconds:.3f}"
    )
    grid.add_section()
    grid.add_row(
        "mouth follows the audio (r)",
        pearson(quality.audio_uncached),
        pearson(quality.audio_compiled),
    )
    grid.add_row("mouth against uncached (r)", "", pearson(quality.between))
    grid.add_row("mouth area error", "", percent(quality.mouth_area_error))
    for region, value in quality.psnr.items():
        grid.add_row(f"PSNR against uncached, {region}", "", decibel(value))
    grid.add_section()
    for window, decisions in enumerate(work.decisions, start=1):
        for letters, branches in _by_letters(decisions).items():
            name = f"steps of window {window} ({', '.join(branches)})"
            grid.add_row(name, "", _grouped(letters))
    return grid


def _by_letters(decisions: dict[str, str]) -> dict[str, list[str]]:
    """Guidance branches that decided alike, together."""
    alike: dict[str, list[str]] = {}
    for branch, letters in decisions.items():
        alike.setdefault(letters, []).append(branch)
    return alike


def _grouped(letters: str) -> str:
    """CCCSSC... in lines of two groups of ten: C computed, S skipped."""
    groups = [
        letters[start : start + _STEPS_PER_GROUP]
        for start in range(0, len(letters), _STEPS_PER_GROUP)
    ]
    return "\n".join(" ".join(groups[start : start + 2]) for start in range(0, len(groups), 2))
