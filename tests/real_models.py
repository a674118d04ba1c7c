"""Released model classes from the package index, tiny and with seeded random weights.

    case = build("wan_s2v")
    args, kwargs = case.new_inputs(seed=0, timestep=900.0)
    case.model(*args, **kwargs)

Nothing of the libraries is patched. The conditions of one guidance branch are the same tensor objects
at every step, as in a denoising loop; the latents are new for each seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffsynth_s2v import wan_s2v_module
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

# Where Wan2.2-S2V-14B injects audio: diffsynth/models/wan_video_dit_s2v.py, audio_inject_layers
RELEASED_INJECT_LAYERS = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
RELEASED_DEPTH = 40


@dataclass(frozen=True)
class Case:
    """A model in evaluation mode and a maker of its inputs.

    new_inputs(seed, timestep, guidance_branch=0): branch 0 is conditional, branch 1 unconditional.
    """

    name: str
    model: nn.Module
    new_inputs: Callable[..., Inputs]
    conditions: dict[str, list[str]]
    audio_after_blocks: tuple[int, ...] = ()
    call: Callable[..., Any] | None = None


def tensor_of(output: Any) -> Tensor:
    """The one tensor in a model's output, whatever it is wrapped in."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample


def build(name: str) -> Case:
    """The case of this name; NAMES lists them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _BUILDERS[name]()


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _enlarged(model: nn.Module) -> nn.Module:
    """The model with weights that make blocks matter: default initialisation leaves them faint."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
    return model.eval().requires_grad_(False)


def _wan_t2v() -> Case:
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=6,
        rope_max_seq_len=32,
    )
    texts = [_normal(100 + branch, 1, 5, 16) for branch in range(2)]

    def new_inputs(seed: int, timestep: float, guidance_branch: int = 0) -> Inputs:
        return (), {
            "hidden_states": _normal(seed, 1, 4, 2, 8, 8),
            "timestep": torch.tensor([timestep]),
            "encoder_hidden_states": texts[guidance_branch],
        }

    return Case("wan_t2v", _enlarged(model), new_inputs, {"text": ["encoder_hidden_states"]})


def _wan_i2v() -> Case:
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=8,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=4,
        rope_max_seq_len=32,
        image_dim=20,
        added_kv_proj_dim=24,
    )
    texts = [_normal(100 + branch, 1, 5, 16) for branch in range(2)]
    image, first_frame = _normal(102, 1, 257, 20), _normal(103, 1, 4, 2, 8, 8)

    def new_inputs(seed: int, timestep: float, guidance_branch: int = 0) -> Inputs:
        latents = torch.cat([_normal(seed, 1, 4, 2, 8, 8), first_frame], dim=1)
        kwargs = {"encoder_hidden_states_image": image, "return_dict": False}
        return (latents, torch.tensor([timestep]), texts[guidance_branch]), kwargs

    conditions = {"text": ["encoder_hidden_states"], "reference": ["encoder_hidden_states_image"]}
    return Case("wan_i2v", _enlarged(model), new_inputs, conditions)


@cache
def _wan_s2v_class() -> type[nn.Module]:
    return wan_s2v_module().WanS2VModel


def _wan_s2v() -> Case:
    frames, size = 2, 8
    model = _wan_s2v_class()(
        dim=24,
        in_dim=16,
        ffn_dim=48,
        out_dim=16,
        text_dim=16,
        freq_dim=32,
        eps=1e-6,
        patch_size=(1, 2, 2),
        num_heads=2,
        num_layers=RELEASED_DEPTH,
        cond_dim=16,
        audio_dim=12,
        num_audio_token=4,
        audio_inject_layers=list(RELEASED_INJECT_LAYERS),
    )
    texts = [_normal(100 + branch, 1, 5, 16) for branch in range(2)]
    speech = _normal(102, 1, 25, 12, 4 * frames)
    audio = [speech, 0.0 * speech]
    motion, pose = [_normal(103, 16, 19, size, size)], _normal(104, 1, 16, frames, size, size)
    reference = _normal(105, 1, 16, 1, size, size)

    def new_inputs(seed: int, timestep: float, guidance_branch: int = 0) -> Inputs:
        latents = _normal(seed, 1, 16, frames, size, size)
        return (), {
            "latents": torch.cat([reference, latents], dim=2),
            "timestep": torch.tensor([timestep]),
            "context": texts[guidance_branch],
            "audio_input": audio[guidance_branch],
            "motion_latents": motion,
            "pose_cond": pose,
        }

    conditions = {"audio": ["audio_input"], "text": ["context"]}
    model = _enlarged(model)
    return Case("wan_s2v", model, new_inputs, conditions, audio_after_blocks=RELEASED_INJECT_LAYERS)


_BUILDERS = {"wan_t2v": _wan_t2v, "wan_i2v": _wan_i2v, "wan_s2v": _wan_s2v}
NAMES = tuple(_BUILDERS)
