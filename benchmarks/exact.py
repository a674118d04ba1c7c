"""``policy="exact"`` against the original model, call by call in turn: how much the exact savings give.

    python benchmarks/exact.py --pairs 30

Two guidance branches, new latents in every call, the conditions the same tensors, as in a sampling
loop. The ratio is the median over pairs of (exact / original) of processor time on one thread; below 1 is
faster. Every output is compared to the bit. Recording and verification happen before the first timed pair.
Models of repositories are measured where SYNCCACHE_WAN22 and its like name checkouts.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import wide_models
from torch import nn

import synccache
from synccache.fx.inputs import flatten
from synccache.portrait import held_out_clips, load_portrait
from synccache.portrait.audio import null_audio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import checkout_models  # the tests' builds of released classes
import real_models
import table_models

Inputs = Callable[[int, float, int], tuple[tuple[Any, ...], dict[str, Any]]]
Conditions = dict[str, list[str]] | None


def portrait_case() -> tuple[nn.Module, Inputs]:
    """The trained portrait model with a held-out voice."""
    portrait, clip = load_portrait(), held_out_clips(1)[0]
    reference, audio = clip.reference_latent[None], clip.audio[None]
    voices = (audio, null_audio(audio))

    def inputs(seed: int, timestep: float, branch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        noise = torch.randn(
            1, len(clip.reference_latent), 8, 8, 8, generator=torch.Generator().manual_seed(seed)
        )
        return (noise, torch.tensor([timestep / 1000]), voices[branch], reference), {}

    return portrait.model, inputs


def checkout_cases() -> Iterator[tuple[str, nn.Module, Inputs, Conditions]]:
    """Tiny models of the repositories that variables name (tests/checkout_models.py)."""
    for name, variable in checkout_models.VARIABLES.items():
        if variable in os.environ:
            case = checkout_models.build(name, Path(os.environ[variable]).expanduser())
            yield f"{name} (tiny)", case.model, case.inputs, case.conditions


def all_cases() -> Iterator[tuple[str, nn.Module, Inputs, Conditions]]:
    """One after the other, so that one model at a time is in memory."""
    yield "portrait", *portrait_case(), None
    for make in (wide_models.wan_s2v, wide_models.ltx2, wide_models.wan_t2v):
        wide = make()
        yield f"{wide.name} (wide)", wide.model, wide.inputs, wide.conditions
    for name in ("wan_s2v", "wan_t2v", "wan_i2v"):
        case = real_models.build(name)
        yield f"{name} (tiny)", case.model, case.new_inputs, case.conditions
    for name in ("ltx2", "wan_animate"):
        tiny = table_models.build(name)
        yield f"{name} (tiny)", tiny.model, tiny.inputs, tiny.conditions
    yield from checkout_cases()


def pairs(
    model: nn.Module, inputs: Inputs, conditions: Conditions, count: int
) -> tuple[float, float, float, bool]:
    """Median, lowest and highest ratio exact / original, and whether every output had the same bits."""
    compiled = synccache.compile(model, "exact", conditions=conditions)
    ratios, same = [], True
    for i in range(count + 2):
        timestep, branch = 1000.0 - 10.0 * (i // 2), i % 2
        args, kwargs = inputs(i, timestep, branch)
        seconds = {}
        order = (("original", model), ("exact", compiled))
        outputs = {}
        for name, callee in order if i % 4 < 2 else reversed(order):
            started = time.process_time()
            outputs[name] = callee(*args, **kwargs)
            seconds[name] = time.process_time() - started
        found = (flatten(outputs[name])[0] for name in ("original", "exact"))
        same &= all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        if i >= 2:  # the first call of each branch records and fills what is kept
            ratios.append(seconds["exact"] / seconds["original"])
    return statistics.median(ratios), min(ratios), max(ratios), same


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--wide-pairs", type=int, default=10, help="where a forward takes a second")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | exact / original, median | lowest | highest | same bits |\n|---|---|---|---|---|"
    )
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for name, model, inputs, conditions in all_cases():
            slow = "(wide)" in name or "hunyuan" in name  # 3072 channels, as its code insists
            count = options.wide_pairs if slow else options.pairs
            middle, low, high, same = pairs(model, inputs, conditions, count)
            print(
                f"| {name} | {middle:.3f} | {low:.3f} | {high:.3f} | {'yes' if same else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
