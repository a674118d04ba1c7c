"""Speech in: WAV files, resampling, log-mel features and windows of them."""

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from synccache.portrait.config import CONFIG, PortraitError

__all__ = ["audio_features", "feature_windows", "null_audio", "read_wave", "resample", "write_wave"]

Waveform = npt.NDArray[np.float32]

_FFT = 1024
_WINDOW = 800  # 50 ms at 16 kHz: two hops
_LOWEST_HZ, _HIGHEST_HZ = 80.0, 7600.0
_RANGE_DB = 60.0  # features cover the loudest frames down to 60 dB below them
_LOUD_QUANTILE = 0.95
_SMALLEST_LEVEL = (
    1e-3  # louder than this (-60 dBFS) counts as speech and is levelled; below it is silence
)
_PCM_BYTES = (1, 2, 3, 4)
_FORMAT_PCM, _FORMAT_FLOAT, _FORMAT_EXTENSIBLE = 1, 3, 0xFFFE
_RESAMPLE_ZEROS = 16


def read_wave(path: str | Path) -> tuple[Waveform, int]:
    """Samples [samples, channels] in [-1, 1] and the sample rate in Hz of a WAV file.

    Reads PCM with 8, 16, 24 or 32 bits and floating point with 32 or 64 bits.
    Raises: PortraitError when the file is missing, is no WAV file, is cut off before its samples or is coded otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise PortraitError(f"read_wave: no such file: {path}")
    data = path.read_bytes()
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise PortraitError(
            f"read_wave: {path} is not a WAV file: it begins with {data[:12]!r}, expected RIFF....WAVE. "
            f"Convert it first, e.g. sox INPUT -r 16000 -c 1 speech.wav"
        )
    chunks = _wave_chunks(data)
    if b"fmt " not in chunks or len(chunks[b"fmt "]) < 16:
        raise PortraitError(f"read_wave: {path} has no complete 'fmt ' chunk")
    if b"data" not in chunks:
        raise PortraitError(f"read_wave: {path} has no 'data' chunk: the file holds no samples")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunks[b"fmt "][:16])
    if code == _FORMAT_EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        code = struct.unpack("<H", chunks[b"fmt "][24:26])[0]
    if channels < 1 or rate < 1:
        raise PortraitError(f"read_wave: {path} says {channels} channels at {rate} Hz")
    samples = _decode(chunks[b"data"], code, bits, path)
    whole = len(samples) // channels * channels
    return samples[:whole].reshape(-1, channels), int(rate)


def _wave_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of every kind, cut at the end of the file when the header promises more."""
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(data):
        name, size = (
            data[position : position + 4],
            struct.unpack("<I", data[position + 4 : position + 8])[0],
        )
        chunks.setdefault(name, data[position + 8 : position + 8 + size])
        position += 8 + size + size % 2
    return chunks


def _decode(raw: bytes, code: int, bits: int, path: Path) -> Waveform:
    """Samples in [-1, 1], channels interleaved."""
    if code == _FORMAT_FLOAT and bits in (32, 64):
        kind = np.dtype(f"<f{bits // 8}")
        return np.frombuffer(raw[: len(raw) // kind.itemsize * kind.itemsize], kind).astype(
            np.float32
        )
    if code != _FORMAT_PCM or bits // 8 not in _PCM_BYTES or bits % 8:
        raise PortraitError(
            f"read_wave: {path} is coded as format {code} with {bits} bits; expected PCM (1) with 8, 16, 24 or 32 bits "
            f"or float (3) with 32 or 64 bits. Convert it first, e.g. sox INPUT -e signed -b 16 speech.wav"
        )
    if bits == 8:
        return ((np.frombuffer(raw, np.uint8).astype(np.float32) - 128.0) / 128.0).astype(
            np.float32
        )
    size = bits // 8
    parts = np.frombuffer(raw[: len(raw) // size * size], np.uint8).reshape(-1, size)
    wide = np.zeros((len(parts), 4), np.uint8)
    wide[:, 4 - size :] = parts
    return (wide.view("<i4")[:, 0].astype(np.float64) / 2.0**31).astype(np.float32)


def write_wave(path: str | Path, waveform: Waveform, sample_rate: int) -> None:
    """Write samples [samples] in [-1, 1] as a mono 16-bit WAV file."""
    samples = (
        np.clip(np.round(np.asarray(waveform, np.float64) * 32767.0), -32768, 32767)
        .astype("<i2")
        .tobytes()
    )
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(samples),
        b"WAVE",
        b"fmt ",
        16,
        _FORMAT_PCM,
        1,
        sample_rate,
        sample_rate * 2,
        2,
        16,
        b"data",
        len(samples),
    )
    Path(path).write_bytes(header + samples)


def audio_features(waveform: npt.ArrayLike | torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Log-mel features [frames, mel_bands] of a waveform, 40 frames per second, in [-1, 1].

    -1 is silence, +1 the loudest frames: the level of the whole waveform is normalised, so give a whole utterance.
    Shapes:  waveform [samples], [samples, channels] or [channels, samples] (the longer axis is time).
    Raises: PortraitError when the waveform is empty or not finite, or the sample rate is not positive.
    """
    mono = _mono(waveform, sample_rate)
    samples = torch.from_numpy(resample(mono, sample_rate, CONFIG.sample_rate))
    hop = CONFIG.sample_rate // CONFIG.feature_rate
    count = max(1, math.ceil(len(samples) / hop))
    side = (_FFT - hop) // 2
    padded = torch.nn.functional.pad(
        samples, (side, count * hop - len(samples) + _FFT - hop - side)
    )
    frames = padded.unfold(0, _FFT, hop)[:count] * _analysis_window()
    power = torch.fft.rfft(frames).abs().square()
    mel = power @ _mel_filters().T
    loudest = torch.quantile(mel.sum(1), _LOUD_QUANTILE)
    smallest = _SMALLEST_LEVEL**2 * _analysis_window().square().sum() * 0.5 * _FFT / 2
    reference = torch.maximum(loudest, smallest) / CONFIG.mel_bands
    decibel = 10.0 * torch.log10((mel / reference).clamp_min(1e-12)) - 10.0
    return (decibel / _RANGE_DB * 2.0 + 1.0).clamp(-1.0, 1.0).float()


def _mono(waveform: npt.ArrayLike | torch.Tensor, sample_rate: int) -> Waveform:
    """The mean of all channels, checked."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu().numpy()
    samples = np.asarray(waveform, np.float64)
    if sample_rate <= 0:
        raise PortraitError(
            f"audio_features: the sample rate must be positive, got {sample_rate} Hz"
        )
    if samples.size == 0:
        raise PortraitError(
            "audio_features: the audio is empty (0 samples); at least one sample is needed"
        )
    if samples.ndim > 2:
        raise PortraitError(
            f"audio_features: expected [samples] or [samples, channels], got shape {samples.shape}"
        )
    if not np.isfinite(samples).all():
        raise PortraitError(
            f"audio_features: {int((~np.isfinite(samples)).sum())} of {samples.size} samples are NaN or infinite"
        )
    if samples.ndim == 2:
        samples = samples.mean(axis=0 if samples.shape[0] < samples.shape[1] else 1)
    return samples.astype(np.float32)


def resample(samples: Waveform, source: int, target: int) -> Waveform:
    """Band-limited resampling with a windowed sinc."""
    if source == target:
        return samples
    cutoff = min(1.0, target / source)
    count = max(1, round(len(samples) * target / source))
    reach = math.ceil(_RESAMPLE_ZEROS / cutoff)
    padded = np.pad(samples, reach + 1)
    result = np.empty(count, np.float32)
    block = 65_536
    for start in range(0, count, block):
        position = np.arange(start, min(start + block, count)) * (source / target)
        first = np.floor(position).astype(np.int64)
        index = first[:, None] + np.arange(-reach, reach + 1)[None]
        distance = (index - position[:, None]) * cutoff
        taper = np.cos(np.clip(distance / _RESAMPLE_ZEROS, -1.0, 1.0) * (math.pi / 2)) ** 2
        weights = np.sinc(distance) * taper * cutoff
        result[start : start + len(position)] = (padded[index + reach + 1] * weights).sum(1)
    return result


def _analysis_window() -> torch.Tensor:
    """A Hann window of 50 ms in the middle of the transform [_FFT]."""
    side = (_FFT - _WINDOW) // 2
    return torch.nn.functional.pad(torch.hann_window(_WINDOW), (side, _FFT - _WINDOW - side))


def _mel_filters() -> torch.Tensor:
    """Triangular mel filters of unit sum [mel_bands, _FFT / 2 + 1]."""

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    points = torch.linspace(mel(_LOWEST_HZ), mel(_HIGHEST_HZ), CONFIG.mel_bands + 2)
    edges = 700.0 * (10.0 ** (points / 2595.0) - 1.0)
    bins = torch.arange(_FFT // 2 + 1) * (CONFIG.sample_rate / _FFT)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0.0)
    return filters / filters.sum(1, keepdim=True)


def null_audio(audio: torch.Tensor) -> torch.Tensor:
    """What the model hears without audio: zeros of the same shape. Silence is -1, so it is something else."""
    return torch.zeros_like(audio)


def feature_windows(
    features: torch.Tensor, start_frame: int, frames: int = CONFIG.frames
) -> torch.Tensor:
    """The features [window_features, mel_bands] that belong to `frames` video frames from `start_frame` on.

    Silence is put where the window reaches beyond the audio.
    """
    per_frame, context = CONFIG.features_per_frame, CONFIG.context_features
    first = start_frame * per_frame - context
    length = frames * per_frame + 2 * context
    window = features.new_full((length, features.shape[1]), -1.0)
    begin, end = max(first, 0), min(first + length, len(features))
    if end > begin:
        window[begin - first : end - first] = features[begin:end]
    return window
