"""Does measured drift choose the right segments? Every partition of the portrait's gaps, run and compared.

    python benchmarks/portrait_segments.py --clips 6

The portrait has 5 gaps with 4 audio groups between them: 16 partitions, so all are tried instead of
some at random. A clip is sampled uncached, then with each partition under one step mask (8 steps of
warm-up, then one step in --every computed), from the same noise.

1. Spearman's rank correlation, over the 16 partitions, of the drift measured in the warm-up of the
   first trajectory (sampled numbers) with that of a full calibration run (every 4th token), and of
   both with the final error.
2. Final error at equal bytes (equal numbers of segments): chosen by the dynamic program from either
   drift, evenly spread (the assumption without drift), the mean over all partitions (what a random
   one gives), and the best there is.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor, nn

import synccache
from synccache.planner import segment_table
from synccache.planner.calibration import Calibration
from synccache.planner.problem import assumed_drift
from synccache.policies.dsl import AUDIO, Hold, Policy, Rule, Steps, blocks, branches, segments
from synccache.portrait import held_out_clips, load_portrait, psnr, sample
from synccache.portrait.held_out import HeldOutClip

WARM_UP = 8
SKIP = segments(branches.after(blocks[0]) - branches.reading(AUDIO))
Cuts = tuple[int, ...]
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """One partition on one clip. Units: error as relative L1 of latents, quality in dB of frames."""

    cuts: Cuts
    error: float
    quality: float


def drift_of(table: Table, cuts: Cuts) -> float:
    """What the planner would print for these cuts."""
    return sum(table[i][j] for i, j in pairwise(cuts))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [
        ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values
    ]  # index counts from 0: first rank - 1, plus the mean of 1..count


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Rank correlation in [-1, 1]."""
    return statistics.correlation(ranks(left), ranks(right))


def masked(steps: int, every: int) -> Policy:
    """Warm-up, then one computed step in ``every``."""
    letters = "".join(
        "C" if step < WARM_UP or (step - WARM_UP) % every == every - 1 else "S"
        for step in range(steps)
    )
    return Policy("segments", (Rule(SKIP, Steps(letters), Hold()),))


def all_cuts(gaps: int) -> list[Cuts]:
    """Every partition of the gaps, few segments first."""
    inner = range(1, gaps)
    return [(0, *chosen, gaps) for count in range(gaps) for chosen in combinations(inner, count)]


def wanting(measured: Calibration, cuts: Cuts) -> Calibration:
    """A calibration that makes the planner choose these cuts among those of equal number."""
    wanted = set(pairwise(cuts))
    table = segment_table(len(measured.regions), lambda i, j: float((i, j) not in wanted))
    return Calibration(
        model=measured.model, regions=measured.regions, shape=measured.shape, steps=measured.steps,
        guidance_branches=measured.guidance_branches, stride=measured.stride, drift=table,
    )  # fmt: skip


def generate(model: nn.Module, clip: HeldOutClip, options: argparse.Namespace, seed: int) -> Tensor:
    """Clean latents."""
    return sample(model, clip.audio[None], clip.reference_latent[None], steps=options.steps,
                  guidance=options.guidance, seed=seed)  # fmt: skip


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=3.0)
    options = parser.parse_args()
    portrait = load_portrait()
    policy = masked(options.steps, options.every)
    clips = held_out_clips(options.clips + 1)
    other = clips[-1]  # only calibrated on
    measured = synccache.calibrate(
        portrait.model, lambda m: generate(m, other, options, 999), policy
    )
    tried: dict[int, list[Tried]] = {}
    warm: dict[int, Table] = {}
    whole: dict[int, Table] = {}
    for seed, clip in enumerate(clips[:-1]):
        plain = generate(portrait.model, clip, options, seed)
        frames = portrait.autoencoder.decode(plain)[0].clamp(0, 1).detach()
        first = synccache.compile(portrait.model, policy, cache_ratio=0.4)
        generate(first, clip, options, seed)
        drift = first._request.drift
        assert drift is not None and first.plan.drift_source.value == "warm-up"
        warm[seed] = drift.own
        whole[seed] = synccache.calibrate(
            portrait.model, lambda m, c=clip, s=seed: generate(m, c, options, s), policy
        ).drift
        rows = []
        for cuts in all_cuts(len(measured.regions)):
            model = synccache.compile(
                portrait.model, policy, calibration=wanting(measured, cuts), verify=False,
                cache_ratio=(len(cuts) - 1) / len(measured.regions),
            )  # fmt: skip
            latents = generate(model, clip, options, seed)
            assert model.plan.cuts == cuts, (model.plan.cuts, cuts)
            with torch.no_grad():
                decoded = portrait.autoencoder.decode(latents)[0].clamp(0, 1)
            error = float((latents - plain).abs().sum() / plain.abs().sum())
            rows.append(Tried(cuts, error, psnr(decoded, frames)))
        tried[seed] = rows
        print(f"clip {seed}: {clip.name}", flush=True)
    report(tried, warm, whole, measured.drift)


def report(
    tried: dict[int, list[Tried]], warm: dict[int, Table], whole: dict[int, Table], other: Table
) -> None:
    """Both tables, as in docs/benchmarks.md."""
    print("\n| Spearman over partitions | mean | worst |\n|---|---|---|")
    for name, left, right in (
        ("warm-up drift, full drift of the same run", warm, whole),
        ("warm-up drift, full drift of another clip", warm, dict.fromkeys(warm, other)),
        ("warm-up drift, final error", warm, None),
        ("full drift, final error", whole, None),
    ):
        found = [
            spearman(
                [drift_of(left[seed], row.cuts) for row in rows],
                [row.error if right is None else drift_of(right[seed], row.cuts) for row in rows],
            )
            for seed, rows in tried.items()
        ]
        print(f"| {name} | {statistics.mean(found):.3f} | {min(found):.3f} |")
    print(
        "\n| segments | chosen by | error % | PSNR | best of its clip on |\n|---|---|---|---|---|"
    )
    for count in range(1, len(other)):
        for name, tables in (
            ("DP, warm-up drift", warm),
            ("DP, full drift of another clip", dict.fromkeys(warm, other)),
            ("evenly spread (assumed drift)", dict.fromkeys(warm, even(len(other) - 1))),
            ("random (mean of all)", None),
            ("best there is", {}),
        ):
            print_row(count, name, tables, tried)


def even(gaps: int) -> Table:
    """The planner's assumption where nothing is measured: one audio branch in each live group."""
    return segment_table(gaps, lambda i, j: assumed_drift(j - i - 1))


def print_row(
    count: int, name: str, tables: dict[int, Table] | None, tried: dict[int, list[Tried]]
) -> None:
    errors, qualities, hits = [], [], 0
    for seed, rows in tried.items():
        same = [row for row in rows if len(row.cuts) - 1 == count]
        best = min(same, key=lambda row: row.error)
        if tables is None:
            errors.append(statistics.mean(row.error for row in same))
            qualities.append(statistics.mean(row.quality for row in same))
            continue
        chosen = min(same, key=lambda row: drift_of(tables[seed], row.cuts)) if tables else best
        errors.append(chosen.error)
        qualities.append(chosen.quality)
        hits += chosen.cuts == best.cuts
    on = "" if tables is None else f"{hits}/{len(tried)}"
    print(
        f"| {count} | {name} | {100 * statistics.mean(errors):.3f} | "
        f"{statistics.mean(qualities):.2f} | {on} |"
    )


if __name__ == "__main__":
    main()
