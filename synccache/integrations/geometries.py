"""Released models as shapes: class, configuration and inputs, for planning without weights.

Only data and the call that builds it: nothing else in synccache knows a model by name. Sizes are those
of the finished video; the numbers that turn them into latents are the video autoencoder's.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from synccache.errors import PlanError
from synccache.fx.fake import without_weights
from synccache.planner.sizes import Axis

Inputs = dict[str, Any]

FRAMES = Axis(name="frames", step=4, first=1, default=81)
HEIGHT = Axis(name="height", step=16, first=16, default=480)
WIDTH = Axis(name="width", step=16, first=16, default=832)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A model's shape. ``inputs(**sizes)`` are the arguments of one forward of one guidance branch.

    ``guidance_branches`` as the model's own pipeline calls it; ``policy`` where none is asked for.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[..., Inputs]
    axes: tuple[Axis, ...] = (FRAMES, HEIGHT, WIDTH)
    conditions: Mapping[str, list[str]] = field(default_factory=dict, hash=False)
    guidance_branches: int = 2
    policy: str = "first_block_cache"
    source: str


def _shape(*size: int) -> Tensor:
    return torch.empty(*size, dtype=torch.bfloat16, device="meta")


def _in_bfloat16(module: str, name: str, **configuration: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        kind = getattr(_imported(module), name)
        with without_weights():
            model: nn.Module = kind(**configuration)
        return nn.Module.to(model, torch.bfloat16).eval().requires_grad_(False)

    return build


def _imported(name: str) -> ModuleType:
    package, _, rest = name.partition(".")
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise PlanError(
            f"this geometry is built from {package}'s own class, and {package} is not installed.",
            hint=f"pip install {package}" + (" --no-deps" if package == "diffsynth" else ""),
        )
    if package == "diffsynth":
        _enter_without_pipelines(rest)
    return importlib.import_module(name)


def _enter_without_pipelines(rest: str) -> None:
    """Makes a model file of diffsynth importable without what its pipelines need (torchvision)."""
    names = ["diffsynth", "diffsynth.core"]
    for part in rest.split(".")[:-1]:
        names.append(f"diffsynth.{part}")
    for name in names:
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            assert spec is not None, name
            sys.modules[name] = importlib.util.module_from_spec(spec)  # entered, not run


def _wan_s2v(frames: int, height: int, width: int) -> Inputs:
    latents, high, wide = frames // 4, height // 8, width // 8
    return {
        "latents": _shape(1, 16, latents + 1, high, wide),  # the first is the reference picture
        "timestep": torch.tensor([900.0], dtype=torch.bfloat16),
        "context": _shape(1, 512, 4096),
        "audio_input": _shape(1, 25, 1024, frames),
        "motion_latents": [_shape(16, 19, high, wide)],
        "pose_cond": _shape(1, 16, latents, high, wide),
    }


def _wan_t2v(frames: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": _shape(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": _shape(1, 512, 4096),
    }


def _hunyuan_video(frames: int, height: int, width: int) -> Inputs:
    return {
        "hidden_states": _shape(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8),
        "timestep": torch.tensor([900]),
        "encoder_hidden_states": _shape(1, 256, 4096),
        "encoder_attention_mask": torch.ones(1, 256, dtype=torch.int64),
        "pooled_projections": _shape(1, 768),
        "guidance": torch.tensor([6000.0], dtype=torch.bfloat16),
    }


def _ltx2(frames: int, height: int, width: int) -> Inputs:
    latents, high, wide = (frames - 1) // 8 + 1, height // 32, width // 32
    heard = -(-frames * 25 // 24)  # audio latents: 25 a second, of a video of 24 frames a second
    time = torch.tensor([900.0])
    return {
        "hidden_states": _shape(1, latents * high * wide, 128),
        "audio_hidden_states": _shape(1, heard, 128),
        "encoder_hidden_states": _shape(1, 1024, 3840),
        "audio_encoder_hidden_states": _shape(1, 1024, 3840),
        "timestep": time,
        "sigma": time,
        "num_frames": latents,
        "height": high,
        "width": wide,
        "audio_num_frames": heard,
    }


_ALL = (
    Geometry(
        name="wan2.2-s2v-14b",
        build=_in_bfloat16(
            "diffsynth.models.wan_video_dit_s2v", "WanS2VModel",
            dim=5120, in_dim=16, ffn_dim=13824, out_dim=16, text_dim=4096, freq_dim=256, eps=1e-6,
            patch_size=(1, 2, 2), num_heads=40, num_layers=40, cond_dim=16, audio_dim=1024,
            num_audio_token=4, audio_inject_layers=[0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
        ),
        inputs=_wan_s2v,
        axes=(Axis(name="frames", step=4, first=4, default=80), HEIGHT, WIDTH),
        policy="asymmetric",
        source="diffsynth 2.1 configs/model_configs.py; the first clip, without motion tokens",
    ),
    Geometry(
        name="wan2.1-t2v-14b",
        build=_in_bfloat16("diffusers", "WanTransformer3DModel"),
        inputs=_wan_t2v,
        source="diffusers 0.42, the defaults of WanTransformer3DModel",
    ),
    Geometry(
        name="hunyuanvideo",
        build=_in_bfloat16("diffusers", "HunyuanVideoTransformer3DModel"),
        inputs=_hunyuan_video,
        axes=(Axis(name="frames", step=4, first=1, default=129), HEIGHT, WIDTH),
        guidance_branches=1,
        source="diffusers 0.42, the defaults of HunyuanVideoTransformer3DModel; guidance distilled",
    ),
    Geometry(
        name="ltx-2",
        build=_in_bfloat16("diffusers", "LTX2VideoTransformer3DModel"),
        inputs=_ltx2,
        axes=(
            Axis(name="frames", step=8, first=1, default=121),
            Axis(name="height", step=32, first=32, default=512),
            Axis(name="width", step=32, first=32, default=768),
        ),
        conditions={"audio": ["audio_hidden_states"]},
        source="diffusers 0.42, the defaults of LTX2VideoTransformer3DModel",
    ),
)  # fmt: skip

GEOMETRIES: Mapping[str, Geometry] = MappingProxyType({g.name: g for g in _ALL})
"""By name, as the command line takes it."""


def geometry(name: str) -> Geometry:
    """The geometry of this name.

    Raises:  PlanError naming what is known.
    """
    if name not in GEOMETRIES:
        near = difflib.get_close_matches(name.lower(), GEOMETRIES, n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise PlanError(
            f"no geometry is called {name!r}.",
            hint=f"{meant}Known are {', '.join(GEOMETRIES)}; or give module:callable of your own.",
        )
    return GEOMETRIES[name]
