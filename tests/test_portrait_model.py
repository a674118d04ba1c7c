"""The model, its sampler and its weights: the contract that other code is written against."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synccache.portrait import (
    CONFIG,
    PortraitError,
    PortraitTransformer,
    audio_features,
    generate_clip,
    held_out_clips,
    load_portrait,
    noise_levels,
    null_audio,
    read_wave,
    sample,
)
from synccache.portrait.changes import changes_of, latents_of
from synccache.portrait.held_out import SPEECH, HeldOutClip
from synccache.portrait.load import WEIGHTS, Portrait
from synccache.portrait.model import PortraitBlock

STEPS = 2


@pytest.fixture(scope="module")
def portrait() -> Portrait:
    return load_portrait()


@pytest.fixture(scope="module")
def clip() -> HeldOutClip:
    return held_out_clips(1)[0]


class Recorder:
    """Calls the model and keeps what it was called with."""

    def __init__(self, model: PortraitTransformer) -> None:
        self.model = model
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, latents, timestep, audio, reference, motion=None):  # type: ignore[no-untyped-def]
        self.calls.append((latents, timestep, audio, reference, motion))
        return self.model(latents, timestep, audio, reference, motion)


def run(portrait: Portrait, clip: HeldOutClip, **options) -> torch.Tensor:  # type: ignore[no-untyped-def]
    options = {"steps": STEPS, **options}
    return sample(portrait.model, clip.audio[None], clip.reference_latent[None], **options)


def test_the_velocity_has_the_shape_of_the_latents() -> None:
    model = PortraitTransformer()
    latents = torch.randn(2, 32, 8, 8, 8)
    audio = torch.randn(2, CONFIG.window_features, CONFIG.mel_bands)

    velocity = model(latents, torch.rand(2), audio, torch.randn(2, 32, 8, 8))

    assert velocity.shape == latents.shape


def test_a_block_maps_tokens_to_tokens() -> None:
    block = PortraitBlock(CONFIG.width, CONFIG.heads, CONFIG.mlp_ratio)
    hidden = torch.randn(1, CONFIG.tokens, CONFIG.width)

    assert block(hidden, torch.randn(1, 6, CONFIG.width)).shape == hidden.shape


def test_the_model_listens(portrait: Portrait, clip: HeldOutClip) -> None:
    latents = torch.randn(1, 32, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = (latents, torch.tensor([0.7]))
    audio, reference = clip.audio[None], clip.reference_latent[None]

    heard = portrait.model(*inputs, audio, reference)
    unheard = portrait.model(*inputs, null_audio(audio), reference)

    assert (heard - unheard).abs().mean() > 0.01


def test_audio_reaches_only_its_own_latent_frame_in_the_first_injector(
    portrait: Portrait, clip: HeldOutClip
) -> None:
    hidden = torch.randn(1, CONFIG.tokens, CONFIG.width)
    tokens = portrait.model.audio_encoder(clip.audio[None])
    changed = tokens.clone()
    changed[:, 3] += 1.0
    injector = portrait.model.audio_injectors[0]

    difference = (injector(hidden, changed) - injector(hidden, tokens)).abs()
    per_frame = difference.unflatten(1, (CONFIG.latent_frames, -1)).amax((0, 2, 3))

    assert per_frame[3] > 1e-4
    assert per_frame[[0, 1, 2, 4, 5, 6, 7]].max() == 0.0


def test_noise_levels_fall_from_one_to_zero() -> None:
    levels = noise_levels(40, 2.0)

    assert levels[0] == 1.0
    assert levels[-1] == 0.0
    assert (levels.diff() < 0).all()
    assert noise_levels(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(("steps", "shift"), [(0, 2.0), (4, 0.0), (4, -1.0)])
def test_impossible_noise_levels_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(PortraitError, match="noise_levels"):
        noise_levels(steps, shift)


def test_sampling_is_deterministic(portrait: Portrait, clip: HeldOutClip) -> None:
    first = run(portrait, clip, seed=5)

    assert torch.equal(run(portrait, clip, seed=5), first)
    assert not torch.equal(run(portrait, clip, seed=6), first)


def test_guidance_is_two_calls_per_step_at_one_timestep(
    portrait: Portrait, clip: HeldOutClip
) -> None:
    model = Recorder(portrait.model)
    steps: list[int] = []
    sample(
        model,
        clip.audio[None],
        clip.reference_latent[None],
        steps=STEPS,
        on_step=lambda step, _: steps.append(step),
    )

    assert steps == list(range(STEPS))
    assert len(model.calls) == 2 * STEPS
    for with_audio, without in zip(model.calls[::2], model.calls[1::2], strict=True):
        assert with_audio[1] is without[1]
        assert torch.equal(with_audio[2], clip.audio[None])
        assert torch.equal(without[2], torch.zeros_like(without[2]))


def test_without_guidance_there_is_one_call_per_step(portrait: Portrait, clip: HeldOutClip) -> None:
    model = Recorder(portrait.model)
    sample(model, clip.audio[None], clip.reference_latent[None], steps=STEPS, guidance=1.0)

    assert len(model.calls) == STEPS


def test_a_known_first_frame_is_kept_exactly(portrait: Portrait, clip: HeldOutClip) -> None:
    motion = portrait.autoencoder.encode(clip.frames[None])[:, :, 0]

    latents = run(portrait, clip, motion=motion)

    assert torch.equal(latents[:, :, 0], motion)


def test_changes_and_latents_are_inverse(clip: HeldOutClip) -> None:
    latents = torch.randn(1, 32, 8, 8, 8)
    reference = clip.reference_latent[None]

    assert torch.allclose(latents_of(changes_of(latents, reference), reference), latents, atol=1e-5)
    assert changes_of(reference, reference).abs().max() == 0.0


def test_every_step_reports_latents(portrait: Portrait, clip: HeldOutClip) -> None:
    reported: list[torch.Tensor] = []

    latents = run(portrait, clip, on_step=lambda _, state: reported.append(state))

    assert len(reported) == STEPS
    assert torch.equal(reported[-1], latents)


def test_wrong_shapes_are_named(portrait: Portrait, clip: HeldOutClip) -> None:
    reference = clip.reference_latent[None]
    with pytest.raises(
        PortraitError, match=r"audio has shape \[1, 39, 20\], expected \[1, 40, 20\]"
    ):
        sample(portrait.model, clip.audio[None, 1:], reference)
    with pytest.raises(PortraitError, match="reference has shape"):
        sample(portrait.model, clip.audio[None], reference[:, :3])


def test_long_speech_is_made_window_by_window(portrait: Portrait, clip: HeldOutClip) -> None:
    features = audio_features(*read_wave(SPEECH / "demo_3.wav"))[:80]
    model = Recorder(portrait.model)
    windows: list[tuple[int, int]] = []

    frames = generate_clip(
        model,
        portrait.autoencoder,
        features,
        clip.reference_latent,
        steps=1,
        guidance=1.0,
        on_window=lambda window, count: windows.append((window, count)),
    )

    assert frames.shape == (40, 3, 64, 64)
    assert windows == [(0, 3), (1, 3), (2, 3)]
    assert model.calls[0][4] is None
    assert all(call[4] is not None for call in model.calls[1:])


def test_one_guided_window_takes_well_below_ten_seconds(
    portrait: Portrait, clip: HeldOutClip
) -> None:
    started = time.process_time()
    run(portrait, clip, steps=2)
    seconds = (time.process_time() - started) / torch.get_num_threads()

    assert seconds * 20 < 20.0  # twice the promise: the machine may be busy


def test_held_out_clips_are_deterministic() -> None:
    first, second = held_out_clips(2), held_out_clips(2)

    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.audio, other.audio)
        assert torch.equal(one.reference_latent, other.reference_latent)
        assert one.mouth_box == other.mouth_box


@pytest.mark.parametrize("count", [0, 17])
def test_there_are_sixteen_held_out_clips(count: int) -> None:
    with pytest.raises(PortraitError, match="16 clips"):
        held_out_clips(count)


def test_the_person_is_in_the_middle_of_the_token_mask(clip: HeldOutClip) -> None:
    assert clip.person_tokens.shape == (8, 8, 8)
    assert clip.person_tokens[:, 3:5, 3:5].min() == 1.0


def test_the_weights_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 10_000_000


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    for name in ("transformer", "autoencoder"):
        save_file(load_file(WEIGHTS / f"{name}.safetensors"), tmp_path / f"{name}.safetensors")
    tensors = load_file(tmp_path / "transformer.safetensors")
    tensors["blocks.4.mlp.0.weight"][2, 3] = float("nan")
    save_file(tensors, tmp_path / "transformer.safetensors")

    with pytest.raises(PortraitError, match=r"blocks\.4\.mlp\.0\.weight holds 1 values of 65536"):
        load_portrait(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PortraitError, match="no weights at"):
        load_portrait(tmp_path)
    (tmp_path / "transformer.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(PortraitError, match="not a readable safetensors file"):
        load_portrait(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "transformer.safetensors")
    with pytest.raises(
        PortraitError, match=r"does not fit PortraitTransformer.*unknown \['other'\]"
    ):
        load_portrait(tmp_path)
