"""Which forward argument is which condition: given by the user, or found by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.capture import Captured
from synccache.fx.inputs import index_paths

SAMPLE = "sample"  # the noisy latents: what the denoising loop changes every step
OTHER = "other"

# First match wins; a word matches anywhere in the argument's name, an exact one only as a whole.
_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (OTHER, ("rotary", "rope", "freqs", "_ids", "pos_emb")),
    ("text", ("encoder_attention_mask", "encoder_hidden_states_mask", "text_mask", "prompt_mask")),
    ("mask", ("mask",)),
    ("timestep", ("timestep", "noise_level")),
    ("text", ("encoder_hidden_states", "context", "text", "prompt", "caption", "txt", "pooled")),
    ("audio", ("audio", "speech", "wav", "whisper", "mel_spec", "vocal")),
    ("reference", ("ref", "motion", "pose", "image", "face", "control", "camera", "cond", "clip")),
)
_EXACT = {"t": "timestep", "time": "timestep", "sigma": "timestep", "sigmas": "timestep"}
_SAMPLE_NAMES = ("hidden_states", "latents", "latent", "x", "sample", "noisy_latents", "img")


def tag_inputs(
    captured: Captured, conditions: Mapping[str, Sequence[str]] | None
) -> dict[Node, str]:
    """Placeholder -> condition name, ``sample`` for the noisy latents, ``other`` for the rest.

    Raises:
        MatchError: ``conditions`` names an argument that the forward was not called with.
    """
    names = {
        node: "_".join(path) for node, path in zip(captured.placeholders, captured.input_paths)
    }
    tags = {node: _by_name(name) for node, name in names.items()}
    _mark_sample(captured, tags)
    for tag, wanted in (conditions or {}).items():
        for name in (wanted,) if isinstance(wanted, str) else wanted:
            hits = [n for n in names if name in _names_of(captured, n)]
            if not hits:
                raise MatchError(
                    f"conditions[{tag!r}] names {name!r}, but the tensors passed to forward were "
                    f"{', '.join(sorted(names.values()))}.",
                    hint="Use one of these names.",
                )
            tags.update(dict.fromkeys(hits, tag))
    return tags


def _names_of(captured: Captured, node: Node) -> tuple[str, ...]:
    """What a user may call an input: its parameter, its full name, or the keyword it was passed by
    where the forward takes ``**kwargs``."""
    path = captured.input_paths[captured.placeholders.index(node)]
    return path[0], "_".join(path), *path[1:2]


def _by_name(name: str) -> str:
    lower = name.lower()
    head = lower.split("_")[0]
    if lower in _EXACT:
        return _EXACT[lower]
    for tag, words in _WORDS:
        if any(word in lower for word in words):
            return tag
    return _EXACT.get(head, OTHER) if lower.removeprefix(head + "_").isdigit() else OTHER


def _mark_sample(captured: Captured, tags: dict[Node, str]) -> None:
    """The sample is the input of a usual name, else the one shaped like the output, else the first."""
    named = [n for n in tags if captured.parameter_of(n) in _SAMPLE_NAMES]
    outputs = [n.meta.get("shape") for n in captured.graph.output_node().args[0]]  # type: ignore[union-attr]
    alike = [n for n in tags if n.meta["shape"] in outputs and tags[n] == OTHER]
    for node in named or alike or list(tags)[:1]:
        tags[node] = SAMPLE


def changing_inputs(captured: Captured, tags: Mapping[Node, str]) -> tuple[Node, ...]:
    """Inputs that the loop changes on every step: the sample, the timestep, and further latents.

    A model that predicts several things (video and sound) is given each of them noisy: an input with
    the shape of an output after the first is what that output predicts, whichever condition it is.
    """
    results: Any = captured.graph.output_node().args[0]
    count = len(index_paths(captured.result.tree))  # what the forward wrote elsewhere follows them
    further = {tuple(n.meta["shape"]) for n in results[1:count] if "shape" in n.meta}
    latents = [n for n in tags if tuple(n.meta["shape"]) in further]
    return tuple(dict.fromkeys((*nodes_tagged(tags, SAMPLE, "timestep"), *latents)))


def nodes_tagged(tags: Mapping[Node, str], *wanted: str) -> tuple[Node, ...]:
    return tuple(n for n, tag in tags.items() if tag in wanted)
