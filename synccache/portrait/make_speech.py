"""Make the shipped speech again: python -m synccache.portrait.make_speech (needs espeak-ng).

Four whole sentences for the demo, and for every held-out sentence the second in which the mouth moves most.
"""

from pathlib import Path

import numpy as np
import torch

from synccache.portrait.audio import (
    audio_features,
    feature_windows,
    read_wave,
    resample,
    write_wave,
)
from synccache.portrait.config import CONFIG
from synccache.portrait.corpus import HELD_OUT, espeak_command, speak
from synccache.portrait.held_out import SPEECH
from synccache.portrait.mouth import mouth_motion

__all__ = ["main"]

_DEMO_FILES = 4
_CUT_FEATURES = CONFIG.window_features  # one second: 16 frames and the context on both sides


def _liveliest_second(features: torch.Tensor) -> int:
    """The first feature frame of the second in which the opening varies most."""
    starts = range(0, max(1, len(features) - _CUT_FEATURES), CONFIG.features_per_frame)
    spread = [
        float(mouth_motion(features[start : start + _CUT_FEATURES])[0].std())
        for start in starts
        if len(features) >= start + _CUT_FEATURES
    ]
    return starts[int(np.argmax(spread))]


def main(folder: Path = SPEECH) -> None:
    """Write demo_1.wav ... demo_4.wav and held_out_00.wav ... held_out_15.wav, 16 kHz mono 16 bit, and README.md."""
    lines = [
        "# Speech in this folder",
        "",
        "Synthetic speech, made by `python -m synccache.portrait.make_speech` with "
        "espeak-ng 1.51 (GPL-3 program; its output is not covered), resampled to 16 kHz mono 16 bit.",
        "`demo_N.wav` are whole sentences; `held_out_NN.wav` is the second of each sentence in which the mouth moves "
        "most, used for evaluation. No training utterance is among them, and none of these voices is trained on.",
        "",
    ]
    raw = folder / "espeak"
    for index, utterance in enumerate(HELD_OUT):
        samples, rate = read_wave(speak(utterance, raw))
        waveform = resample(samples[:, 0], rate, CONFIG.sample_rate)
        features = audio_features(waveform, CONFIG.sample_rate)
        hop = CONFIG.sample_rate // CONFIG.feature_rate
        start = _liveliest_second(features)
        cut = waveform[start * hop : (start + _CUT_FEATURES) * hop]
        assert len(feature_windows(audio_features(cut, CONFIG.sample_rate), 2)) == _CUT_FEATURES
        write_wave(folder / f"{utterance.name}.wav", cut, CONFIG.sample_rate)
        if index < _DEMO_FILES:
            write_wave(folder / f"demo_{index + 1}.wav", waveform, CONFIG.sample_rate)
        command = espeak_command(utterance, Path("FILE.wav"))
        names = f"demo_{index + 1}.wav (whole), " if index < _DEMO_FILES else ""
        lines.append(
            f"- {names}{utterance.name}.wav (from {start / CONFIG.feature_rate:.2f} s): "
            f'`{" ".join(command[:-1])} "{utterance.sentence}"`'
        )
    (folder / "README.md").write_text("\n".join(lines) + "\n")
    for path in raw.glob("*.wav"):
        path.unlink()
    raw.rmdir()


if __name__ == "__main__":
    main()
