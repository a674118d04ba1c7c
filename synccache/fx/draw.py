"""``compiled.draw("graph.svg")``: streams as lines, branches as boxes on them, regions as frames.

Blocks that repeat are drawn once. Time runs downwards; a branch leaves its stream, may read others, and
is added back where its dot is. Written as SVG text: a browser shows it, and a diff of it can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from synccache.errors import MatchError
from synccache.fx.report import describe
from synccache.fx.rows import Row, region_names, rows
from synccache.planner import format_bytes
from synccache.policies.dsl import AUDIO

if TYPE_CHECKING:
    from synccache.fx.cached_model import CachedModel
    from synccache.fx.variant import Variant

ROW, TOP, LEFT, LANE, BOX, MARGIN, NOTE = 30, 96, 96, 30, 470, 24, 400
INK, FAINT, LIVE, AUDIBLE, HELD = "#1f2430", "#8a93a5", "#eef1f6", "#ffe2c2", "#dfeaf9"
LANES = ("#3b6fb6", "#8a5cb8", "#2f8f6b", "#b6633b", "#6b7280")
CHIPS = {
    "audio": "#e07b00", "text": "#3b6fb6", "timestep": "#7a8291", "reference": "#2f8f6b", "mask": "#9c3d86",
}  # fmt: skip


def draw(compiled: CachedModel, path: str | Path) -> None:
    """Writes the compiled form that the last call used as an SVG picture.

    Raises:
        MatchError: no stream was found, so there is nothing to draw.
    """
    Path(path).write_text(picture(compiled.variant), encoding="utf-8")


def picture(variant: Variant) -> str:
    """The picture as SVG text."""
    program = variant.program
    if program is None:
        raise MatchError("no stream was found in this model: there is nothing to draw.")
    table, lanes = rows(program, variant.layout), len(program.streams)
    boxes = LEFT + LANE * lanes + 16
    width, height = boxes + BOX + NOTE + MARGIN, TOP + ROW * len(table) + 84
    parts = [*_heading(variant, width), *_lanes(variant, table), *_blocks(table, boxes)]
    parts += [*_frames(variant, table, boxes), *_cuts(table)]
    for i, row in enumerate(table):
        parts += _branch(variant, row, TOP + ROW * i, boxes)
    parts += _legend(TOP + ROW * len(table) + 44, boxes)
    style = "text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:12px;fill:" + INK + "}"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n<style>{style}</style>\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(
    x: float, y: float, words: str, *, color: str = INK, size: int = 12, bold: bool = False,
    end: bool = False,
) -> str:  # fmt: skip
    weight = ' font-weight="600"' if bold else ""
    weight += ' text-anchor="end"' if end else ""
    return (
        f'<text x="{x:g}" y="{y:g}" style="font-size:{size}px;fill:{color}"{weight}>'
        f"{escape(words)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1.0) -> str:
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{color}" stroke-width="{width:g}" fill="none"/>'


def _rect(x: float, y: float, w: float, h: float, fill: str, stroke: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{fill}" '
        f'stroke="{stroke}"{dashed}/>'
    )


def _dot(x: float, y: float, color: str, filled: bool = True) -> str:
    fill = color if filled else "white"
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{fill}" stroke="{color}" stroke-width="1.5"/>'
    )


def _lane(stream: int) -> tuple[float, str]:
    return LEFT + LANE * stream + LANE / 2, LANES[stream % len(LANES)]


def _heading(variant: Variant, width: float) -> Iterator[str]:
    kind = variant.emitted.module._get_name().removeprefix("Compiled").rstrip("0123456789")
    yield _text(MARGIN, 30, kind, size=18, bold=True)
    conditions = [describe(m.rule.when) for m in variant.matches] or [
        "never: the policy has no rules"
    ]
    yield _text(MARGIN, 50, f"skip while {'; '.join(conditions)}"[: int(width / 6.4)], color=FAINT)


def _lanes(variant: Variant, table: list[Row]) -> Iterator[str]:
    """A line from each stream's first row to its last."""
    assert variant.program is not None
    for stream in variant.program.streams:
        x, color = _lane(stream.index)
        mine = [i for i, r in enumerate(table) if r.branch.stream == stream.index]
        top, bottom = TOP + ROW * mine[0] - 14, TOP + ROW * mine[-1] + ROW + 6
        yield _line(x, top, x, bottom, color, 2.5)
        name = f"S{stream.index}"
        yield _text(x - 8, top - 6, name, color=color, bold=True)


def _blocks(table: list[Row], boxes: float) -> Iterator[str]:
    for i, row in enumerate(table):
        if row.begins:
            y = TOP + ROW * i
            yield _line(MARGIN, y - 1, boxes + BOX + 8, y - 1, "#e3e7ee")
            count = row.last - row.first + 1
            yield _text(MARGIN, y + 18, f"block {row.blocks}", bold=True)
            if count > 1:
                yield _text(MARGIN, y + 33, f"{count} alike", color=FAINT, size=11)


def _frames(variant: Variant, table: list[Row], boxes: float) -> Iterator[str]:
    """A dashed frame around neighbouring rows that are skipped together, with what is held."""
    first, named = 0, set[tuple[int, ...]]()
    for i in range(1, len(table) + 1):
        if i < len(table) and set(table[i].regions) & set(table[i - 1].regions):
            continue
        found = table[first:i]
        indices = tuple(sorted({r for row in found for r in row.regions}))
        if indices:
            y, h = TOP + ROW * first + 1, ROW * (i - first) - 3
            yield _rect(boxes - 6, y, BOX + 12, h, "none", LANES[0], "5 3")
            size = format_bytes(sum(variant.layout.regions[k].held_bytes for k in indices))
            held = "" if indices in named else f", {size} held"
            named.add(indices)
            words = region_names(indices) + held
            yield _text(boxes + BOX + 18, y + 18, words, color=LANES[0])
        first = i


def _cuts(table: list[Row]) -> Iterator[str]:
    """A bar across a stream where a run of skipped branches begins or ends."""
    before: dict[int, Row] = {}
    for i, row in enumerate(table):
        stream = row.branch.stream
        last = before.get(stream)
        before[stream] = row
        together = last is not None and (
            set(last.regions) & set(row.regions) or not (last.regions or row.regions)
        )
        if last is not None and not together:
            x, color = _lane(stream)
            yield _line(x - 9, TOP + ROW * i, x + 9, TOP + ROW * i, color, 3.5)


def _branch(variant: Variant, row: Row, y: float, boxes: float) -> Iterator[str]:
    branch, middle = row.branch, y + ROW / 2
    x, color = _lane(branch.stream)
    audible = AUDIO in branch.reads
    fill = AUDIBLE if audible else HELD if row.regions else LIVE
    yield _line(x, middle, boxes, middle, CHIPS["audio"] if audible else color, 1.4)
    yield _dot(x, middle, color, filled=True)
    for other in sorted(branch.other_streams):
        there, tint = _lane(other)
        yield _line(there, middle - 5, boxes, middle - 5, tint, 1)
        yield _dot(there, middle - 5, tint, filled=False)
    yield _rect(boxes, y + 4, BOX, ROW - 8, fill, "#c9cfdb")
    yield _text(boxes + 10, y + 19, branch.kind.value)
    at = boxes + 76.0
    for condition in sorted(branch.reads):
        chip = CHIPS.get(condition, FAINT)
        wide = 7.0 * len(condition) + 10
        yield f'<rect x="{at:g}" y="{y + 8:g}" width="{wide:g}" height="14" rx="7" fill="{chip}"/>'
        yield _text(at + 6, y + 18.5, condition, color="white", size=10)
        at += wide + 4
    label = branch.label if len(branch.label) < 26 else "..." + branch.label[-24:]
    yield _text(boxes + BOX - 10, y + 19, label, color=FAINT, size=11, end=True)
    if not row.regions and variant.layout.regions:
        yield _text(boxes + BOX + 18, y + 19, "live" + (": audio, every step" if audible else ""),
                    color=CHIPS["audio"] if audible else FAINT)  # fmt: skip
    cost = f"{row.seconds * 1e3:.3g} ms, {row.flops / 1e6:.3g} MFLOP"
    yield _text(boxes + BOX + NOTE, y + 19, cost, color=FAINT, size=10, end=True)


def _legend(y: float, boxes: float) -> Iterator[str]:
    x = float(MARGIN)
    for fill, words in (
        (AUDIBLE, "reads audio"),
        (HELD, "skipped"),
        (LIVE, "computed on every step"),
    ):
        yield _rect(x, y - 11, 18, 14, fill, "#c9cfdb")
        yield _text(x + 24, y, words)
        x += 40 + 7.0 * len(words)
    yield _rect(x, y - 11, 18, 14, "none", LANES[0], "5 3")
    yield _text(x + 24, y, "one region: computed, or its held residual added")
    yield _text(MARGIN, y + 22, "dot: added to its stream; ring: reads another stream; bar across a stream: a cut, "
                "where what is held begins or ends", color=FAINT, size=11)  # fmt: skip
