"""Released transformers in a size that runs on any machine, with random weights: for trying policies.

    model, inputs = tiny_wan()
    model(**inputs(1.0, 0))       # noise level 1, guidance branch 0

``inputs(noise, branch)`` gives the keyword arguments of one call: the sample lies on the straight way
from noise (1.0) to a picture (0.0), the same for both branches; the prompt is the branch's own.
Figures measured on these models say what a policy does, not how a trained model would look with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

__all__ = ["TINY_MODELS", "tiny_flux", "tiny_hunyuan_video", "tiny_wan"]

Inputs = Callable[[float, int], dict[str, Any]]

BLOCKS = 8  # so that published settings such as DBCache's F4B2 leave something between
TEXT, POOLED = 16, 12  # channels of a prompt's embeddings, and of their pooled form
SEED = 0
GAIN = 1.5  # default initialisation leaves blocks faint: everything would be skipped


def tiny_wan() -> tuple[nn.Module, Inputs]:
    """Wan text-to-video: 8 blocks of self-attention, cross-attention and MLP; 192 tokens of 24."""
    model = _seeded(
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=TEXT,
            freq_dim=32,
            ffn_dim=48,
            num_layers=BLOCKS,
            rope_max_seq_len=32,
        )
    )
    prompts = [_normal(10 + branch, 1, 5, TEXT) for branch in range(2)]
    sample = _path(1, 4, 3, 16, 16)

    def inputs(noise: float, branch: int) -> dict[str, Any]:
        return {
            "hidden_states": sample(noise),
            "timestep": torch.tensor([1000 * noise]),
            "encoder_hidden_states": prompts[branch],
        }

    return model, inputs


def tiny_hunyuan_video() -> tuple[nn.Module, Inputs]:
    """HunyuanVideo: 4 double and 4 single blocks over picture and text tokens."""
    model = _seeded(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=BLOCKS // 2,
            num_single_layers=BLOCKS // 2,
            num_refiner_layers=1,
            patch_size=2,
            text_embed_dim=TEXT,
            pooled_projection_dim=POOLED,
            rope_axes_dim=(4, 6, 6),
        )
    )
    prompts = [_normal(10 + branch, 1, 6, TEXT) for branch in range(2)]
    pooled = [_normal(20 + branch, 1, POOLED) for branch in range(2)]
    valid, guidance = torch.ones(1, 6, dtype=torch.int64), torch.tensor([6000.0])
    sample = _path(1, 4, 3, 16, 16)

    def inputs(noise: float, branch: int) -> dict[str, Any]:
        return {
            "hidden_states": sample(noise),
            "timestep": torch.tensor([1000 * noise]),
            "encoder_hidden_states": prompts[branch],
            "encoder_attention_mask": valid,
            "pooled_projections": pooled[branch],
            "guidance": guidance,
        }

    return model, inputs


def tiny_flux() -> tuple[nn.Module, Inputs]:
    """FLUX.1: 3 double and 5 single blocks; its timestep input is the noise level itself."""
    model = _seeded(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=3,
            num_single_layers=BLOCKS - 3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    )
    side = 8
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([0 * rows, rows, columns], dim=-1).reshape(-1, 3).float()
    prompts = [_normal(10 + branch, 1, 6, TEXT) for branch in range(2)]
    pooled = [_normal(20 + branch, 1, POOLED) for branch in range(2)]
    no_places, guidance = torch.zeros(6, 3), torch.tensor([3.5])
    sample = _path(1, side * side, 4)

    def inputs(noise: float, branch: int) -> dict[str, Any]:
        return {
            "hidden_states": sample(noise),
            "timestep": torch.tensor([noise]),
            "encoder_hidden_states": prompts[branch],
            "pooled_projections": pooled[branch],
            "img_ids": places,
            "txt_ids": no_places,
            "guidance": guidance,
        }

    return model, inputs


TINY_MODELS: Mapping[str, Callable[[], tuple[nn.Module, Inputs]]] = MappingProxyType(
    {"tiny-wan": tiny_wan, "tiny-hunyuan-video": tiny_hunyuan_video, "tiny-flux": tiny_flux}
)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = build()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(GAIN)
    return model.eval().requires_grad_(False)


def _path(*shape: int) -> Callable[[float], Tensor]:
    """From noise to a picture; Source: flow matching, x = s * noise + (1 - s) * picture."""
    start, end = _normal(1, *shape), _normal(2, *shape)
    return lambda noise: noise * start + (1 - noise) * end


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
