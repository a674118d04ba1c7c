"""``policy="exact"`` against the original model, call by call in turn: how much the exact savings give.

    python benchmarks/exact.py --pairs 30

Two guidance branches, new latents in every call, the conditions the same tensors, as in a sampling
loop. The ratio is the median over pairs of (exact / original); below 1 is faster. Every output is
compared to the bit. Recording and verification happen before the first timed pair.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

import synccache
from synccache.portrait import held_out_clips, load_portrait
from synccache.portrait.audio import null_audio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models  # the tests' builds of released classes

Inputs = Callable[[int, float, int], tuple[tuple[Any, ...], dict[str, Any]]]


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


def wide_wan() -> tuple[nn.Module, Inputs]:
    """diffusers' Wan wide enough that multiplications, not Python, take the time; random weights."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=64, ffn_dim=1536, num_layers=6, text_dim=512
    ).eval()
    texts = [torch.randn(1, 128, 512) for _ in range(2)]

    def inputs(seed: int, timestep: float, branch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        noise = torch.randn(1, 16, 4, 24, 24, generator=torch.Generator().manual_seed(seed))
        return (noise, torch.tensor([timestep]), texts[branch]), {}

    return model, inputs


def pairs(model: nn.Module, inputs: Inputs, count: int) -> tuple[float, float, float, bool]:
    """Median, lowest and highest ratio exact / original, and whether every output had the same bits."""
    compiled = synccache.compile(model, "exact")
    ratios, same = [], True
    for i in range(count + 2):
        timestep, branch = 1000.0 - 10.0 * (i // 2), i % 2
        args, kwargs = inputs(i, timestep, branch)
        seconds = {}
        order = (("original", model), ("exact", compiled))
        outputs = {}
        for name, callee in order if i % 4 < 2 else reversed(order):
            started = time.perf_counter()
            outputs[name] = callee(*args, **kwargs)
            seconds[name] = time.perf_counter() - started
        same &= torch.equal(
            real_models.tensor_of(outputs["original"]), real_models.tensor_of(outputs["exact"])
        )
        if i >= 2:  # the first call of each branch records and fills what is kept
            ratios.append(seconds["exact"] / seconds["original"])
    return statistics.median(ratios), min(ratios), max(ratios), same


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30)
    options = parser.parse_args()
    cases: list[tuple[str, nn.Module, Inputs]] = [
        ("portrait", *portrait_case()),
        ("wan_t2v (width 384)", *wide_wan()),
    ]
    for name in ("wan_t2v", "wan_i2v", "wan_s2v"):
        case = real_models.build(name)
        cases.append((f"{name} (tiny)", case.model, case.new_inputs))
    print(
        "| model | exact / original, median | lowest | highest | same bits |\n|---|---|---|---|---|"
    )
    with torch.no_grad():
        for name, model, inputs in cases:
            middle, low, high, same = pairs(model, inputs, options.pairs)
            print(
                f"| {name} | {middle:.3f} | {low:.3f} | {high:.3f} | {'yes' if same else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
