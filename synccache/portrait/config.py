"""The fixed sizes of the portrait model and the one error of this package.

Everything that has to agree between data, tokenizer, model and sampler is written here once.
"""

from dataclasses import dataclass

__all__ = ["CONFIG", "PortraitConfig", "PortraitError"]


class PortraitError(ValueError):
    """An input, a file or a weight that the portrait package cannot use, and why."""


@dataclass(frozen=True, slots=True)
class PortraitConfig:
    """Sizes shared by data, tokenizer, model and sampler.

    Units: sizes in pixels or counts, rates in Hz; `change_scale` is the deviation of latents from the reference's.
    """

    image_size: int = 64
    frames: int = 16
    frame_rate: int = 20
    sample_rate: int = 16_000
    feature_rate: int = 40
    mel_bands: int = 20
    context_features: int = 4
    latent_channels: int = 32
    latent_frames: int = 8
    latent_size: int = 8
    change_scale: float = 0.45
    width: int = 128
    heads: int = 4
    depth: int = 10
    mlp_ratio: int = 4
    time_features: int = 128

    @property
    def tokens(self) -> int:
        """Video tokens of one window (latent frames x height x width)."""
        return self.latent_frames * self.latent_size**2

    @property
    def features_per_frame(self) -> int:
        """Audio feature frames per video frame."""
        return self.feature_rate // self.frame_rate

    @property
    def features_per_latent_frame(self) -> int:
        """Audio feature frames per latent frame (a pair of video frames)."""
        return self.features_per_frame * self.frames // self.latent_frames

    @property
    def window_features(self) -> int:
        """Feature frames of one window, with the context on both sides."""
        return self.features_per_frame * self.frames + 2 * self.context_features

    @property
    def injector_blocks(self) -> tuple[int, ...]:
        """Blocks after which audio is injected: every second one."""
        return tuple(range(0, self.depth, 2))


CONFIG = PortraitConfig()
