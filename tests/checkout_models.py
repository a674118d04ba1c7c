"""Model classes of repositories that are not packages, from a local checkout, tiny.

    case = build("wan22_s2v", Path("~/Wan2.2").expanduser())
    args, kwargs = case.inputs(seed=0, timestep=900.0, branch=0, size=0)
    case.model(*args, **kwargs)

The model files run as they are. What stands in the way of a run without a GPU is stood in for:

- a repository's package doors (``__init__``) are not run: they import pipelines, encoders and tools;
- flash attention has no CPU build: a function of the same arguments on torch's own attention;
- HunyuanVideo-Avatar makes one small tensor with ``device="cuda"``: that one function is run
  with ``torch.zeros`` bound to the CPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from table_models import Inputs, TableCase, _fixed, _normal, _time
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_Built = tuple[nn.Module, Callable[..., Inputs], dict[str, list[str]]]
TEXT = 16


def build(name: str, checkout: Path) -> TableCase:
    """The case of this name, from this checkout; VARIABLES lists names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with _imports_from(checkout):
            model, inputs, conditions = _BUILDERS[name](checkout)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # zero-initialised outputs would hide every branch
                    parameter.normal_(std=0.02)
        return TableCase(name, model.eval().requires_grad_(False), inputs, conditions)


@contextmanager
def _imports_from(checkout: Path) -> Iterator[None]:
    """Modules found in the checkout first; what was imported from it is forgotten afterwards."""
    tops = {p.name for p in checkout.iterdir()}
    hidden = {
        n: m for n, m in sys.modules.items() if n.partition(".")[0] in tops
    }  # of the same name
    for name in hidden:
        del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if name in _STANDS_IN or file.startswith(str(checkout)):
                del sys.modules[name]
        sys.modules.update(hidden)


_STANDS_IN: set[str] = set()  # modules that are not the checkout's or a library's


def _stand_in(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    _STANDS_IN.add(name)
    return module


def _doors(checkout: Path, *names: str) -> None:
    """Packages of the checkout entered without running their ``__init__``."""
    for name in names:
        _stand_in(name, __path__=[str(checkout.joinpath(*name.split(".")))])


# ------------------------------------------------------------------------ attention


def padded_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """[batch, tokens, heads, channels], without the masks of padding (there is none here)."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    out = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).contiguous()


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """[tokens of all sequences, heads, channels]; sequence i is ``ends[i] : ends[i + 1]``."""
    out = torch.zeros_like(q)
    bounds = [e.tolist() for e in (ends_q, ends_k)]
    for q0, q1, k0, k1 in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:]):
        if q1 > q0:
            parts = (q[q0:q1], k[k0:k1], v[k0:k1])
            mixed = scaled_dot_product_attention(*(p.transpose(0, 1)[None] for p in parts))
            out[q0:q1] = mixed[0].transpose(0, 1)
    return out


# ---------------------------------------------------------------------------- models


def _wan22_s2v(checkout: Path) -> _Built:
    """WanModel_S2V, as its 14B configuration: AdaIN injectors, packed motion frames."""
    _doors(checkout, "wan", "wan.modules", "wan.modules.s2v")
    importlib.import_module("wan.modules.attention").flash_attention = padded_attention
    module = importlib.import_module("wan.modules.s2v.model_s2v")
    model = module.WanModel_S2V(
        cond_dim=16, audio_dim=12, num_audio_token=4, enable_adain=True, adain_mode="attn_norm",
        audio_inject_layers=[0, 2, 4], zero_init=True, zero_timestep=True, enable_motioner=False,
        enable_framepack=True, framepack_drop_mode="padd", add_last_motion=True, text_len=8,
        in_dim=16, dim=24, ffn_dim=48, freq_dim=16, text_dim=TEXT, out_dim=16, num_heads=2,
        num_layers=6,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, side = 2 + size, 8
        return ([_normal(seed, 16, frames, side, side)],), {
            "t": _time(timestep),
            "context": [_fixed(100 + branch, 5, TEXT)],
            "seq_len": frames * 16,
            "ref_latents": [_fixed(105, 16, 1, side, side)],
            "motion_latents": [_fixed(103, 16, 19, side, side)],
            "cond_states": [_fixed(104, 16, frames, side, side)],
            "audio_input": _fixed(102 + 10 * branch, 1, 25, 12, 4 * frames),
            "motion_frames": [73, 19],
        }

    return model, inputs, {"audio": ["audio_input"], "text": ["context"]}


def _hunyuan_avatar(checkout: Path) -> _Built:
    """HYVideoDiffusionTransformer. Its width of 3072 is written into its forward, so that only
    the depth and the width of the perceptrons can be small (about 0.7 G parameters)."""
    package = _stand_in("flash_attn", __path__=[])
    package.flash_attn_interface = _stand_in(  # type: ignore[attr-defined]
        "flash_attn.flash_attn_interface", flash_attn_varlen_func=packed_attention
    )
    _doors(checkout, "hymm_sp", "hymm_sp.modules")
    with mock.patch.dict(
        os.environ, {"DISABLE_SP": "1"}
    ):  # one device: as its own single-GPU script
        module = importlib.import_module("hymm_sp.modules.models_audio")
    on_cpu = SimpleNamespace(
        **{**vars(torch), "zeros": lambda *a, device, **k: torch.zeros(*a, **k)}
    )
    importlib.import_module("hymm_sp.modules.parallel_states").torch = on_cpu
    settings = SimpleNamespace(
        text_projection="linear", text_states_dim=TEXT, text_states_dim_2=12,
        use_attention_mask=True,
    )  # fmt: skip
    model = module.HYVideoDiffusionTransformer(
        settings, in_channels=4, out_channels=4, hidden_size=3072, num_heads=24,
        mlp_width_ratio=1 / 32, depth_double_blocks=4, depth_single_blocks=2,
        rope_dim_list=[16, 56, 56],
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, side = 2 + size, 4
        tokens = (frames + 1) * side * side // 4
        return (_normal(seed, 1, 4, frames, side, side), _time(timestep)), {
            "ref_latents": _fixed(105, 1, 4, frames, side, side),
            "text_states": _fixed(100 + branch, 1, 5, TEXT),
            "text_mask": _ones(1, 5),
            "text_states_2": _fixed(110 + branch, 1, 12),
            "freqs_cos": _fixed(106, tokens, 128),
            "freqs_sin": _fixed(107, tokens, 128),
            "audio_prompts": _fixed(102 + 10 * branch, 1, 4 * (frames - 1) + 1, 10, 5, 384),
            "face_mask": _ones(1, 1, 1, side, side, dtype=torch.float32),
            "motion_exp": _fixed(120, 1, 4),
            "motion_pose": _fixed(121, 1, 4),
            "fps": _fixed(122, 1),
        }

    conditions = {
        "audio": ["audio_prompts"], "text": ["text_states", "text_states_2", "text_mask"],
        "reference": ["ref_latents"], "mask": ["face_mask"], "other": ["freqs_cos", "freqs_sin"],
    }  # fmt: skip
    return model, inputs, conditions


def _infinitetalk(checkout: Path) -> _Built:
    """WanModel with two speakers, whose tokens are told apart by attention maps."""
    _doors(checkout, "wan", "wan.modules", "wan.utils")
    _distributed()
    importlib.import_module("diffusers.models.modeling_utils")  # before it can see what stands in
    attention = _stand_in("xformers.ops", memory_efficient_attention=padded_attention)
    _stand_in("xformers", __path__=[], ops=attention)
    for name in (
        "imageio",
        "soundfile",
        "torchvision",
        "skimage",
    ):  # read by tools, not by the model
        _stand_in(name, color=None)
    importlib.import_module("wan.modules.attention").flash_attention = padded_attention
    importlib.import_module("wan.utils.multitalk_utils").torch_gc = lambda: (
        None
    )  # empties a GPU's cache
    module = importlib.import_module("wan.modules.multitalk_model")
    model = module.WanModel(
        in_dim=12, dim=24, ffn_dim=48, freq_dim=16, text_dim=TEXT, out_dim=4, num_heads=2, num_layers=4,
        text_len=8, intermediate_dim=8, output_dim=12, context_tokens=4,
    )  # fmt: skip
    model.disable_teacache()

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, side = 3 + size, 8
        return ([_normal(seed, 4, frames, side, side)], _time(timestep)), {
            "context": [_fixed(100 + branch, 5, TEXT)],
            "seq_len": frames * 16,
            "clip_fea": _fixed(103, 1, 257, 1280),
            "y": [_fixed(104, 8, frames, side, side)],
            "audio": _fixed(102 + 10 * branch, 2, 4 * (frames - 1) + 1, 5, 12, 768),
            "ref_target_masks": _thirds(side),
        }

    return model, inputs, {"reference": ["clip_fea", "y"], "mask": ["ref_target_masks"]}


def _omniavatar(checkout: Path) -> _Built:
    """WanModel with a projected audio map added before the first half of its blocks."""
    _doors(checkout, "OmniAvatar", "OmniAvatar.models", "OmniAvatar.utils")
    _distributed()
    _stand_in("OmniAvatar.utils.io_utils", hash_state_dict_keys=None)  # reads checkpoints
    settings = argparse.Namespace(use_audio=True, sp_size=1)
    _stand_in("OmniAvatar.utils.args_config", args=settings)
    model = importlib.import_module("OmniAvatar.models.wan_video_dit").WanModel(
        dim=24, in_dim=12, ffn_dim=48, out_dim=4, text_dim=TEXT, freq_dim=16, eps=1e-6,
        patch_size=(1, 2, 2), num_heads=2, num_layers=6, has_image_input=False,
    )  # fmt: skip

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, side = 2 + size, 8
        latents, first = (
            _normal(seed, 1, 4, frames, side, side),
            _fixed(104, 1, 8, frames, side, side),
        )
        return (latents, _time(timestep), _fixed(100 + branch, 1, 5, TEXT)), {
            "y": first,
            "audio_emb": _fixed(102 + 10 * branch, 1, 4 * (frames - 1) + 1, 10752),
        }

    return model, inputs, {"reference": ["y"]}


def _fantasytalking(checkout: Path) -> _Built:
    """Its own Wan with audio merged into the text cross-attention by attention processors."""
    _doors(checkout, "diffsynth", "diffsynth.models")
    _stand_in("diffsynth.models.utils", hash_state_dict_keys=None)  # reads checkpoints
    module = importlib.import_module("diffsynth.models.wan_video_dit")
    module.flash_attention = padded_attention
    model = module.WanModel(
        model_type="i2v", in_dim=12, dim=24, ffn_dim=48, freq_dim=16, text_dim=TEXT, out_dim=4,
        num_heads=2, num_layers=4, text_len=8, cross_attn_norm=True,
    )  # fmt: skip
    importlib.import_module("model").FantasyTalkingAudioConditionModel(model, 12, 12)

    def inputs(seed: int, timestep: float, branch: int = 0, size: int = 0) -> Inputs:
        frames, side = 2 + size, 8
        return ([_normal(seed, 4, frames, side, side)], _time(timestep)), {
            "context": [_fixed(100 + branch, 5, TEXT)],
            "seq_len": frames * 16,
            "clip_fea": _fixed(103, 1, 257, 1280),
            "y": [_fixed(104, 8, frames, side, side)],
            "audio_proj": _fixed(102 + 10 * branch, 1, frames, 3, 12),
            "latents_num_frames": frames,
        }

    return model, inputs, {"reference": ["clip_fea", "y"]}


def _distributed() -> None:
    """Sequence parallelism over several devices, which one device does not call."""
    names = ("get_sequence_parallel_rank", "get_sequence_parallel_world_size", "get_sp_group")
    for package in ("xfuser", "xfuser.core"):
        _stand_in(package, __path__=[])
    _stand_in("xfuser.core.distributed", **dict.fromkeys(names))


@functools.cache
def _ones(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.ones(shape, dtype=dtype)


@functools.cache
def _thirds(side: int) -> Tensor:
    """Masks of the left speaker, the right one, and what is between them."""
    third = torch.arange(side) * 3 // side
    return torch.stack([(third == k).float().expand(side, side) for k in (0, 2, 1)])


_BUILDERS = {
    "wan22_s2v": _wan22_s2v,
    "hunyuan_avatar": _hunyuan_avatar,
    "infinitetalk": _infinitetalk,
    "omniavatar": _omniavatar,
    "fantasytalking": _fantasytalking,
}
VARIABLES = {
    "wan22_s2v": "SYNCCACHE_WAN22",
    "hunyuan_avatar": "SYNCCACHE_HUNYUAN_AVATAR",
    "infinitetalk": "SYNCCACHE_INFINITETALK",
    "omniavatar": "SYNCCACHE_OMNIAVATAR",
    "fantasytalking": "SYNCCACHE_FANTASYTALKING",
}
