"""What a goal buys on the talking portrait: half the compute, spent in four ways.

    python benchmarks/portrait_goals.py --clips 5

One calibration clip; held-out clips sampled uncached and then, from the same noise, at the same share
of the compute (an operation's seconds are taken as even over regions, so that shares are exact): the
same steps for all regions, evenly spaced; a mask for each region, solved for the least predicted drift
(`plan_schedule`); and a planned schedule with fitted weights and no payback (`target_speedup`).
"""

import argparse
import statistics
from dataclasses import replace

import torch
from torch import Tensor

import synccache
from synccache import policies
from synccache.planner.computed_steps import evenly_spaced
from synccache.planner.goals import plan_for_speedup
from synccache.policies.dsl import (
    AUDIO,
    Hold,
    Linear,
    Policy,
    Predictor,
    Rule,
    Steps,
    blocks,
    branches,
    segments,
    step,
)
from synccache.portrait import held_out_clips, load_portrait, psnr, sample
from synccache.portrait.held_out import HeldOutClip
from synccache.portrait.sampler import noise_levels

STEPS, SHIFT, LIVE = 40, 2.0, 0.2  # LIVE: share of a forward that no region skips
SKIP = segments(branches.after(blocks[0]) - branches.reading(AUDIO))


def skipping(reuse: Predictor) -> Policy:
    return Policy("portrait", (Rule(SKIP, step >= 1, reuse),))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    portrait = load_portrait()
    *clips, other = held_out_clips(options.clips + 1)

    def generate(model: torch.nn.Module, clip: HeldOutClip, seed: int) -> Tensor:
        return sample(model, clip.audio[None], clip.reference_latent[None], steps=STEPS,
                      guidance=1.0, shift=SHIFT, seed=seed)  # fmt: skip

    def loop(model: synccache.CachedModel) -> None:
        model.begin(sigmas=noise_levels(STEPS, SHIFT).tolist())
        generate(model, other, 999)

    measured = synccache.calibrate(portrait.model, loop, skipping(Hold()), stride=2)
    assert measured.by_region is not None
    count = len(measured.regions)
    even = replace(measured.by_region, seconds=((1 - LIVE) / count,) * count, fixed_seconds=LIVE)
    measured = replace(measured, by_region=even)
    masks = synccache.plan_schedule(measured, compute_fraction=options.share, warmup_steps=2)
    goal = plan_for_speedup(measured, 1 / options.share)
    spaced = evenly_spaced(STEPS, goal.chosen.computed)
    letters = "".join("C" if i in spaced else "S" for i in range(STEPS))
    print(masks, goal, letters, sep="\n\n", flush=True)
    ways = {
        f"{name}, {predictor}": compiled
        for predictor, reuse in (("reuse", Hold()), ("linear", Linear()))
        for name, compiled in (
            ("evenly spaced", synccache.compile(
                portrait.model, Policy("even", (Rule(SKIP, Steps(letters), reuse),)))),
            ("a mask for each region", synccache.compile(
                portrait.model, skipping(reuse), schedule=masks)),
        )
    }  # fmt: skip
    ways["planned, fitted weights"] = synccache.compile(
        portrait.model, policies.planned(goal.plan, skip=SKIP)
    )
    found: dict[str, list[float]] = {name: [] for name in ways}
    for seed, clip in enumerate(clips):
        frames = []
        for model in (portrait.model, *ways.values()):
            with torch.no_grad():
                latents = generate(model, clip, seed)
                frames.append(portrait.autoencoder.decode(latents)[0].clamp(0, 1))
        for name, cached in zip(ways, frames[1:], strict=True):
            found[name].append(float(psnr(cached, frames[0])))
    print("\n| way | PSNR | worst clip |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.mean(values):.1f} | {min(values):.1f} |")


if __name__ == "__main__":
    main()
