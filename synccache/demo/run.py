"""The demo from options to files and table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import synccache
from synccache.demo.checks import chosen_policy, require_settings
from synccache.demo.comparison import Clip, Comparison, Settings, Work, report
from synccache.demo.folder import written_whole
from synccache.demo.judge import judged
from synccache.demo.pair import Scene, TimedRun, compiled_for, generate, prepare, warm_up
from synccache.demo.pictures import contact_sheet, video_pictures
from synccache.demo.table import table
from synccache.demo.video import write_video
from synccache.fx.report import Stats
from synccache.portrait.config import CONFIG
from synccache.portrait.load import WEIGHTS, Portrait, load_portrait
from synccache.portrait.measures import mouth_opening_trace

__all__ = ["run"]

_CALLS = ("with audio", "without")

BUNDLED_SPEECH = WEIGHTS.parent / "speech" / "demo_3.wav"


def run(settings: Settings, out: Path, *, as_json: bool, weights: Path = WEIGHTS) -> None:
    """Generate, compare, write `out` whole, print the table (or the report) on stdout.

    Raises:  SynccacheError, PortraitError or OSError; then `out` is as it was before.
    """
    require_settings(settings)
    policy = chosen_policy(settings)
    with written_whole(out) as folder:
        portrait = load_portrait(weights)
        scene = prepare(portrait, settings.audio or BUNDLED_SPEECH, settings.seed)
        compiled = compiled_for(portrait, scene, policy, settings)
        comparison = _compare(portrait, scene, compiled, settings)
        figures = report(comparison, _versions())
        _write(comparison, figures, folder)
    if as_json:
        print(json.dumps(figures, indent=2, allow_nan=False))
    else:
        console = Console()
        console.print(table(comparison))
        console.print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} in {out}")


def _compare(
    portrait: Portrait, scene: Scene, compiled: synccache.CachedModel, settings: Settings
) -> Comparison:
    """Both runs from the same noise. The compiled model goes first in warming up: it may be refused."""
    warm_up(compiled, scene, begin=compiled.reset)
    first = compiled.stats()
    compiled.reset()
    warm_up(portrait.model, scene)
    windows: list[Stats] = []
    total = scene.windows * settings.steps
    with _bars() as bar:
        uncached = generate(
            portrait.model, portrait, scene, settings, on_step=bar("uncached", total)
        )
        cached = generate(
            compiled,
            portrait,
            scene,
            settings,
            on_step=bar("compiled", total),
            on_window_end=lambda: windows.append(compiled.stats()),
        )
    work = Work(
        uncached_seconds=uncached.seconds,
        compiled_seconds=cached.seconds,
        uncached_cpu_seconds=uncached.cpu_seconds,
        compiled_cpu_seconds=cached.cpu_seconds,
        capture_seconds=first.capture_seconds,
        plan_seconds=first.plan_seconds,
        executed_fraction=sum(window.executed_fraction for window in windows) / len(windows),
        bytes_held=max(window.bytes_held for window in windows),
        decisions=tuple(_by_name(window) for window in windows),
    )
    return Comparison(
        settings=settings,
        uncached=_clip(uncached, scene),
        compiled=_clip(cached, scene),
        opening=scene.drawn.opening.double().numpy(),
        samples=scene.samples,
        sample_rate=scene.sample_rate,
        frame_rate=CONFIG.frame_rate,
        work=work,
        quality=judged(uncached.frames, cached.frames, scene.drawn, scene.mouth),
        plan_text=str(compiled.plan),
        plan_json=compiled.plan.to_json(),
    )


def _by_name(window: Stats) -> dict[str, str]:
    """Decisions by what a call heard: each step calls with the audio, then without."""
    return dict(zip(_CALLS, window.decisions.values(), strict=False))


def _clip(timed: TimedRun, scene: Scene) -> Clip:
    pixels = (timed.frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    trace = mouth_opening_trace(timed.frames, scene.mouth).double().numpy()
    return Clip(pixels, np.asarray(trace, np.float64))


@contextmanager
def _bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Progress bars on stderr: bar(name, steps) adds one, what it returns advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def bar(name: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(f"sampling, {name}", total=steps)
            return lambda: progress.advance(task)

        yield bar


def _write(comparison: Comparison, figures: dict[str, object], folder: Path) -> None:
    pictures = video_pictures(comparison)
    write_video(
        folder / "portrait.mp4",
        pictures,
        comparison.frame_rate,
        comparison.samples,
        comparison.sample_rate,
    )
    contact_sheet(comparison).save(folder / "contact_sheet.png", optimize=True)
    (folder / "plan.json").write_text(comparison.plan_json)
    (folder / "plan.txt").write_text(comparison.plan_text + "\n")
    (folder / "report.json").write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def _versions() -> dict[str, str | int]:
    return {
        "synccache": version("synccache"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
