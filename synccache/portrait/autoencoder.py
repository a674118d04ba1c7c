"""The tokenizer: pairs of frames [6, 64, 64] to latents [32, 8, 8] and back, a small convolutional autoencoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from synccache.portrait.config import CONFIG

__all__ = ["PortraitAutoencoder"]

_PAIR_CHANNELS = 6  # two RGB frames


class _ResidualConvolution(nn.Module):
    """x + conv(gelu(conv(x))), both 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.second(functional.gelu(self.first(x)))
        return result


class PortraitAutoencoder(nn.Module):
    """Encodes and decodes pairs of frames; latents have zero mean and unit deviation per channel.

    Shapes:  frames [batch, frames, 3, 64, 64] in [0, 1]; latents [batch, 32, frames / 2, 8, 8].
    """

    latent_mean: Tensor
    latent_deviation: Tensor

    def __init__(self, wide: int = 128, middle: int = 80, fine: int = 40) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(_PAIR_CHANNELS * 16, middle, 3, padding=1),
            _ResidualConvolution(middle),
            nn.PixelUnshuffle(2),
            nn.Conv2d(middle * 4, wide, 1),
            _ResidualConvolution(wide),
            nn.Conv2d(wide, CONFIG.latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CONFIG.latent_channels, wide, 3, padding=1),
            _ResidualConvolution(wide),
            nn.Conv2d(wide, middle * 4, 1),
            nn.PixelShuffle(2),
            _ResidualConvolution(middle),
            _ResidualConvolution(middle),
            nn.Conv2d(middle, fine * 4, 1),
            nn.PixelShuffle(2),
            _ResidualConvolution(fine),
            nn.Conv2d(fine, 16 * 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.GELU(),
            nn.Conv2d(16, _PAIR_CHANNELS, 3, padding=1),
        )
        self.register_buffer("latent_mean", torch.zeros(CONFIG.latent_channels))
        self.register_buffer("latent_deviation", torch.ones(CONFIG.latent_channels))

    def encode_pairs(self, pairs: Tensor) -> Tensor:
        """Latents [n, 32, 8, 8], not normalised, of pairs [n, 6, 64, 64]."""
        latents: Tensor = self.encoder(pairs * 2.0 - 1.0)
        return latents

    def decode_pairs(self, latents: Tensor) -> Tensor:
        """Pairs [n, 6, 64, 64], not clipped, of latents that are not normalised [n, 32, 8, 8]."""
        pairs: Tensor = self.decoder(latents) * 0.5 + 0.5
        return pairs

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents [batch, 32, frames / 2, 8, 8] of frames [batch, frames, 3, 64, 64]."""
        batch, count = frames.shape[:2]
        pairs = frames.reshape(batch * count // 2, _PAIR_CHANNELS, *frames.shape[-2:])
        latents = self.encode_pairs(pairs)
        latents = (latents - self.latent_mean.view(1, -1, 1, 1)) / self.latent_deviation.view(
            1, -1, 1, 1
        )
        return latents.reshape(batch, count // 2, *latents.shape[1:]).transpose(1, 2)

    def encode_image(self, image: Tensor) -> Tensor:
        """The latent [batch, 32, 8, 8] of still pictures [batch, 3, 64, 64]: a pair of the same frame."""
        return self.encode(image[:, None].expand(-1, 2, -1, -1, -1))[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [batch, 2 * T, 3, 64, 64] in [0, 1] of normalised latents [batch, 32, T, 8, 8]."""
        batch, _, count = latents.shape[:3]
        flat = latents.transpose(1, 2).reshape(
            batch * count, *latents.shape[1:2], *latents.shape[3:]
        )
        flat = flat * self.latent_deviation.view(1, -1, 1, 1) + self.latent_mean.view(1, -1, 1, 1)
        pairs = self.decode_pairs(flat).clamp(0.0, 1.0)
        return pairs.reshape(batch, count * 2, 3, *pairs.shape[-2:])
