"""Released classes wide enough that multiplications, not Python, take the time: about a second a
forward on one core. Random weights; conditions stay the same tensors, as in a sampling loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from diffsynth_s2v import wan_s2v_module

Inputs = Callable[[int, float, int], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Wide:
    """A model in evaluation mode; inputs(seed, timestep, guidance branch)."""

    name: str
    model: nn.Module
    inputs: Inputs
    conditions: dict[str, list[str]] | None = None


def normal(seed: int, *shape: int) -> Tensor:
    """Seeded noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wan_t2v() -> Wide:
    """diffusers' Wan text-to-video: 8 blocks, 768 channels, 576 tokens."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=128, ffn_dim=3072, num_layers=8, text_dim=512
    )
    texts = [normal(k, 1, 128, 512) for k in range(2)]

    def inputs(seed: int, timestep: float, branch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (normal(100 + seed, 1, 16, 4, 24, 24), torch.tensor([timestep]), texts[branch]), {}

    return _wide("wan_t2v", model, inputs)


def wan_s2v(*, blocks: int = 8, heads: int = 5, head: int = 128, side: int = 24) -> Wide:
    """diffsynth's Wan2.2-S2V, audio injected after every third block: 640 channels, 720 tokens."""
    torch.manual_seed(0)
    frames, width = 4, heads * head
    model = wan_s2v_module().WanS2VModel(
        dim=width, in_dim=16, ffn_dim=4 * width, out_dim=16, text_dim=512, freq_dim=64, eps=1e-6,
        patch_size=(1, 2, 2), num_heads=heads, num_layers=blocks, cond_dim=16, audio_dim=256,
        num_audio_token=4, audio_inject_layers=list(range(0, blocks, 3)),
    )  # fmt: skip
    speech = normal(2, 1, 25, 256, 4 * frames)
    texts, speeches = [normal(k, 1, 128, 512) for k in range(2)], [speech, 0.0 * speech]
    motion, pose = [normal(3, 16, 19, side, side)], normal(4, 1, 16, frames, side, side)
    reference = normal(5, 1, 16, 1, side, side)

    def inputs(seed: int, timestep: float, branch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latents = normal(100 + seed, 1, 16, frames, side, side)
        return (), {
            "latents": torch.cat([reference, latents], dim=2),
            "timestep": torch.tensor([timestep]),
            "context": texts[branch],
            "audio_input": speeches[branch],
            "motion_latents": motion,
            "pose_cond": pose,
        }

    return _wide("wan_s2v", model, inputs)


def ltx2() -> Wide:
    """diffusers' LTX-2: a video stream of 768 channels and an audio stream of 384."""
    torch.manual_seed(0)
    frames, side, sound = 4, 12, 32
    model = LTX2VideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=12, attention_head_dim=64,
        cross_attention_dim=768, audio_in_channels=16, audio_out_channels=16,
        audio_num_attention_heads=12, audio_attention_head_dim=32, audio_cross_attention_dim=384,
        num_layers=6, caption_channels=512,
    )  # fmt: skip
    texts = [(normal(k, 1, 128, 512), normal(k + 2, 1, 128, 512)) for k in range(2)]

    def inputs(seed: int, timestep: float, branch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {
            "hidden_states": normal(100 + seed, 1, frames * side * side, 16),
            "audio_hidden_states": normal(200 + seed, 1, sound, 16),
            "encoder_hidden_states": texts[branch][0],
            "audio_encoder_hidden_states": texts[branch][1],
            "timestep": torch.tensor([timestep]),
            "sigma": torch.tensor([timestep]),
            "num_frames": frames,
            "height": side,
            "width": side,
            "audio_num_frames": sound,
        }

    text = ["encoder_hidden_states", "audio_encoder_hidden_states"]
    return _wide("ltx2", model, inputs, {"text": text, "audio": ["audio_hidden_states"]})


def _wide(
    name: str, model: nn.Module, inputs: Inputs, conditions: dict[str, list[str]] | None = None
) -> Wide:
    return Wide(name, model.eval().requires_grad_(False), inputs, conditions)
