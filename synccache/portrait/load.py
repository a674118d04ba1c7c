"""The shipped portrait: weights from disk, checked before they are used."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from synccache.portrait.autoencoder import PortraitAutoencoder
from synccache.portrait.config import CONFIG, PortraitConfig, PortraitError
from synccache.portrait.model import PortraitTransformer

__all__ = ["Portrait", "load_autoencoder", "load_portrait", "load_weights"]

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Portrait:
    """The trained transformer and its tokenizer, both fp32 and in evaluation mode."""

    model: PortraitTransformer
    autoencoder: PortraitAutoencoder
    config: PortraitConfig


def load_portrait(weights: Path = WEIGHTS) -> Portrait:
    """The shipped model, or the one whose two weight files are in the folder `weights`.

    Raises: PortraitError when a file is missing, does not fit the model or holds a value that is not finite.
    """
    model = PortraitTransformer()
    load_weights(model, weights / "transformer.safetensors")
    return Portrait(model, load_autoencoder(weights), CONFIG)


def load_autoencoder(weights: Path = WEIGHTS) -> PortraitAutoencoder:
    """The shipped tokenizer. Raises: PortraitError, like `load_portrait`."""
    autoencoder = PortraitAutoencoder()
    load_weights(autoencoder, weights / "autoencoder.safetensors")
    return autoencoder


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module with the weights in a file, as fp32, and set it to evaluation without gradients."""
    if not path.is_file():
        raise PortraitError(f"load_weights: no weights at {path}. Train them: see docs/portrait.md")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise PortraitError(
            f"load_weights: {path} is not a readable safetensors file: {error}"
        ) from error
    expected = module.state_dict()
    missing, surplus = (
        sorted(expected.keys() - tensors.keys()),
        sorted(tensors.keys() - expected.keys()),
    )
    if missing or surplus:
        raise PortraitError(
            f"load_weights: {path} does not fit {type(module).__name__}: missing {missing}, unknown {surplus}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise PortraitError(
                f"load_weights: {path}: {name} has shape {list(tensor.shape)}, "
                f"{type(module).__name__} needs {list(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise PortraitError(
                f"load_weights: {path}: {name} holds {bad} values of {tensor.numel()} that are NaN or infinite"
            )
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    module.eval().requires_grad_(False)
