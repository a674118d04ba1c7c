"""What caching does to the talking portrait: every policy against the uncached output, same noise.

    python benchmarks/portrait_caching.py --clips 16 --json portrait_caching.json
    python benchmarks/portrait_caching.py --tune --policy "asymmetric(threshold=0.3)" ...

Clips are the held-out ones; with --tune six others, so that thresholds are not chosen on what is
reported. Uncached and compiled runs of a clip alternate. Columns: x = share of visual FLOPs executed,
PSNR of whole frame / person / mouth box in dB, mouth-area error in %, correlation of the mouth traces
(compiled with uncached), seconds ratio uncached / compiled and the ratio that the executed FLOPs allow.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import synccache
from synccache import policies
from synccache.policies import dsl
from synccache.portrait import (
    CONFIG,
    correlation,
    held_out_clips,
    load_portrait,
    mouth_area_error,
    mouth_opening_trace,
    psnr,
    sample,
)
from synccache.portrait.held_out import HeldOutClip

DEFAULT = ("asymmetric()", "exact()", "first_block_cache(threshold=0.15)")
TUNING_SEED = 1000  # other noise and other references than the held-out table


@dataclass(frozen=True, slots=True)
class Row:
    """One clip under one policy."""

    clip: str
    executed: float
    flops: float
    psnr: float
    person: float
    mouth: float
    mouth_error: float
    trace: float
    ratio: float
    decisions: str


def measure(clip: HeldOutClip, model: torch.nn.Module, compiled: torch.nn.Module, decode: Callable[[Tensor], Tensor],
            options: argparse.Namespace, seed: int) -> Row:  # fmt: skip
    """One clip, uncached and compiled from the same noise, one after the other."""

    def run(denoiser: torch.nn.Module) -> tuple[Tensor, float]:
        started = time.perf_counter()
        latents = sample(denoiser, clip.audio[None], clip.reference_latent[None], steps=options.steps,
                         guidance=options.guidance, seed=seed)  # fmt: skip
        seconds = time.perf_counter() - started
        return decode(latents)[0].clamp(0, 1), seconds

    plain, slow = run(model)
    cached, fast = run(compiled)
    stats = compiled.stats()
    box = torch.zeros(1, CONFIG.image_size, CONFIG.image_size)
    top, bottom, left, right = clip.mouth_box
    box[:, top:bottom, left:right] = 1.0
    before, after = (mouth_opening_trace(f, clip.mouth_box) for f in (plain, cached))
    return Row(
        clip=clip.name, executed=stats.executed_fraction, flops=stats.flops_fraction, psnr=psnr(cached, plain),
        person=psnr(cached, plain, clip.person), mouth=psnr(cached, plain, box),
        mouth_error=mouth_area_error(after, before), trace=correlation(after, before), ratio=slow / fast,
        decisions=next(iter(stats.decisions.values())),
    )  # fmt: skip


def policy_named(text: str) -> dsl.Policy:
    """``asymmetric(threshold=0.3)`` with the words of the policy language at hand."""
    return eval(text, {**vars(dsl), **policies.LIBRARY})


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--policy", action="append", help="a call from the policy library; may be repeated")
    parser.add_argument("--cache-ratio", type=float)
    parser.add_argument("--tune", action="store_true", help="other noise; for choosing thresholds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    portrait = load_portrait()
    clips = held_out_clips(options.clips)
    saved = {}
    print(f"{'policy':<58} {'x':>6} {'PSNR':>6} {'person':>6} {'mouth':>6} {'area %':>6} {'trace':>7} {'ratio':>6} {'flops':>5}")
    for text in options.policy or DEFAULT:
        rows = []
        for i, clip in enumerate(clips):
            masked = synccache.compile(portrait.model, policy_named(text), cache_ratio=options.cache_ratio,
                                       masks={"person": clip.person_tokens})  # fmt: skip
            warm = (torch.randn(1, *clip.reference_latent.shape[:1], 8, 8, 8), torch.tensor([1.0]))
            with torch.no_grad():
                masked(*warm, clip.audio[None], clip.reference_latent[None])  # records, not timed
            masked.reset()
            seed = (TUNING_SEED if options.tune else 0) + i
            rows.append(measure(clip, portrait.model, masked, portrait.autoencoder.decode, options, seed))
        mean = {k: statistics.mean(getattr(r, k) for r in rows)
                for k in ("executed", "flops", "psnr", "person", "mouth", "mouth_error", "trace", "ratio")}  # fmt: skip
        print(f"{text[:58]:<58} {mean['executed']:6.3f} {mean['psnr']:6.1f} {mean['person']:6.1f} {mean['mouth']:6.1f} "
              f"{mean['mouth_error']:6.2f} {mean['trace']:7.4f} {mean['ratio']:6.2f} {1 / mean['flops']:5.2f}", flush=True)
        print(f"    worst trace {min(r.trace for r in rows):.4f}, worst PSNR {min(r.psnr for r in rows):.1f}; "
              f"first clip {rows[0].decisions}", flush=True)
        saved[text] = {"mean": mean, "clips": [asdict(r) for r in rows]}
    if options.json:
        options.json.write_text(json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "policies": saved}, indent=1))


if __name__ == "__main__":
    main()
