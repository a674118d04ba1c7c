"""Train the tokenizer: python -m synccache.portrait.train_autoencoder --folder portrait_train --max-minutes 18."""

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from synccache.portrait.audio import audio_features, read_wave
from synccache.portrait.autoencoder import PortraitAutoencoder
from synccache.portrait.corpus import TRAINING, speak
from synccache.portrait.data import ClipSet, draw_clip_set
from synccache.portrait.optimizer import Average, PortraitOptimizer

__all__ = ["main", "training_clips"]

_BATCH = 24
_MOUTH_WEIGHT, _PERSON_WEIGHT = 6.0, 1.0  # added to 1
_WARMUP_STEPS = 20
_EDGE_WEIGHT = 0.5
_MUON_RATE, _ADAM_RATE = 0.01, 1e-3
_LARGEST_GRADIENT = 0.05  # norm of all gradients together


def training_clips(folder: Path, count: int) -> ClipSet:
    """The training clips, drawn once and kept in `folder`."""
    path = folder / f"clips_{count}.pt"
    if not path.exists():
        started = time.time()
        features = [
            audio_features(*read_wave(speak(utterance, folder / "speech")))
            for utterance in TRAINING
        ]
        clips = draw_clip_set(features, range(count))
        torch.save([getattr(clips, name) for name in ClipSet.__dataclass_fields__], path)
        print(f"drew {count} clips in {time.time() - started:.0f} s", flush=True)
    return ClipSet(*torch.load(path, mmap=True))


def _batch(clips: ClipSet, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pairs [_BATCH, 6, 64, 64] and their loss weights [_BATCH, 2, 1, 64, 64]; one in eight is a reference."""
    pairs, weights = [], []
    for _ in range(_BATCH):
        clip = int(torch.randint(len(clips.frames), (1,), generator=generator))
        first = int(torch.randint(clips.frames.shape[1] - 1, (1,), generator=generator))
        frames = clips.frames[clip, first : first + 2]
        weight = (clips.mouth[clip, first : first + 2], clips.person[clip, first : first + 2])
        if int(torch.randint(8, (1,), generator=generator)) == 0:
            frames = (
                frames[:1].expand(2, -1, -1, -1)
                if first % 2
                else clips.reference[clip][None].expand(2, -1, -1, -1)
            )
            weight = (weight[0][:1].expand(2, -1, -1), weight[1][:1].expand(2, -1, -1))
        pairs.append(frames.reshape(6, *frames.shape[-2:]))
        near_mouth = torch.nn.functional.max_pool2d(weight[0].float()[:, None], 5, 1, 2)
        weights.append(
            1.0
            + _MOUTH_WEIGHT * near_mouth / 255.0
            + _PERSON_WEIGHT * weight[1].float()[:, None] / 255.0
        )
    return torch.stack(pairs).float() / 255.0, torch.stack(weights)


def _loss(result: Tensor, pairs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared error plus the error of edges, and the plain squared error."""
    difference = (result - pairs).view(len(pairs), 2, 3, *pairs.shape[-2:])
    square = difference.square()
    across = (difference[..., 1:] - difference[..., :-1]).square() * weights[..., 1:]
    down = (difference[..., 1:, :] - difference[..., :-1, :]).square() * weights[..., 1:, :]
    scale = weights.mean()
    return (
        (square * weights).mean() + _EDGE_WEIGHT * (across.mean() + down.mean())
    ) / scale, square.mean()


@torch.no_grad()
def _measure_latents(model: PortraitAutoencoder, clips: ClipSet) -> None:
    """Store mean and deviation of every latent channel in the model."""
    pairs = clips.frames[:: max(1, len(clips.frames) // 400), 4:6].float().flatten(1, 2) / 255.0
    latents = model.encode_pairs(pairs)
    model.latent_mean.copy_(latents.mean((0, 2, 3)))
    model.latent_deviation.copy_(latents.std((0, 2, 3)))


def main() -> None:
    """Train until the time is over, resume where a checkpoint is, export fp16 weights with the latent statistics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("portrait_train"))
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--max-minutes", type=float, default=18.0)
    parser.add_argument(
        "--export", type=Path, default=Path(__file__).parent / "weights" / "autoencoder.safetensors"
    )
    options = parser.parse_args()
    torch.manual_seed(1)
    clips = training_clips(options.folder, options.clips)
    model = PortraitAutoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model, 0.995)
    optimizer = PortraitOptimizer(
        model,
        lambda name, p: p.ndim == 4 and not name.startswith(("encoder.1.", "decoder.12.")),
        muon_rate=_MUON_RATE,
        adam_rate=_ADAM_RATE,
    )
    generator = torch.Generator().manual_seed(2)
    checkpoint = options.folder / "autoencoder.pt"
    spent, step = 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step, average.updates = state["spent"], state["step"], state["step"]
        generator.manual_seed(step)
    started, smooth = time.time() - spent, 0.0
    while (progress := (time.time() - started) / 60.0 / options.max_minutes) < 1.0:
        pairs, weights = _batch(clips, generator)
        with torch.autocast("cpu", torch.bfloat16):
            result = model.decode_pairs(model.encode_pairs(pairs)).float()
        loss, square = _loss(result, pairs, weights)
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
        optimizer.step(min(1.0, (step + 1) / _WARMUP_STEPS, (1.0 - progress) / 0.75))
        average.update(model)
        smooth += (square.item() - smooth) * max(0.02, 1.0 / (step + 1))
        step += 1
        if step % 50 == 0:
            print(
                f"step {step} minutes {(time.time() - started) / 60:.1f} loss {loss.item():.5f} "
                f"psnr {-10 * math.log10(smooth):.2f}",
                flush=True,
            )
        if step % 400 == 0:
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "step": step,
                    "optimizer": optimizer.state_dict(),
                    "spent": time.time() - started,
                },
                checkpoint,
            )
    _measure_latents(average.model, clips)
    tensors = {
        name: tensor.contiguous().half() for name, tensor in average.model.state_dict().items()
    }
    options.export.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.export)
    print(f"exported {options.export} after {step} steps", flush=True)


if __name__ == "__main__":
    main()
