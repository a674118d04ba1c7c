"""Train the transformer: python -m synccache.portrait.train --folder portrait_train --max-minutes 95."""

import argparse
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synccache.portrait.audio import audio_features, null_audio, read_wave
from synccache.portrait.changes import changes_of
from synccache.portrait.corpus import HELD_OUT, speak
from synccache.portrait.data import HELD_OUT_IDENTITIES, draw_clip_set
from synccache.portrait.load import load_autoencoder, load_weights
from synccache.portrait.model import PortraitTransformer
from synccache.portrait.optimizer import Average, PortraitOptimizer
from synccache.portrait.train_autoencoder import training_clips
from synccache.portrait.training_data import TrainingSet, encode_clips

__all__ = ["main"]

_BATCH = 8
_NULL_AUDIO_SHARE, _MOTION_SHARE = 0.12, 0.5
_MOTION_NOISE, _AUDIO_NOISE = 0.08, 0.02
_NOISE_LEVEL_SPREAD, _NOISE_LEVEL_SHIFT = 1.1, 0.3
_WARMUP_STEPS = 40
_EXPORT_EVERY = 150
_MUON_RATE, _ADAM_RATE = 0.012, 1.5e-3
_LARGEST_GRADIENT = 1.0  # norm of all gradients together
_DECAY_FROM = 0.25  # share of the time after which the learning rate falls to zero
_VALIDATION_CLIPS, _VALIDATION_LEVELS = 24, (0.3, 0.6, 0.85)
_ADAM_MATRICES = ("patch_embed", "head", "time_projection", "positions", "modulation")


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(part in name for part in _ADAM_MATRICES)


def _loss(model: nn.Module, data: TrainingSet, index: Tensor, generator: torch.Generator) -> Tensor:
    """Weighted squared error of the velocity on the clips `index`."""
    reference = data.reference[index].float()
    latents = changes_of(data.latents[index].float(), reference)
    audio = data.audio[index].float()
    audio = audio + _AUDIO_NOISE * torch.randn(audio.shape, generator=generator)
    dropped = torch.rand(len(index), 1, 1, generator=generator) < _NULL_AUDIO_SHARE
    audio = torch.where(dropped, null_audio(audio), audio)
    noise = torch.randn(latents.shape, generator=generator)
    sigma = torch.sigmoid(
        _NOISE_LEVEL_SPREAD * torch.randn(len(index), generator=generator) + _NOISE_LEVEL_SHIFT
    )
    mixing = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1.0 - mixing) * latents + mixing * noise
    motion = None
    if float(torch.rand(1, generator=generator)) < _MOTION_SHARE:
        motion = latents[:, :, 0] + _MOTION_NOISE * torch.randn(
            latents[:, :, 0].shape, generator=generator
        )
    velocity = model(noisy, sigma, audio, reference, motion)
    weights = data.weights[index].float().unsqueeze(1)
    return ((velocity - (noise - latents)).square() * weights).mean() / weights.mean()


@torch.no_grad()
def _validation(model: nn.Module, data: TrainingSet) -> tuple[float, float]:
    """The mouth-weighted loss with the clips' own audio and with that of the next clip."""
    generator = torch.Generator().manual_seed(3)
    totals = [0.0, 0.0]
    for start in range(0, _VALIDATION_CLIPS, _BATCH):
        some = slice(start, start + _BATCH)
        reference = data.reference[some].float()
        latents = changes_of(data.latents[some].float(), reference)
        weights = data.weights[some].float().unsqueeze(1)
        noise = torch.randn(latents.shape, generator=generator)
        for level in _VALIDATION_LEVELS:
            noisy = (1.0 - level) * latents + level * noise
            for which, audio in enumerate(
                (data.audio[some].float(), data.audio[some].float().roll(1, 0))
            ):
                velocity = model(noisy, torch.full((len(latents),), level), audio, reference)
                error = ((velocity - (noise - latents)).square() * weights).mean() / weights.mean()
                totals[which] += (
                    error.item() * len(latents) / (_VALIDATION_CLIPS * len(_VALIDATION_LEVELS))
                )
    return totals[0], totals[1]


def _export(model: nn.Module, path: Path) -> None:
    """Write fp16 weights; readers see the old file or the new one, never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    save_file(
        {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, beside
    )
    os.replace(beside, path)


def main() -> None:
    """Train until the time is over; resume where a checkpoint is; export averaged weights whenever they got better."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("portrait_train"))
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--max-minutes", type=float, default=95.0)
    parser.add_argument("--start-from", type=Path, help="weights to begin with (safetensors)")
    parser.add_argument(
        "--export", type=Path, default=Path(__file__).parent / "weights" / "transformer.safetensors"
    )
    options = parser.parse_args()
    torch.manual_seed(4)
    autoencoder = load_autoencoder()
    data = encode_clips(
        autoencoder,
        training_clips(options.folder, options.clips),
        options.folder / f"latents_{options.clips}.pt",
        mirrored=True,
    )
    speech = [
        audio_features(*read_wave(speak(utterance, options.folder / "speech")))
        for utterance in HELD_OUT
    ]
    first = HELD_OUT_IDENTITIES + 1000
    unseen = encode_clips(
        autoencoder,
        draw_clip_set(speech, range(first, first + _VALIDATION_CLIPS)),
        options.folder / "latents_validation.pt",
        mirrored=False,
    )
    model = PortraitTransformer()
    if options.start_from:
        load_weights(model, options.start_from)
        model.train().requires_grad_(True)
    average = Average(model, 0.998)
    optimizer = PortraitOptimizer(model, _is_matrix, muon_rate=_MUON_RATE, adam_rate=_ADAM_RATE)
    checkpoint = options.folder / "transformer.pt"
    spent, step, best = 0.0, 0, float("inf")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step, best, average.updates = (
            state["spent"],
            state["step"],
            state["best"],
            state["step"],
        )
    generator = torch.Generator().manual_seed(5 + step)
    started, smooth = time.time() - spent, 0.0
    while (progress := (time.time() - started) / 60.0 / options.max_minutes) < 1.0:
        index = torch.randint(len(data.latents), (_BATCH,), generator=generator)
        loss = _loss(model, data, index, generator)
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
        optimizer.step(min(1.0, (step + 1) / _WARMUP_STEPS, (1.0 - progress) / (1.0 - _DECAY_FROM)))
        average.update(model)
        smooth += (loss.item() - smooth) * max(0.02, 1.0 / (step % 10_000 + 1))
        step += 1
        if step % 25 == 0:
            print(
                f"step {step} minutes {(time.time() - started) / 60:.1f} loss {smooth:.4f}",
                flush=True,
            )
        if step % _EXPORT_EVERY == 0:
            own, other = _validation(average.model, unseen)
            print(f"validation step {step} own {own:.4f} other audio {other:.4f}", flush=True)
            if own < best:
                best = own
                _export(average.model, options.export)
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "step": step,
                    "best": best,
                    "optimizer": optimizer.state_dict(),
                    "spent": time.time() - started,
                },
                checkpoint,
            )
    own, other = _validation(average.model, unseen)
    print(
        f"finished step {step} own {own:.4f} other audio {other:.4f} best before {best:.4f}",
        flush=True,
    )
    if own < best:
        _export(average.model, options.export)


if __name__ == "__main__":
    main()
