"""Released model classes from diffusers and diffsynth, each in one small size with random weights.

    case = build("flux")
    args, kwargs = case.inputs(seed=0, timestep=900.0, branch=0, size=0)
    case.model(*args, **kwargs)

``size`` picks one of two input shapes, ``branch`` the prompt. Conditions of one branch and size are
the same tensor objects at every step, as in a denoising loop. Nothing of the libraries is patched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch
from diffsynth_s2v import wan_s2v_module
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
TEXT, POOLED = 16, 12  # channels of text embeddings, and of their pooled form


@dataclass(frozen=True)
class TableCase:
    """A model in evaluation mode, and its inputs by seed, timestep, prompt and size."""

    name: str
    model: nn.Module
    inputs: Callable[..., Inputs]
    conditions: dict[str, list[str]] = field(default_factory=dict)


def build(name: str) -> TableCase:
    """The case of this name; NAMES lists them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs, conditions = _BUILDERS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1.5)  # default weights leave blocks faint
        return TableCase(name, model.eval().requires_grad_(False), inputs, conditions)


@cache
def _fixed(seed: int, *shape: int) -> Tensor:
    """A condition: the same object whenever it is asked for."""
    return _normal(seed, *shape)


@cache
def _mask(valid: int, length: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return (torch.arange(length)[None] < valid).to(dtype)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _time(timestep: float) -> Tensor:
    return torch.tensor([timestep])


_Built = tuple[nn.Module, Callable[..., Inputs], dict[str, list[str]]]
_WAN: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": TEXT, "freq_dim": 32,
    "ffn_dim": 48, "num_layers": 4, "rope_max_seq_len": 32,
}  # fmt: skip


def _wan_t2v() -> _Built:
    model = diffusers.WanTransformer3DModel(**_WAN, in_channels=4, out_channels=4)

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 2 + size, 8, 8),
            "timestep": _time(timestep),
            "encoder_hidden_states": _fixed(100 + branch, 1, 5, TEXT),
        }

    return model, inputs, {}


def _wan_i2v() -> _Built:
    model = diffusers.WanTransformer3DModel(
        **_WAN, in_channels=8, out_channels=4, image_dim=20, added_kv_proj_dim=24
    )

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        first = _fixed(103, 1, 4, 2 + size, 8, 8)
        latents = torch.cat([_normal(seed, 1, 4, 2 + size, 8, 8), first], dim=1)
        text, image = _fixed(100 + branch, 1, 5, TEXT), _fixed(102, 1, 257, 20)
        kwargs = {"encoder_hidden_states_image": image, "return_dict": False}
        return (latents, _time(timestep), text), kwargs

    return model, inputs, {"reference": ["encoder_hidden_states_image"]}


def _wan_vace() -> _Built:
    model = diffusers.WanVACETransformer3DModel(
        **_WAN, in_channels=4, out_channels=4, vace_layers=[0, 2], vace_in_channels=6
    )

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 2 + size, 8, 8),
            "timestep": _time(timestep),
            "encoder_hidden_states": _fixed(100 + branch, 1, 5, TEXT),
            "control_hidden_states": _fixed(104, 1, 6, 2 + size, 8, 8),
            "control_hidden_states_scale": _fixed(105, 2),
        }

    return model, inputs, {"reference": ["control_hidden_states"]}


def _wan_animate() -> _Built:
    model = diffusers.WanAnimateTransformer3DModel(
        **_WAN, in_channels=12, latent_channels=4, out_channels=4, image_dim=20,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16,
        motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16,
        face_encoder_num_heads=2, inject_face_latents_blocks=2,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames = 2 + size
        return (), {
            "hidden_states": _normal(seed, 1, 12, frames + 1, 8, 8),
            "timestep": _time(timestep),
            "encoder_hidden_states": _fixed(100 + branch, 1, 5, TEXT),
            "encoder_hidden_states_image": _fixed(102, 1, 7, 20),
            "pose_hidden_states": _fixed(103, 1, 4, frames, 8, 8),
            "face_pixel_values": _fixed(104, 1, 3, 4 * frames, 16, 16),
        }

    return model, inputs, {"reference": ["encoder_hidden_states_image"]}


def _hunyuan() -> _Built:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=3,
        num_single_layers=3, num_refiner_layers=1, patch_size=2, text_embed_dim=TEXT,
        pooled_projection_dim=POOLED, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 2 + size, 8, 8),
            "timestep": _time(timestep),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "encoder_attention_mask": _mask(6 - branch, 6),
            "pooled_projections": _fixed(110 + branch, 1, POOLED),
            "guidance": _fixed(107, 1),
        }

    return model, inputs, {"text": ["encoder_attention_mask"]}


def _hunyuan15() -> _Built:
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=3,
        num_refiner_layers=1, patch_size=1, text_embed_dim=TEXT, text_embed_2_dim=POOLED,
        image_embed_dim=20, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 2 + size, 4, 4),
            "timestep": _time(timestep),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "encoder_attention_mask": _mask(6 - branch, 6),
            "encoder_hidden_states_2": _fixed(110 + branch, 1, 4, POOLED),
            "encoder_attention_mask_2": _mask(3, 4),
            "image_embeds": _fixed(112, 1, 3, 20),
        }

    return model, inputs, {"text": ["encoder_attention_mask", "encoder_attention_mask_2"]}


def _ltx2() -> _Built:
    model = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12,
        cross_attention_dim=24, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16,
        num_layers=3, caption_channels=TEXT,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, sound = 2 + size, 3 + size
        time = _time(timestep)
        return (), {
            "hidden_states": _normal(seed, 1, frames * 4, 4),
            "audio_hidden_states": _normal(seed + 50, 1, sound, 4),
            "encoder_hidden_states": _fixed(100 + branch, 1, 5, TEXT),
            "audio_encoder_hidden_states": _fixed(110 + branch, 1, 5, TEXT),
            "timestep": time,
            "sigma": time,
            "num_frames": frames,
            "height": 2,
            "width": 2,
            "audio_num_frames": sound,
            "isolate_modalities": branch == 2,
        }

    text = ["encoder_hidden_states", "audio_encoder_hidden_states"]
    return model, inputs, {"text": text, "audio": ["audio_hidden_states"]}


def _cogvideox() -> _Built:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        time_embed_dim=16, text_embed_dim=TEXT, num_layers=3, sample_width=8, sample_height=8,
        sample_frames=5, max_text_seq_length=6, use_rotary_positional_embeddings=True,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        tokens = (2 + size) * 16
        return (), {
            "hidden_states": _normal(seed, 1, 2 + size, 4, 8, 8),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "timestep": _time(timestep),
            "image_rotary_emb": (_fixed(103, tokens, 12), _fixed(104, tokens, 12)),
        }

    return model, inputs, {"other": ["image_rotary_emb"]}


def _mochi() -> _Built:
    model = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=3,
        pooled_projection_dim=POOLED, in_channels=4, text_embed_dim=TEXT, time_embed_dim=8,
        max_sequence_length=6,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 2 + size, 8, 8),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "timestep": _time(timestep),
            "encoder_attention_mask": _mask(6 - branch, 6, torch.bool),
        }

    return model, inputs, {"text": ["encoder_attention_mask"]}


def _flux() -> _Built:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, pooled_projection_dim=POOLED,
        guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        tokens = 16 + 4 * size
        return (), {
            "hidden_states": _normal(seed, 1, tokens, 4),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "pooled_projections": _fixed(110 + branch, 1, POOLED),
            "timestep": _time(timestep / 1000),
            "img_ids": _fixed(105, tokens, 3),
            "txt_ids": _fixed(106, 6, 3),
            "guidance": _fixed(107, 1),
        }

    return model, inputs, {"other": ["img_ids", "txt_ids"]}


def _sd3() -> _Built:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=16,
        pooled_projection_dim=POOLED, out_channels=4, pos_embed_max_size=16,
        dual_attention_layers=(0, 1), qk_norm="rms_norm",
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 8, 8 + 4 * size),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "pooled_projections": _fixed(110 + branch, 1, POOLED),
            "timestep": _time(timestep),
        }

    return model, inputs, {}


def _qwen_image() -> _Built:
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=8, out_channels=2, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4 * (4 + size), 8),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "encoder_hidden_states_mask": _mask(6 - branch, 6),
            "timestep": _time(timestep / 1000),
            "img_shapes": [[(1, 4, 4 + size)]],
        }

    return model, inputs, {"text": ["encoder_hidden_states_mask"]}


def _pixart() -> _Built:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3,
        cross_attention_dim=16, sample_size=8, caption_channels=TEXT,
        use_additional_conditions=False,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 8, 8 + 4 * size),
            "encoder_hidden_states": _fixed(100 + branch, 1, 6, TEXT),
            "timestep": _time(timestep),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "encoder_attention_mask": _mask(6 - branch, 6),
        }

    return model, inputs, {"text": ["encoder_attention_mask"]}


def _wan_s2v() -> _Built:
    model = wan_s2v_module().WanS2VModel(
        dim=24, in_dim=16, ffn_dim=48, out_dim=16, text_dim=TEXT, freq_dim=16, eps=1e-6,
        patch_size=(1, 2, 2), num_heads=2, num_layers=6, cond_dim=16, audio_dim=12,
        num_audio_token=4, audio_inject_layers=[0, 2, 4],
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, side = 2 + size, 8
        reference = _fixed(105, 1, 16, 1, side, side)
        latents = torch.cat([reference, _normal(seed, 1, 16, frames, side, side)], dim=2)
        return (), {
            "latents": latents,
            "timestep": _time(timestep),
            "context": _fixed(100 + branch, 1, 5, TEXT),
            "audio_input": _fixed(102 + 10 * branch, 1, 25, 12, 4 * frames),
            "motion_latents": [_fixed(103, 16, 19, side, side)],
            "pose_cond": _fixed(104, 1, 16, frames, side, side),
        }

    return model, inputs, {}


_BUILDERS = {
    "wan_t2v": _wan_t2v, "wan_i2v": _wan_i2v, "wan_vace": _wan_vace, "wan_animate": _wan_animate,
    "wan_s2v": _wan_s2v, "hunyuan_video": _hunyuan, "hunyuan_video_15": _hunyuan15, "ltx2": _ltx2,
    "cogvideox": _cogvideox, "mochi": _mochi, "flux": _flux, "sd3": _sd3,
    "qwen_image": _qwen_image, "pixart": _pixart,
}  # fmt: skip
NAMES = tuple(_BUILDERS)
