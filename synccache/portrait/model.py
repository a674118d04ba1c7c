"""The portrait transformer: an audio-driven video diffusion transformer in miniature, built like Wan-S2V."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from synccache.portrait.config import CONFIG, PortraitConfig

__all__ = ["AudioEncoder", "AudioInjector", "PortraitBlock", "PortraitTransformer"]

_MODULATIONS = 6  # shift, scale and gate of attention, then of the MLP
_HEAD_MODULATIONS = 2
_LONGEST_PERIOD = 10_000.0
_TIME_SCALE = 1000.0
_AUDIO_LAYERS = 2
_INJECTOR_DEVIATION = 0.02


class PortraitAttention(nn.Module):
    """Multi-head attention with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.query_norm = nn.RMSNorm(width // heads)
        self.key_norm = nn.RMSNorm(width // heads)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Shapes:  x [batch, n, width], context [batch, m, width] -> [batch, n, width]."""
        query = self.query_norm(self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        key = self.key_norm(self.key(context).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        value = self.value(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result


class PortraitBlock(nn.Module):
    """Self-attention and MLP, each modulated and gated by the noise level.

    Shapes:  hidden [batch, tokens, width], modulation [batch, 6, width] -> [batch, tokens, width].
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, _MODULATIONS, width) / width**0.5)
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = PortraitAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, width * mlp_ratio),
            nn.GELU(approximate="tanh"),
            nn.Linear(width * mlp_ratio, width),
        )

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.modulation).chunk(
            _MODULATIONS, dim=1
        )
        normed = self.attention_norm(hidden) * (1.0 + scale_a) + shift_a
        hidden = hidden + gate_a * self.attention(normed, normed)
        normed = self.mlp_norm(hidden) * (1.0 + scale_m) + shift_m
        return hidden + gate_m * self.mlp(normed)


class AudioEncoder(nn.Module):
    """Log-mel features to audio tokens: those of a latent frame and of its neighbourhood, for every latent frame.

    Shapes:  audio [batch, window_features, mel_bands] -> [batch, latent_frames, tokens, width].
    """

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        width = config.width
        self.stride = config.features_per_latent_frame
        self.span = config.features_per_latent_frame + 2 * config.context_features
        self.embed = nn.Linear(config.mel_bands, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=1) for _ in range(_AUDIO_LAYERS)
        )
        self.positions = nn.Parameter(torch.randn(self.span, width) * 0.1)
        self.norm = nn.LayerNorm(width)

    def forward(self, audio: Tensor) -> Tensor:
        tokens = self.embed(audio).transpose(1, 2)
        for convolution in self.convolutions:
            tokens = tokens + functional.gelu(convolution(tokens))
        spans = tokens.unfold(2, self.span, self.stride).permute(0, 2, 3, 1)
        result: Tensor = self.norm(spans) + self.positions
        return result


class AudioInjector(nn.Module):
    """What the video tokens of every latent frame take from the audio tokens of that frame, by cross-attention.

    Shapes:  hidden [batch, latent_frames * n, width], audio_tokens [batch, latent_frames, m, width] -> like hidden.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = PortraitAttention(width, heads)
        nn.init.normal_(self.attention.output.weight, std=_INJECTOR_DEVIATION)

    def forward(self, hidden: Tensor, audio_tokens: Tensor) -> Tensor:
        batch, frames = audio_tokens.shape[:2]
        per_frame = self.norm(hidden).reshape(batch * frames, -1, hidden.shape[-1])
        taken = self.attention(per_frame, audio_tokens.flatten(0, 1))
        return taken.reshape(hidden.shape)


class PortraitTransformer(nn.Module):
    """Velocity (noise - clean) of noisy latents at a noise level, for a voice and a reference picture.

    Wan2.2-S2V in miniature: blocks of full spatio-temporal self-attention, and after every second one a frame-wise
    cross-attention to the audio.  Source: Wan-Video/Wan2.2 wan/modules/s2v/model_s2v.py (structure only).
    """

    def __init__(self, config: PortraitConfig = CONFIG) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = nn.Linear(3 * config.latent_channels + 1, width)
        self.frame_positions = nn.Parameter(torch.randn(1, config.latent_frames, 1, width) * 0.2)
        self.place_positions = nn.Parameter(torch.randn(1, 1, config.latent_size**2, width) * 0.2)
        self.time_embed = nn.Sequential(
            nn.Linear(config.time_features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, _MODULATIONS * width))
        self.audio_encoder = AudioEncoder(config)
        self.blocks = nn.ModuleList(
            PortraitBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.audio_injectors = nn.ModuleList(
            AudioInjector(width, config.heads) for _ in config.injector_blocks
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.head_modulation = nn.Parameter(torch.randn(1, _HEAD_MODULATIONS, width) / width**0.5)
        self.head = nn.Linear(width, config.latent_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        audio: Tensor,
        reference: Tensor,
        motion: Tensor | None = None,
    ) -> Tensor:
        """The velocity noise - clean, like `latents`, which are noisy changes from the reference (see `changes`).

        Shapes:  latents [batch, C, T, H, W] = [batch, 32, 8, 8, 8]; timestep [batch], the noise level sigma in [0, 1]
        (1 is pure noise; not times 1000); audio [batch, window_features, mel_bands], null audio is zeros;
        reference [batch, C, H, W]; motion [batch, C, H, W], the known first frame of changes, or None.
        """
        time = self.time_embed(_sinusoids(timestep * _TIME_SCALE, self.config.time_features))
        modulation = self.time_projection(time).unflatten(1, (_MODULATIONS, -1))
        audio_tokens = self.audio_encoder(audio)
        hidden = self._embed(latents, reference, motion)
        injector = 0
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, modulation)
            if index in self.config.injector_blocks:
                hidden = hidden + self.audio_injectors[injector](hidden, audio_tokens)
                injector += 1
        shift, scale = (time.unsqueeze(1) + self.head_modulation).chunk(_HEAD_MODULATIONS, dim=1)
        velocity = self.head(self.norm_out(hidden) * (1.0 + scale) + shift)
        return velocity.transpose(1, 2).unflatten(2, latents.shape[2:])

    def _embed(self, latents: Tensor, reference: Tensor, motion: Tensor | None) -> Tensor:
        """Video tokens [batch, T * H * W, width]: noisy latent, reference, known first frame and its flag."""
        known = torch.zeros_like(latents)
        flag = torch.zeros_like(latents[:, :1])
        if motion is not None:
            known = torch.cat([motion.unsqueeze(2), known[:, :, 1:]], dim=2)
            flag = torch.cat([torch.ones_like(flag[:, :, :1]), flag[:, :, 1:]], dim=2)
        channels = torch.cat(
            [latents, reference.unsqueeze(2).expand_as(latents), known, flag], dim=1
        )
        tokens = self.patch_embed(channels.flatten(2).transpose(1, 2))
        positions = (self.frame_positions + self.place_positions).flatten(1, 2)
        result: Tensor = tokens + positions
        return result


def _sinusoids(position: Tensor, features: int) -> Tensor:
    """Cosines and sines [batch, features] of positions [batch]."""
    half = features // 2
    rates = torch.exp(
        -math.log(_LONGEST_PERIOD) * torch.arange(half, device=position.device) / half
    )
    angles = position.float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(position.dtype)
