"""What caching does to the talking portrait: every policy against the uncached output, same noise.

    python benchmarks/portrait_caching.py --clips 16 --json portrait_caching.json
    python benchmarks/portrait_caching.py --tune --policy "asymmetric(threshold=0.3)" ...

Clips are the held-out ones; --tune gives them other noise, for choosing thresholds. A clip is sampled
uncached and then with each policy. Columns: x = share of visual FLOPs executed,
PSNR of whole frame / person / mouth box in dB, mouth-area error in %, correlation of the mouth traces
(compiled with uncached), uncached / compiled seconds, and the ratios that the recorded seconds and the
FLOPs of what was executed allow.
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
from synccache.fx.report import Stats
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

DEFAULT = (
    "asymmetric()",
    "asymmetric(reuse=Linear())",
    "first_block_cache(threshold=0.15)",
)
MEANS = ("executed", "flops", "seconds", "psnr", "person", "mouth", "mouth_error", "trace")
TUNING_SEED = 1000  # other noise and other references than the held-out table


@dataclass(frozen=True, slots=True)
class Row:
    """One clip under one policy."""

    clip: str
    executed: float
    flops: float
    seconds: float
    psnr: float
    person: float
    mouth: float
    mouth_error: float
    trace: float
    ratio: float
    decisions: str


def measure(
    clip: HeldOutClip, plain: tuple[Tensor, float], cached: tuple[Tensor, float], stats: Stats
) -> Row:
    """One compiled run (frames, seconds) against the uncached one."""
    box = torch.zeros(1, CONFIG.image_size, CONFIG.image_size)
    top, bottom, left, right = clip.mouth_box
    box[:, top:bottom, left:right] = 1.0
    (before, slow), (after, fast) = plain, cached
    traces = [mouth_opening_trace(frames, clip.mouth_box) for frames in (after, before)]
    return Row(
        clip=clip.name, executed=stats.executed_fraction, flops=stats.flops_fraction,
        seconds=stats.seconds_fraction,
        psnr=psnr(after, before), person=psnr(after, before, clip.person), mouth=psnr(after, before, box),
        mouth_error=mouth_area_error(*traces), trace=correlation(*traces), ratio=slow / fast,
        decisions=next(iter(stats.decisions.values())),
    )  # fmt: skip


def policy_named(text: str) -> dsl.Policy:
    """``asymmetric(threshold=0.3)`` with the words of the policy language at hand."""
    return eval(text, {**vars(dsl), **policies.LIBRARY})


def generate(model: torch.nn.Module, clip: HeldOutClip, decode: Callable[[Tensor], Tensor],
             options: argparse.Namespace, seed: int) -> tuple[Tensor, float]:  # fmt: skip
    """Frames in [0, 1] and the seconds that sampling took."""
    started = time.perf_counter()
    latents = sample(model, clip.audio[None], clip.reference_latent[None], steps=options.steps,
                     guidance=options.guidance, seed=seed)  # fmt: skip
    seconds = time.perf_counter() - started
    with torch.no_grad():
        return decode(latents)[0].clamp(0, 1), seconds


def recorded(
    model: torch.nn.Module, policy: dsl.Policy, clip: HeldOutClip, ratio: float | None
) -> synccache.CachedModel:
    """The compiled model, its two guidance branches recorded and planned before anything is timed."""
    compiled = synccache.compile(
        model, policy, cache_ratio=ratio, masks={"person": clip.person_tokens}
    )
    sample(model, clip.audio[None], clip.reference_latent[None], steps=1, seed=0)  # warm
    sample(compiled, clip.audio[None], clip.reference_latent[None], steps=2, seed=0)
    compiled.reset()
    return compiled


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument(
        "--policy", action="append", help="a call from the policy library; may be repeated"
    )
    parser.add_argument("--cache-ratio", type=float)
    parser.add_argument("--tune", action="store_true", help="other noise: for choosing thresholds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    portrait = load_portrait()
    names = tuple(options.policy or DEFAULT)
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for i, clip in enumerate(held_out_clips(options.clips)):
        seed = (TUNING_SEED if options.tune else 0) + i
        models = {
            name: recorded(portrait.model, policy_named(name), clip, options.cache_ratio)
            for name in names
        }
        plain = generate(portrait.model, clip, portrait.autoencoder.decode, options, seed)
        for name, model in models.items():
            cached = generate(model, clip, portrait.autoencoder.decode, options, seed)
            rows[name].append(measure(clip, plain, cached, model.stats()))
            row = rows[name][-1]
            print(
                f"{clip.name} {name}: x {row.executed:.3f} PSNR {row.psnr:.1f} area {row.mouth_error:.2f} % "
                f"trace {row.trace:.4f} ratio {row.ratio:.2f} of {1 / row.seconds:.2f} "
                f"({1 / row.flops:.2f}) {row.decisions}",
                flush=True,
            )
    print(
        "\n| policy | x | PSNR | worst | person | mouth | area % | trace | worst | ratio | seconds | FLOPs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    saved = {}
    for name in names:
        mean = {k: statistics.mean(getattr(r, k) for r in rows[name])
                for k in MEANS}  # fmt: skip
        ratio = statistics.median(r.ratio for r in rows[name])
        worst = min(r.psnr for r in rows[name]), min(r.trace for r in rows[name])
        print(
            f"| `{name}` | {mean['executed']:.3f} | {mean['psnr']:.1f} | {worst[0]:.1f} | {mean['person']:.1f} | "
            f"{mean['mouth']:.1f} | {mean['mouth_error']:.2f} | {mean['trace']:.4f} | {worst[1]:.4f} | "
            f"{ratio:.2f} | {1 / mean['seconds']:.2f} | {1 / mean['flops']:.2f} |"
        )
        saved[name] = {
            "mean": mean,
            "median_ratio": ratio,
            "clips": [asdict(r) for r in rows[name]],
        }
    if options.json:
        settings = {k: str(v) for k, v in vars(options).items()}
        options.json.write_text(
            json.dumps({"options": settings, "policies": saved}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
