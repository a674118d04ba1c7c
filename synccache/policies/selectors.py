"""Selectors: sets of residual branches. What no selector names is computed on every step.

    branches.after(blocks[0]) - branches.reading(AUDIO)

``blocks[k]`` means the branches of block k and every branch injected behind it, before block k+1
begins (an injection before block 0 belongs to block 0), so ``blocks[1:]`` is the rest of the stack.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer

AUDIO = "audio"
TEXT = "text"
TIMESTEP = "timestep"
REFERENCE = "reference"
MASK = "mask"
TAGS = (AUDIO, TEXT, TIMESTEP, REFERENCE, MASK)


class Kind(enum.Enum):
    """What a branch does, read from its operations."""

    ATTENTION = "attention"
    MLP = "mlp"
    ADD = "add"

    def __repr__(self) -> str:
        return self.name


ATTENTION = Kind.ATTENTION
MLP = Kind.MLP
ADD = Kind.ADD


class Selector:
    """A set of residual branches; ``|`` joins, ``&`` intersects, ``-`` takes away."""

    __slots__ = ()

    def __or__(self, other: Selector) -> Either:
        return Either(self, other)

    def __and__(self, other: Selector) -> Both:
        return Both(self, other)

    def __sub__(self, other: Selector) -> Without:
        return Without(self, other)

    def __bool__(self) -> bool:
        raise PolicyError(
            "a selector has no truth value.", hint="Join selectors with |, & and -, not or/and."
        )


@dataclass(frozen=True, slots=True)
class AllBranches(Selector):
    """Every branch of the residual program. Written ``branches``."""

    def reading(self, tag: str) -> Reading:
        """Branches that use a value of this condition, directly or through another stream.

        The visual hidden state is *not* followed: after the first injection it carries audio
        everywhere, and every branch would read it.
        """
        return Reading(tag)

    def after(self, selector: Selector) -> After:
        """Branches that come later than the last branch of ``selector``."""
        return After(selector)

    @property
    def attention(self) -> OfKind:
        return OfKind(Kind.ATTENTION)

    @property
    def mlp(self) -> OfKind:
        return OfKind(Kind.MLP)

    @property
    def adds(self) -> OfKind:
        return OfKind(Kind.ADD)


@dataclass(frozen=True, slots=True)
class Blocks(Selector):
    """Branches of blocks start..stop-1, with what is injected behind each of them."""

    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, plain_integer(value, f"the {name} of blocks[...]"))


class _BlockIndex:
    """Written ``blocks``: ``blocks[0]``, ``blocks[1:]``, ``blocks[-1]``, ``blocks[2:6]``."""

    def __getitem__(self, index: int | slice) -> Blocks:
        if isinstance(index, slice):
            if index.step not in (None, 1):
                raise PolicyError(
                    f"blocks[::{index.step}] is not a run.", hint="Join single blocks with |."
                )
            return Blocks(index.start, index.stop)
        first = plain_integer(index, "blocks[...]")
        return Blocks(first, first + 1 if first != -1 else None)

    def __repr__(self) -> str:
        return "blocks"


@dataclass(frozen=True, slots=True)
class Reading(Selector):
    """Branches that read a condition; see ``branches.reading``."""

    tag: str

    def __post_init__(self) -> None:
        if not isinstance(self.tag, str) or not self.tag:
            raise PolicyError(
                f"reading(...) takes a condition's name, got {self.tag!r}.",
                hint=f"Known names are {', '.join(TAGS)}; compile(conditions=...) adds more.",
            )


@dataclass(frozen=True, slots=True)
class OfKind(Selector):
    """Branches of one kind: attention, mlp, or a plain add."""

    kind: Kind

    def __post_init__(self) -> None:
        expect(self.kind, Kind, "a branch's kind", "Use ATTENTION, MLP or ADD.")


@dataclass(frozen=True, slots=True)
class After(Selector):
    """Branches later in program order than the last branch of ``of``."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what after(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class Either(Selector):
    """Branches of ``left``, of ``right``, or of both."""

    left: Selector
    right: Selector

    def __post_init__(self) -> None:
        expect(self.left, Selector, "the left side of |")
        expect(self.right, Selector, "the right side of |")


@dataclass(frozen=True, slots=True)
class Both(Selector):
    """Branches of ``left`` that are also of ``right``."""

    left: Selector
    right: Selector

    def __post_init__(self) -> None:
        expect(self.left, Selector, "the left side of &")
        expect(self.right, Selector, "the right side of &")


@dataclass(frozen=True, slots=True)
class Without(Selector):
    """Branches of ``left`` that are not of ``right``."""

    left: Selector
    right: Selector

    def __post_init__(self) -> None:
        expect(self.left, Selector, "the left side of -")
        expect(self.right, Selector, "the right side of -")


branches = AllBranches()
blocks = _BlockIndex()


@dataclass(frozen=True, slots=True)
class Segments:
    """The planner may merge neighbouring runs of ``of`` and absorb what is live between them."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what segments(...) takes", "Segments do not nest or join.")


def segments(of: Selector) -> Segments:
    """Branches to skip, as separate residuals whose number the planner chooses under the budget."""
    return Segments(of)


@dataclass(frozen=True, slots=True)
class Network:
    """The whole forward, embeddings and head included; written ``network``.

    Held is the model's output minus its sample input, in the latent space: a skipped step returns
    ``sample + held``. Refused on models whose output has another shape than their sample.
    """


network = Network()


@dataclass(frozen=True, slots=True)
class Values:
    """Runs of ``of`` replaced by the stream's held value after them, not by a residual."""

    of: Selector | Network

    def __post_init__(self) -> None:
        hint = "Select branches, e.g. blocks[1:], or take network."
        expect(self.of, (Selector, Network), "what values(...) takes", hint)


def values(of: Selector | Network) -> Values:
    """Branches to skip, each run replaced by the stream's value after it on earlier steps.

    What comes before a run is then not needed for it, and is not computed unless somebody else
    needs it. ``values(network)`` holds the model's output.
    """
    return Values(of)


@dataclass(frozen=True, slots=True)
class Modules:
    """Each branch of ``of`` for itself: held is what it adds, before its gate."""

    of: Selector
    before_gate: bool = True

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what modules(...) takes", "Select branches, e.g. blocks[1:].")
        expect(self.before_gate, bool, "modules(before_gate=...)", "Use True or False.")


def modules(of: Selector, *, before_gate: bool = True) -> Modules:
    """Branches to skip one by one: their norm, attention or MLP is not run, their gate is.

    A branch's gate is the factor of what it adds that depends on the timestep alone.
    """
    return Modules(of, before_gate)


@dataclass(frozen=True, slots=True)
class Whole:
    """Each stream's branches of ``of`` as one residual, also where a probe reads inside them."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what whole(...) takes", "Select branches, e.g. branches.")


def whole(of: Selector) -> Whole:
    """Branches to skip, held as one residual a stream: after the last of them minus before the first.

    What the rule's probes need of them runs on every step, beside the residual: a skipped step adds to
    the stream as it was before the first branch, not to what the probed blocks made of it. Where
    anybody else reads inside, the run is split, as without whole.
    """
    return Whole(of)


@dataclass(frozen=True, slots=True)
class Nothing:
    """No branch: the rule only measures. Written ``nothing``; see ``synccache.measure``."""


nothing = Nothing()

Skip = Selector | Segments | Values | Modules | Network | Whole | Nothing


def selector_of(skip: Skip) -> Selector:
    """The branches that ``Rule(skip=...)`` names; all of them for the network."""
    if isinstance(skip, Network):
        return branches
    if isinstance(skip, Nothing):
        return branches - branches
    return skip if isinstance(skip, Selector) else selector_of(skip.of)
