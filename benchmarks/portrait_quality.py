"""Is the portrait model good enough to measure caching on? Lip-sync and picture quality on the held-out clips.

    python benchmarks/portrait_quality.py --clips 16 --steps 40 --guidance 3 --json portrait_quality.json

Prints a table and saves it. No threshold is applied; docs/portrait.md says what to expect.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synccache.portrait import (
    correlation,
    held_out_clips,
    load_portrait,
    mouth_opening_trace,
    psnr,
    sample,
    ssim,
)
from synccache.portrait.held_out import HeldOutClip


@dataclass(frozen=True, slots=True)
class Row:
    """Pearson correlations with the opening that drove the clip, and picture quality of the tokenizer in dB."""

    name: str
    real: float
    tokenizer: float
    sampled: float
    shuffled_with_own_audio: float
    shuffled_with_given_audio: float
    tokenizer_psnr: float
    tokenizer_person_psnr: float
    tokenizer_mouth_psnr: float
    tokenizer_ssim: float
    reference_psnr: float
    sampled_psnr: float


def lip_sync(frames: Tensor, clip: HeldOutClip, opening: Tensor) -> float:
    """Correlation of the mouth's dark area in `frames` with an opening."""
    return correlation(mouth_opening_trace(frames, clip.mouth_box), opening)


def box_mask(clip: HeldOutClip) -> Tensor:
    """1 inside the clip's mouth box [1, 64, 64]."""
    mask = torch.zeros(1, *clip.frames.shape[-2:])
    top, bottom, left, right = clip.mouth_box
    mask[:, top:bottom, left:right] = 1.0
    return mask


def contact_sheet(clips: list[Tensor], path: Path, scale: int = 2) -> None:
    """One clip per row, frames from left to right."""
    grid = torch.stack(clips).permute(0, 3, 1, 4, 2)
    rows = (
        (grid.reshape(grid.shape[0] * grid.shape[1], -1, 3).clamp(0, 1) * 255)
        .round()
        .byte()
        .numpy()
    )
    picture = Image.fromarray(rows)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS).save(
        path
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--shift", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--sheet", type=Path, help="write real, tokenizer and sampled frames as a PNG"
    )
    options = parser.parse_args()
    portrait, clips = load_portrait(), held_out_clips(options.clips)
    rows, sheets, seconds = [], [], []
    for index, clip in enumerate(clips):
        other = clips[(index + 1) % len(clips)]

        def generate(audio: Tensor, clip: HeldOutClip = clip, index: int = index) -> Tensor:
            latents = sample(
                portrait.model,
                audio[None],
                clip.reference_latent[None],
                steps=options.steps,
                guidance=options.guidance,
                shift=options.shift,
                seed=options.seed + index,
            )
            return portrait.autoencoder.decode(latents)[0]

        decoded = portrait.autoencoder.decode(portrait.autoencoder.encode(clip.frames[None]))[0]
        started = time.perf_counter()
        sampled = generate(clip.audio)
        seconds.append(time.perf_counter() - started)
        shuffled = generate(other.audio)
        still = clip.reference[None].expand_as(clip.frames)
        rows.append(
            Row(
                clip.name,
                lip_sync(clip.frames, clip, clip.opening),
                lip_sync(decoded, clip, clip.opening),
                lip_sync(sampled, clip, clip.opening),
                lip_sync(shuffled, clip, clip.opening),
                lip_sync(shuffled, clip, other.opening),
                psnr(decoded, clip.frames),
                psnr(decoded, clip.frames, clip.person),
                psnr(decoded, clip.frames, box_mask(clip)),
                ssim(decoded, clip.frames),
                psnr(still, clip.frames),
                psnr(sampled, clip.frames),
            )
        )
        sheets += [clip.frames, decoded, sampled]
        print(
            " ".join(
                f"{value:.3f}" if isinstance(value, float) else value
                for value in asdict(rows[-1]).values()
            ),
            flush=True,
        )
    names = [name for name in asdict(rows[0]) if name != "name"]
    mean = {name: float(np.mean([asdict(row)[name] for row in rows])) for name in names}
    median = float(np.median(seconds))
    print(
        f"\n{len(rows)} clips, {options.steps} steps, guidance {options.guidance}, shift {options.shift}; "
        f"median {median:.1f} s per window of 16 frames"
    )
    for name in names:
        print(f"{name:28s} {mean[name]:8.3f}")
    if options.json:
        setting = {
            key: value for key, value in vars(options).items() if not isinstance(value, Path)
        }
        options.json.write_text(
            json.dumps(
                {
                    "setting": setting,
                    "mean": mean,
                    "seconds_per_window": median,
                    "clips": [asdict(row) for row in rows],
                },
                indent=1,
            )
            + "\n"
        )
    if options.sheet:
        contact_sheet(sheets, options.sheet)


if __name__ == "__main__":
    main()
