"""The kinds of error, and the one shape their messages have.

    PlanError: asymmetric on WanModel_S2V: the budget of 2.00 GB is below the 2.16 GB that ...
    ^ kind     ^ where                     ^ message: expected and found, with numbers; cause

`where` names the policy, model, rule, module path or step in words the reader typed; `message` says
what was expected, what was found and why; `hint` follows and says what to try next. All three stay
readable as attributes. `docs/errors.md` has one heading for each kind.
"""

from __future__ import annotations

from functools import partial

__all__ = [
    "CaptureError",
    "MatchError",
    "PlanError",
    "PolicyError",
    "StateError",
    "SynccacheError",
    "VerifyError",
]

_SENTENCE_ENDS = (".", "!", "?", ":", "\n")


class SynccacheError(Exception):
    """Anything synccache refuses to do; `except SynccacheError` catches every kind."""

    message: str
    where: str
    hint: str

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(_sentence(message, where=where, hint=hint))

    def __reduce__(self) -> tuple[object, tuple[()], dict[str, object]]:
        rebuild = partial(type(self), self.message, where=self.where, hint=self.hint)
        return rebuild, (), dict(vars(self))


class PolicyError(SynccacheError):
    """A policy is wrong as written: an impossible threshold, an unknown name, an empty rule."""


class CaptureError(SynccacheError):
    """A model's forward could not be recorded faithfully."""


class MatchError(SynccacheError):
    """A policy's selectors found nothing usable in this model."""


class PlanError(SynccacheError):
    """No plan meets what was asked, or a plan does not belong to the problem at hand."""


class VerifyError(SynccacheError):
    """A graph or a replay is not what it must be; the result would have been wrong."""


class StateError(SynccacheError):
    """Caches were used outside the trajectory, step or guidance branch that they belong to."""


def _sentence(message: str, *, where: str, hint: str) -> str:
    """`where: message hint`, with a full stop after a message that lacks one before a hint."""
    stop = "." if hint and not message.endswith(_SENTENCE_ENDS) else ""
    return f"{where}: " * bool(where) + message + stop + f" {hint}" * bool(hint)
