"""Planned schedules on the talking portrait, against the best gated and evenly spaced ones.

    python benchmarks/portrait_planned.py run --out planned_runs --cell 40:10:1 --cell 40:13:3
    python benchmarks/portrait_planned.py table --out planned_runs

A cell is steps:computed:guidance. Calibration clips are the shipped demo voices with people of their
own (never among the 16 held-out clips that are measured). One calibration (40 steps, guidance 3) serves
every cell; schedules are chosen closed-loop on the calibration clips, thresholds of gates are solved
there for the same share of visual FLOPs. Every run is appended to runs.jsonl at once, and runs that are
there are not repeated. Guidance 1 means none.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import synccache
from synccache import policies
from synccache.fx.cached_model import CachedModel
from synccache.fx.swap import with_policy
from synccache.planner.computed_steps import Terms, evenly_spaced
from synccache.planner.step_plan import StepPlan
from synccache.policies.dsl import (
    PREVIOUS,
    Linear,
    Payback,
    Policy,
    Rule,
    Taylor,
    accumulated,
    blocks,
    branches,
    modulated,
    relative_l1,
)
from synccache.portrait import (
    CONFIG,
    held_out_clips,
    load_portrait,
    mouth_area_error,
    mouth_opening_trace,
    psnr,
    sample,
)
from synccache.portrait.audio import audio_features, read_wave
from synccache.portrait.data import HELD_OUT_IDENTITIES, draw_clip
from synccache.portrait.held_out import SPEECH
from synccache.portrait.sampler import noise_levels

SHIFT, CALIBRATED_STEPS, CALIBRATED_GUIDANCE = 2.0, 40, 3.0
CALIBRATION_SEED, CALIBRATION_PEOPLE, CALIBRATION_CLIPS = 500, HELD_OUT_IDENTITIES + 500, 3
HALVINGS = 8
CLOSE = 0.01  # share of visual FLOPs: near enough to the one wanted
Cell = tuple[int, int, float]
Clip = tuple[Tensor, Tensor]


def teacache_linear(threshold: float) -> Policy:
    """TeaCache's gate on the modulated input of block 0, with linear prediction; identity polynomial."""
    moved = accumulated(relative_l1(modulated(blocks[0]), since=PREVIOUS))
    return Policy("teacache_linear", (Rule(branches, moved <= threshold, Linear()),))


def first_block_linear(threshold: float) -> Policy:
    """First-Block Cache with linear prediction."""
    (rule,) = policies.first_block_cache(threshold).rules
    return Policy("first_block_linear", (Rule(rule.skip, rule.when, Linear()),))


def magcache_linear(threshold: float) -> Policy:
    """MagCache's rule with the magnitudes of this model, from the calibration, and linear prediction."""
    gram = calibration(FOLDER[0]).residuals
    sizes = [gram.products[t][t] ** 0.5 for t in range(gram.steps)]
    ratios = (1.0, *(b / a for a, b in pairwise(sizes)))
    (rule,) = policies.magcache(threshold, ratios=ratios, max_skips=12, retention=0.05).rules
    return Policy("magcache_linear", (Rule(rule.skip, rule.when, Linear()),))


def easycache_linear(threshold: float) -> Policy:
    """EasyCache on the whole network, with a warm-up of two steps and linear prediction."""
    policy = policies.easycache(threshold, warmup=2)
    (rule,) = policy.rules
    return policy.with_(name="easycache_linear", rules=(Rule(rule.skip, rule.when, Linear()),))


GATED: dict[str, Callable[[float], Policy]] = {
    "teacache gate, linear": teacache_linear,
    "first-block gate, linear": first_block_linear,
    "asymmetric, linear": lambda t: policies.asymmetric(t, reuse=Linear()),
    "magcache gate, linear": magcache_linear,
    "easycache gate, linear": easycache_linear,
    "seacache, linear": lambda t: policies.seacache(t, max_skips=12, reuse=Linear()),
    "dicache": lambda t: policies.dicache(t, retention=0.05),
    "confidence_taylor": lambda t: policies.confidence_taylor(t, warmup=2),
}
WITHOUT = "planned, without payback"
FOLDER: list[Path] = []  # where the calibration lies


def letters(steps: int, computed: tuple[int, ...]) -> str:
    return "".join("C" if i in computed else "S" for i in range(steps))


def usual(steps: int, count: int) -> tuple[int, ...]:
    """The first two steps and the last are computed, the others evenly between."""
    if count < 4:
        return evenly_spaced(steps, count)
    inner = [1 + round((steps - 2) * i / (count - 2)) for i in range(1, count - 2)]
    return tuple(sorted({0, 1, *inner, steps - 1}))


def uniform(steps: int, count: int) -> dict[str, Policy]:
    even = letters(steps, evenly_spaced(steps, count))
    return {
        "evenly spaced, linear": policies.step_mask(even, reuse=Linear()),
        "evenly spaced, reuse": policies.step_mask(even),
        "evenly spaced, linear, payback 0.5": policies.step_mask(even, reuse=Linear()).with_(
            payback=Payback(0.5)
        ),
        "evenly spaced, taylor 2": policies.step_mask(even, reuse=Taylor(2)),
        "taylorseer_lite": policies.taylorseer_lite(round(steps / count), order=1, first=1),
        "warm-up 2, even, linear": policies.step_mask(
            letters(steps, usual(steps, count)), reuse=Linear()
        ),
    }


# ---- clips and runs


@cache
def portrait() -> object:
    return load_portrait()


@cache
def calibration_clips() -> tuple[Clip, ...]:
    found = []
    for i in range(CALIBRATION_CLIPS):
        samples, rate = read_wave(SPEECH / f"demo_{i + 1}.wav")
        clip = draw_clip(CALIBRATION_PEOPLE + i, audio_features(samples, rate), 20 + 10 * i)
        with torch.no_grad():
            found.append((clip.audio, portrait().autoencoder.encode_image(clip.reference[None])[0]))
    return tuple(found)


def denoise(clip: Clip, seed: int, steps: int, guidance: float, model: torch.nn.Module) -> Tensor:
    return sample(
        model, clip[0][None], clip[1][None], steps=steps, guidance=guidance, shift=SHIFT, seed=seed
    )


def levels(steps: int) -> tuple[float, ...]:
    return tuple(noise_levels(steps, SHIFT).tolist())


def calibration(folder: Path) -> synccache.Calibration:
    path = folder / "calibration.json"
    if not path.exists():

        def run(model: CachedModel) -> None:
            for i, clip in enumerate(calibration_clips()):
                model.begin(sigmas=levels(CALIBRATED_STEPS))
                denoise(clip, CALIBRATION_SEED + i, CALIBRATED_STEPS, CALIBRATED_GUIDANCE, model)

        started = time.perf_counter()
        synccache.calibrate(portrait().model, run, policies.step_mask("CS")).save(path)
        print(f"calibrated in {time.perf_counter() - started:.0f} s", flush=True)
    return synccache.Calibration.load(path)


class Bench:
    """Runs of one cell."""

    def __init__(self, folder: Path, cell: Cell, clips: int) -> None:
        self.folder, self.cell, self.clips = folder, cell, clips
        self.steps, self.computed, self.guidance = cell
        self.name = f"{self.steps}:{self.computed}:{self.guidance:g}"
        self.base = synccache.compile(portrait().model, "exact")
        denoise(calibration_clips()[0], 0, 1, self.guidance, self.base)  # records
        self.done = {(r["cell"], r["policy"], r["clip"]) for r in rows(folder)}

    def run(self, policy: Policy, clip: Clip, seed: int) -> tuple[Tensor, CachedModel]:
        model = with_policy(self.base, policy)
        model.begin(sigmas=levels(self.steps))
        return denoise(clip, seed, self.steps, self.guidance, model), model

    def share(self, policy: Policy) -> float:
        """Of visual FLOPs executed on the first calibration clip."""
        clip = calibration_clips()[0]
        return self.run(policy, clip, CALIBRATION_SEED)[1].stats().executed_fraction

    def threshold(self, name: str) -> float:
        """At which a gate executes the share of visual FLOPs that this cell allows."""
        path = self.folder / "thresholds.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if f"{self.name} {name}" not in known:
            low, high = math.log(1e-3), math.log(10.0)
            wanted, best = self.computed / self.steps, (math.inf, 0.0)
            for _ in range(HALVINGS):
                middle = math.exp((low + high) / 2)
                share = self.share(GATED[name](middle))
                best = min(best, (abs(share - wanted), middle))
                if best[0] < CLOSE:
                    break
                low, high = (math.log(middle), high) if share > wanted else (low, math.log(middle))
            known[f"{self.name} {name}"] = best[1]
            path.write_text(json.dumps(known, indent=1))
        return known[f"{self.name} {name}"]

    def chosen(
        self, moves: int, strengths: tuple[float, ...], early: tuple[float, ...]
    ) -> StepPlan:
        """The plan that came closest on the calibration clips."""
        path = self.folder / f"plan_{self.name.replace(':', '_')}.json"
        if not path.exists():
            runs = [
                partial(denoise, clip, CALIBRATION_SEED + i, self.steps, self.guidance)
                for i, clip in enumerate(calibration_clips())
            ]
            started = time.perf_counter()
            found = synccache.choose_schedule(
                portrait().model, runs, calibration(self.folder), computed=self.computed,
                sigmas=levels(self.steps), terms=(Terms.LINEAR, Terms.FITTED_3), moves=moves,
                gates=(teacache_linear,), base=self.base, strengths=strengths, early=early,
                finalists=3,
            )  # fmt: skip
            print(f"{self.name}: {found}\nin {time.perf_counter() - started:.0f} s", flush=True)
            found.plan.save(path)
            (path.with_suffix(".txt")).write_text(f"{found}\n")
        return StepPlan.load(path)

    def reference(self, index: int) -> Tensor:
        """Uncached frames of a held-out clip."""
        path = self.folder / f"uncached_{self.steps}_{self.guidance:g}_{index}.pt"
        if not path.exists():
            clip = held_out()[index]
            model = with_policy(self.base, policies.exact())
            latents = denoise(
                (clip.audio, clip.reference_latent), index, self.steps, self.guidance, model
            )
            torch.save(latents, path)
        return frames(torch.load(path))

    def measure(self, name: str, policy: Policy) -> None:
        for index in range(self.clips):
            if (self.name, name, index) in self.done:
                continue
            clip, before = held_out()[index], self.reference(index)
            latents, model = self.run(policy, (clip.audio, clip.reference_latent), index)
            after, stats = frames(latents), model.stats()
            box = torch.zeros(1, CONFIG.image_size, CONFIG.image_size)
            top, bottom, left, right = clip.mouth_box
            box[:, top:bottom, left:right] = 1.0
            traces = [mouth_opening_trace(f, clip.mouth_box) for f in (after, before)]
            row = {
                "cell": self.name, "policy": name, "clip": index, "psnr": psnr(after, before),
                "mouth": psnr(after, before, box), "area": mouth_area_error(*traces),
                "executed": stats.executed_fraction, "flops": stats.flops_fraction,
                "decisions": next(iter(stats.decisions.values())),
            }  # fmt: skip
            with (self.folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        found = [r for r in rows(self.folder) if (r["cell"], r["policy"]) == (self.name, name)]
        mean = statistics.mean(r["psnr"] for r in found)
        print(f"{self.name} {name}: {mean:.1f} dB over {len(found)} clips", flush=True)


@cache
def held_out() -> tuple[object, ...]:
    return held_out_clips()


def frames(latents: Tensor) -> Tensor:
    with torch.no_grad():
        return portrait().autoencoder.decode(latents)[0].clamp(0, 1)


def rows(folder: Path) -> list[dict]:
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- the table


def table(folder: Path) -> Iterator[str]:
    """Mean and worst quarter of PSNR, and the paired gain over the best opponent, by cell."""
    found = rows(folder)
    for cell in dict.fromkeys(r["cell"] for r in found):
        mine = [r for r in found if r["cell"] == cell]
        names = list(dict.fromkeys(r["policy"] for r in mine))
        by = {n: {r["clip"]: r for r in mine if r["policy"] == n} for n in names}
        by = {
            n: clips
            for n, clips in by.items()
            if "planned" not in by or len(clips) >= len(by["planned"])
        }
        yield f"\n{cell} (steps:computed:guidance), {min(map(len, by.values()))} clips"
        yield "| policy | x | FLOPs | PSNR | worst quarter | mouth | area % | planned gains | worst quarter |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for name in sorted(by, key=lambda n: -_mean(by[n], "psnr")):
            clips = by[name]
            gain = ["", ""]
            if "planned" in by and name != "planned":
                shared = sorted(set(clips) & set(by["planned"]))
                gains = [by["planned"][c]["psnr"] - clips[c]["psnr"] for c in shared]
                error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
                gain = [
                    f"{statistics.mean(gains):+.1f} ± {error:.1f}",
                    f"{quarter(by['planned']) - quarter(clips):+.1f}",
                ]
            cells = [f"{_mean(clips, key):.3f}" for key in ("executed", "flops")]
            cells += [
                f"{_mean(clips, 'psnr'):.1f}",
                f"{quarter(clips):.1f}",
                f"{_mean(clips, 'mouth'):.1f}",
            ]
            cells.append(f"{_mean(clips, 'area'):.2f}")
            yield f"| {' | '.join([name, *cells, *gain])} |"


def _mean(clips: dict[int, dict], key: str) -> float:
    return statistics.mean(r[key] for r in clips.values())


def quarter(clips: dict[int, dict]) -> float:
    """Mean PSNR of the quarter of the clips on which this policy is worst."""
    values = sorted(r["psnr"] for r in clips.values())
    return statistics.mean(values[: max(1, len(values) // 4)])


def cell_of(text: str) -> Cell:
    """``steps:computed:guidance``."""
    steps, computed, guidance = text.split(":")
    return int(steps), int(computed), float(guidance)


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cell", action="append", default=[])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--policy", action="append", help="only these names; `planned` is one")
    parser.add_argument("--moves", type=int, default=12)
    parser.add_argument("--strengths", type=float, nargs="+", default=(0.0, 0.5, 1.0))
    parser.add_argument("--early", type=float, nargs="+", default=(0.0, 0.5, 1.0))
    parser.add_argument("--plan-of", help="take the plan that was chosen for this cell")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    FOLDER.append(options.out)
    for text in options.cell if options.what == "run" else ():
        cell = cell_of(text)
        bench = Bench(options.out, cell, options.clips)
        wanted = options.policy or ["planned", *uniform(*cell[:2]), *GATED]
        for name in wanted:
            if name.startswith("planned"):
                source = Bench(options.out, cell_of(options.plan_of or text), options.clips)
                plan = source.chosen(options.moves, tuple(options.strengths), tuple(options.early))
                plan = plan.with_payback(0.0) if name == WITHOUT else plan
                bench.measure(name, policies.planned(plan))
            elif name in GATED:
                bench.measure(name, GATED[name](bench.threshold(name)))
            else:
                bench.measure(name, uniform(*cell[:2])[name])
    print("\n".join(table(options.out)))


if __name__ == "__main__":
    main()
