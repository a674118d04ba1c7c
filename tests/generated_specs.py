"""Hypothesis strategy for the specifications of generated models."""

from typing import Any

from generated_blocks import Audio, Spec
from hypothesis import strategies as st

_SWITCHES = (
    "gated",
    "in_place",
    "cast",
    "tuple_blocks",
    "reference",
    "text_list",
    "refiner",
    "early_exit",
)


@st.composite
def specs(draw: st.DrawFn, **fixed: Any) -> Spec:
    """Specifications that make sense; fields given by name are not drawn."""
    audio = draw(st.sampled_from(Audio)) if "audio" not in fixed else fixed["audio"]
    blocks = draw(st.integers(2, 5))
    first = 1 if audio is Audio.ADDS else 0
    some = st.sets(st.integers(first, blocks - 1), min_size=1).map(frozenset)
    joint = audio not in (Audio.MERGED, Audio.STREAM) and draw(st.booleans())
    injected = audio in (Audio.INJECTORS, Audio.ADDS)
    drawn = {
        "seed": draw(st.integers(0, 99)),
        "width": draw(st.sampled_from([8, 12, 16])),
        "blocks": blocks,
        "tokens_per_frame": draw(st.integers(3, 6)),
        "batch": draw(st.integers(1, 2)),
        "audio": audio,
        "audio_blocks": draw(some) if injected else frozenset(),
        "joint_text": joint,
        "slice_write": audio is Audio.INJECTORS and draw(st.booleans()),
        "both_outputs": audio is Audio.STREAM and draw(st.booleans()),
        "guidance": draw(st.sampled_from([None, 0.5])),
        "half": draw(st.sampled_from([False, False, False, True])),
    }
    drawn |= {name: draw(st.booleans()) for name in _SWITCHES}
    return Spec(**{**drawn, **fixed})
