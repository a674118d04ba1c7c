"""Speech in: WAV files of every usual coding, features that do not depend on how the speech was stored."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from synccache.portrait import PortraitError, audio_features, feature_windows, null_audio, read_wave
from synccache.portrait.audio import resample, write_wave
from synccache.portrait.config import CONFIG
from synccache.portrait.held_out import SPEECH
from synccache.portrait.mouth import mouth_motion


@pytest.fixture(scope="module")
def speech() -> tuple[np.ndarray, int]:
    samples, rate = read_wave(SPEECH / "demo_1.wav")
    return samples[:, 0], rate


def wave_bytes(
    data: bytes, *, code: int, bits: int, channels: int = 1, rate: int = 16_000
) -> bytes:
    size = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * size, size, bits)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data"
    body += struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


TONE = np.sin(np.arange(800) * 0.05) * 0.5


@pytest.mark.parametrize(
    ("code", "bits", "raw", "tolerance"),
    [
        (1, 8, ((TONE * 128).round() + 128).astype(np.uint8).tobytes(), 1e-2),
        (1, 16, (TONE * 32768).round().astype("<i2").tobytes(), 1e-4),
        (
            1,
            24,
            (TONE * 2**23).round().astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),
            1e-6,
        ),
        (1, 32, (TONE * 2**31).round().astype("<i4").tobytes(), 1e-6),
        (3, 32, TONE.astype("<f4").tobytes(), 1e-6),
        (3, 64, TONE.astype("<f8").tobytes(), 1e-6),
    ],
)
def test_every_usual_coding_reads_back_as_the_same_samples(
    tmp_path: Path, code: int, bits: int, raw: bytes, tolerance: float
) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wave_bytes(raw, code=code, bits=bits))

    samples, rate = read_wave(path)

    assert rate == 16_000
    assert np.abs(samples[:, 0] - TONE).max() < tolerance


def test_written_samples_read_back(tmp_path: Path) -> None:
    write_wave(tmp_path / "tone.wav", TONE.astype(np.float32), 16_000)

    samples, _ = read_wave(tmp_path / "tone.wav")

    assert np.abs(samples[:, 0] - TONE).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a WAV file"),
        (b"\xff\xfb\x90\x00 this is an mp3 file, really", "not a WAV file"),
        (b"RIFF\x00\x00\x00\x00WAVE", "no complete 'fmt ' chunk"),
        (wave_bytes(b"", code=1, bits=16)[:36], "no 'data' chunk"),
        (wave_bytes(bytes(40), code=2, bits=4), "coded as format 2 with 4 bits"),
        (wave_bytes(bytes(40), code=1, bits=16, channels=0), "0 channels"),
    ],
)
def test_what_is_no_speech_file_is_refused_with_a_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(content)

    with pytest.raises(PortraitError, match=message):
        read_wave(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PortraitError, match=r"no such file: .*missing\.wav"):
        read_wave(tmp_path / "missing.wav")


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros(0), 16_000, "empty"),
        (np.zeros((0, 2)), 16_000, "empty"),
        (np.array([0.0, math.nan, math.inf]), 16_000, "2 of 3 samples"),
        (np.zeros(100), 0, "sample rate must be positive"),
        (np.zeros((2, 3, 4)), 16_000, "shape"),
    ],
)
def test_unusable_audio_is_refused(waveform: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(PortraitError, match=message):
        audio_features(waveform, rate)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_features_do_not_depend_on_the_sample_rate(
    speech: tuple[np.ndarray, int], rate: int
) -> None:
    samples, source = speech
    expected = audio_features(samples, source)

    actual = audio_features(resample(samples, source, rate), rate)

    assert abs(len(actual) - len(expected)) <= 1
    shared = min(len(actual), len(expected))
    assert (actual[:shared] - expected[:shared]).abs().mean() < 0.02


def test_stereo_is_mixed_down_whichever_axis_is_time(speech: tuple[np.ndarray, int]) -> None:
    samples, rate = speech
    expected = audio_features(samples, rate)

    assert torch.equal(audio_features(np.stack([samples, samples], 1), rate), expected)
    assert torch.equal(audio_features(np.stack([samples, samples], 0), rate), expected)


def test_features_do_not_depend_on_loudness(speech: tuple[np.ndarray, int]) -> None:
    samples, rate = speech

    difference = audio_features(samples * 0.1, rate) - audio_features(samples, rate)

    assert difference.abs().max() < 1e-3


def test_silence_is_minus_one_and_keeps_the_mouth_shut() -> None:
    features = audio_features(np.zeros(16_000), 16_000)
    opening, _ = mouth_motion(feature_windows(features, 0))

    assert torch.equal(features, torch.full((40, CONFIG.mel_bands), -1.0))
    assert opening.max() == 0.0


def test_null_audio_is_not_silence() -> None:
    silence = torch.full((1, CONFIG.window_features, CONFIG.mel_bands), -1.0)

    assert torch.equal(null_audio(silence), torch.zeros_like(silence))


def test_a_window_beyond_the_audio_is_silent(speech: tuple[np.ndarray, int]) -> None:
    features = audio_features(*speech)

    window = feature_windows(features, 10_000)

    assert torch.equal(window, torch.full((CONFIG.window_features, CONFIG.mel_bands), -1.0))


def test_consecutive_windows_drive_one_continuous_mouth(speech: tuple[np.ndarray, int]) -> None:
    features = audio_features(*speech)
    whole, _ = mouth_motion(feature_windows(features, 0, 32))

    first, _ = mouth_motion(feature_windows(features, 0))
    second, _ = mouth_motion(feature_windows(features, 16))

    assert torch.allclose(torch.cat([first, second]), whole, atol=1e-5)
