"""The speech corpus: sentences spoken by espeak-ng, made when it is needed and kept in a folder.

Training and held-out sentences share no sentence, and the held-out ones are spoken by voices that training never hears.
"""

import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from synccache.portrait.config import CONFIG, PortraitError

__all__ = ["HELD_OUT", "TRAINING", "Utterance", "espeak_command", "speak"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One sentence, the espeak-ng voice that says it, words per minute and pitch (0-99)."""

    name: str
    sentence: str
    voice: str
    speed: int
    pitch: int


_TRAINING_VOICES = (
    "en-us",
    "en-us+f2",
    "en-us+f4",
    "en-us+m2",
    "en-us+m3",
    "en-gb",
    "en-gb+f1",
    "en-gb+m7",
    "en-gb-scotland",
    "en-gb-scotland+f3",
    "en-029",
    "en-gb-x-rp+m4",
    "en-gb-x-rp+f5",
    "en-us-nyc+m1",
)
_HELD_OUT_VOICES = ("en-us+f3", "en-gb+m5", "en-gb-x-gbcwmd", "en-029+f1", "en-us+m6")

_PEOPLE = (
    "my brother",
    "the old captain",
    "a young doctor",
    "our teacher",
    "Anna",
    "the famous painter",
    "no one here",
    "her uncle",
    "the baker",
    "this little boy",
    "everybody",
    "Marco",
    "the queen",
    "a quiet stranger",
)
_DEEDS = (
    "wanted to open",
    "never forgot",
    "carefully painted",
    "looked all over for",
    "gave away",
    "always talked about",
    "brought home",
    "could hardly believe",
    "laughed about",
    "was waiting for",
    "found",
    "would rather keep",
)
_THINGS = (
    "the wooden boat",
    "a yellow umbrella",
    "four large apples",
    "the last warm evening",
    "that small blue house",
    "some fresh bread and butter",
    "the road to the harbour",
    "a very good idea",
    "the map of the island",
    "two brown horses",
    "the music",
    "an almost empty box",
    "all of the money",
    "a photograph of the moon",
)
_ENDS = (
    "in the morning",
    "before the storm came",
    "at the market",
    "after the long war",
    "without saying a word",
    "as far as I know",
    "on a warm summer day",
    "for more than an hour",
    "when the music started",
    "by the river",
    "while we were eating",
    "because nobody asked",
    "",
    "",
)
_HELD_OUT_SENTENCES = (
    "Hello, I am a small picture that learned to speak.",
    "Skip what repeats, but never skip the voice.",
    "A good plan makes hard work look easy.",
    "The weather outside is lovely, so let us go for a walk.",
    "Wave after wave rolled over the grey stones.",
    "You may call me again tomorrow, if you like.",
    "How many hours have we saved so far?",
    "My mother bakes bread with honey and almonds.",
    "Far away, a bell began to ring.",
    "I owe you more than I am able to pay.",
    "Watch my mouth, it opens with every vowel.",
    "Bob and Mary bought a mirror and a map.",
    "Please remember to water the roses.",
    "Our team will arrive around eleven.",
    "Oh, what a beautiful morning this is!",
    "Nothing worth doing was ever done alone.",
)


def _training_utterances(count: int) -> tuple[Utterance, ...]:
    chooser = random.Random(20)
    result = []
    for index in range(count):
        words = [chooser.choice(part) for part in (_PEOPLE, _DEEDS, _THINGS, _ENDS)]
        sentence = " ".join(word for word in words if word) + "."
        result.append(
            Utterance(
                f"training_{index:03d}",
                sentence[0].upper() + sentence[1:],
                _TRAINING_VOICES[index % len(_TRAINING_VOICES)],
                chooser.randint(125, 185),
                chooser.randint(30, 70),
            )
        )
    return tuple(result)


def _held_out_utterances() -> tuple[Utterance, ...]:
    chooser = random.Random(21)
    return tuple(
        Utterance(
            f"held_out_{index:02d}",
            sentence,
            _HELD_OUT_VOICES[index % len(_HELD_OUT_VOICES)],
            chooser.randint(135, 170),
            chooser.randint(35, 65),
        )
        for index, sentence in enumerate(_HELD_OUT_SENTENCES)
    )


TRAINING = _training_utterances(320)
HELD_OUT = _held_out_utterances()


def espeak_command(utterance: Utterance, path: Path) -> list[str]:
    """The exact command that speaks an utterance into a WAV file."""
    return [
        "espeak-ng",
        "-v",
        utterance.voice,
        "-s",
        str(utterance.speed),
        "-p",
        str(utterance.pitch),
        "-w",
        str(path),
        utterance.sentence,
    ]


def speak(utterance: Utterance, folder: Path) -> Path:
    """The utterance as a WAV file in `folder`, at the rate espeak-ng chooses (22050 Hz); spoken only once.

    Raises: PortraitError when espeak-ng is not installed or fails.
    """
    path = folder / f"{utterance.name}.wav"
    if path.exists():
        return path
    if shutil.which("espeak-ng") is None:
        raise PortraitError(
            "speak: espeak-ng is not installed. Install it first, e.g. apt-get install espeak-ng"
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        espeak_command(utterance, path), capture_output=True, text=True, check=False
    )
    if done.returncode or not path.exists():
        raise PortraitError(f"speak: espeak-ng failed on {utterance}: {done.stderr.strip()}")
    return path


assert (
    CONFIG.sample_rate == 16_000
)  # the shipped files are written at the rate the features are computed at
