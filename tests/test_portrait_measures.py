"""The measures against plain definitions, and against frames whose mouth is known."""

import math

import pytest
import torch

from synccache.portrait import (
    PortraitError,
    correlation,
    held_out_clips,
    load_portrait,
    mouth_area_error,
    mouth_opening_trace,
    psnr,
    ssim,
)
from synccache.portrait.held_out import HeldOutClip

BOX = (10, 30, 10, 40)


@pytest.fixture(scope="module")
def clips() -> tuple[HeldOutClip, ...]:
    return held_out_clips(6)


def mean_correlation(frames: list[torch.Tensor], clips: tuple[HeldOutClip, ...]) -> float:
    values = [
        correlation(mouth_opening_trace(some, clip.mouth_box), clip.opening)
        for some, clip in zip(frames, clips, strict=True)
    ]
    return sum(values) / len(values)


def test_the_trace_follows_the_opening_on_real_frames(clips: tuple[HeldOutClip, ...]) -> None:
    assert mean_correlation([clip.frames for clip in clips], clips) >= 0.9


def test_the_trace_follows_the_opening_through_the_tokenizer(
    clips: tuple[HeldOutClip, ...],
) -> None:
    autoencoder = load_portrait().autoencoder
    frames = torch.stack([clip.frames for clip in clips])

    decoded = autoencoder.decode(autoencoder.encode(frames))

    assert mean_correlation(list(decoded), clips) >= 0.85
    assert psnr(decoded.flatten(0, 1), frames.flatten(0, 1)) >= 32.0


def test_the_trace_does_not_follow_another_clips_opening(clips: tuple[HeldOutClip, ...]) -> None:
    others = clips[1:] + clips[:1]
    values = [
        correlation(mouth_opening_trace(clip.frames, clip.mouth_box), other.opening)
        for clip, other in zip(clips, others, strict=True)
    ]

    assert sum(values) / len(values) < 0.5


def test_the_trace_counts_dark_pixels() -> None:
    frames = torch.full((2, 3, 64, 64), 0.8)
    frames[1, :, 15:20, 15:25] = 0.05

    assert mouth_opening_trace(frames, BOX).tolist() == [0.0, 50.0]


def test_the_trace_does_not_depend_on_the_light() -> None:
    frames = torch.full((1, 3, 64, 64), 0.8)
    frames[:, :, 15:20, 15:25] = 0.2

    assert torch.allclose(
        mouth_opening_trace(frames, BOX), mouth_opening_trace(frames * 0.5, BOX), atol=1e-4
    )


def test_correlation_is_pearsons() -> None:
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))

    assert correlation(a, b) == pytest.approx(
        float(torch.corrcoef(torch.stack([a, b]))[0, 1]), abs=1e-6
    )
    assert correlation(a, 3 * a + 1) == pytest.approx(1.0)
    assert correlation(a, torch.ones(50)) == 0.0


def test_correlation_of_different_lengths_is_refused() -> None:
    with pytest.raises(PortraitError, match="one length"):
        correlation(torch.zeros(3), torch.zeros(4))


def test_mouth_area_error_is_relative_to_the_mean_area() -> None:
    assert mouth_area_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])) == 50.0


def test_a_mouth_that_never_opens_has_no_relative_error() -> None:
    with pytest.raises(PortraitError, match="never opens"):
        mouth_area_error(torch.ones(3), torch.zeros(3))


def test_psnr_is_the_plain_definition() -> None:
    a, b = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = 10 * math.log10(1.0 / float(((a - b) ** 2).mean()))

    assert psnr(a, b) == pytest.approx(expected, abs=1e-5)
    assert psnr(a, a) == math.inf


def test_psnr_in_a_mask_looks_only_there() -> None:
    a = torch.zeros(1, 3, 16, 16)
    b = a.clone()
    b[:, :, :8] = 0.1
    b[:, :, 8:] = 0.9
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1.0

    assert psnr(a, b, mask) == pytest.approx(20.0, abs=1e-4)
    with pytest.raises(PortraitError, match="mask is empty"):
        psnr(a, b, torch.zeros(1, 16, 16))


def test_ssim_is_the_plain_definition() -> None:
    a, b = torch.rand(2, 1, 1, 13, 12, generator=torch.Generator().manual_seed(3)).double()
    line = torch.exp(-((torch.arange(11.0).double() - 5) ** 2) / (2 * 1.5**2))
    window = line[:, None] * line[None] / line.sum() ** 2
    values = []
    for row in range(3):
        for column in range(2):
            x, y = (p[0, 0, row : row + 11, column : column + 11] for p in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cxy = (window * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + 1e-4) * (2 * cxy + 9e-4)
            values.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))

    assert ssim(a, b) == pytest.approx(float(torch.stack(values).mean()), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1.0)


def test_pictures_of_different_shape_are_refused() -> None:
    with pytest.raises(PortraitError, match=r"psnr: two \[frames"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8))
