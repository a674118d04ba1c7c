"""The procedural clips: deterministic, exact masks, a mouth that says what it is told."""

import pytest
import torch

from synccache.portrait.config import CONFIG
from synccache.portrait.corpus import HELD_OUT, TRAINING
from synccache.portrait.data import HELD_OUT_IDENTITIES, draw_clip
from synccache.portrait.identity import random_identity
from synccache.portrait.training_data import token_mask

SILENCE = torch.full((80, CONFIG.mel_bands), -1.0)
LOUD = torch.ones(80, CONFIG.mel_bands)


def test_a_clip_has_the_promised_shapes() -> None:
    clip = draw_clip(1, SILENCE, 0, frames=20)

    assert clip.frames.shape == (20, 3, 64, 64)
    assert clip.reference.shape == (3, 64, 64)
    assert clip.person.shape == clip.mouth.shape == (20, 64, 64)
    assert clip.audio.shape == (48, CONFIG.mel_bands)
    assert clip.opening.shape == (20,)


@pytest.mark.parametrize("seed", range(8))
def test_all_values_are_colours_and_coverages(seed: int) -> None:
    clip = draw_clip(seed, LOUD, 0)

    for field in (clip.frames, clip.reference, clip.person, clip.mouth):
        assert field.min() >= 0.0
        assert field.max() <= 1.0


def test_the_same_seed_draws_the_same_clip() -> None:
    first, second = draw_clip(3, LOUD, 2), draw_clip(3, LOUD, 2)

    assert torch.equal(first.frames, second.frames)
    assert random_identity(3) == random_identity(3)
    assert random_identity(3) != random_identity(4)


def test_silence_keeps_the_mouth_shut_and_speech_opens_it() -> None:
    shut, wide = draw_clip(5, SILENCE, 0), draw_clip(5, LOUD, 4)

    assert shut.opening.max() == 0.0
    assert wide.opening.min() > 0.95
    assert wide.mouth.sum() > 2 * shut.mouth.sum()


def test_the_mouth_is_part_of_the_person_and_the_background_stands_still() -> None:
    clip = draw_clip(6, LOUD, 0)
    outside = (clip.person.amax(0) == 0.0).float()

    assert (clip.mouth <= clip.person + 1e-6).all()
    assert outside.sum() > 200
    assert ((clip.frames - clip.frames[:1]) * outside).abs().max() < 0.01


def test_the_token_mask_is_the_largest_pixel_of_each_token() -> None:
    mask = torch.zeros(1, 16, 64, 64)
    mask[0, 3, 9, 63] = 0.5

    tokens = token_mask(mask)

    assert tokens.shape == (1, 8, 8, 8)
    assert tokens[0, 1, 1, 7] == 0.5
    assert tokens.sum() == 0.5


def test_training_and_held_out_speech_and_people_are_disjoint() -> None:
    assert not {u.sentence for u in TRAINING} & {u.sentence for u in HELD_OUT}
    assert not {u.voice for u in TRAINING} & {u.voice for u in HELD_OUT}
    assert len({u.voice for u in TRAINING}) >= 8
    assert len({u.sentence for u in TRAINING}) >= 200
    assert HELD_OUT_IDENTITIES > 100_000
