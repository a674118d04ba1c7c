"""The policy language: what it says, what it prints, and what it refuses in the author's words."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from random_policies import conditions, policies

from synccache.errors import PolicyError
from synccache.policies import dsl
from synccache.policies.dsl import (
    AUDIO,
    LAST_COMPUTED,
    PREVIOUS,
    Accumulated,
    Blocks,
    Counter,
    Hold,
    Kind,
    Linear,
    OfKind,
    Policy,
    Polynomial,
    RelativeL1,
    Rule,
    Steps,
    accumulated,
    blocks,
    branches,
    inf,
    mask,
    measured_signals,
    output,
    relative_l1,
    residual,
    segments,
    skips,
    step,
)

WORDS = vars(dsl)
moved = relative_l1(residual(blocks[0]), since=LAST_COMPUTED)


@settings(max_examples=150, deadline=None)
@given(policy=policies)
def test_a_policy_prints_as_the_text_that_makes_it(policy: Policy) -> None:
    assert policy == eval(repr(policy), dict(WORDS))


@settings(max_examples=50, deadline=None)
@given(policy=policies)
def test_equal_policies_hash_alike(policy: Policy) -> None:
    assert hash(policy) == hash(eval(repr(policy), dict(WORDS)))


def test_every_word_of_the_language_is_listed_and_importable() -> None:
    assert [name for name in dsl.__all__ if not hasattr(dsl, name)] == []
    assert sorted(dsl.__all__, key=lambda n: (not n.isupper(), n.islower(), n)) == dsl.__all__


# Names that the compiler reads policies with; nobody writes them into a policy.
INTERNAL = {
    "COUNTERS", "MEASURED", "PROBES", "SELECTING", "SKIPS", "TAGS", "check_late", "late",
    "measured_signals", "parts", "selector_of", "weights_of",
}  # fmt: skip


def test_every_word_of_the_language_is_in_its_reference() -> None:
    page = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()
    words = [name for name in dsl.__all__ if name.islower() or name.isupper()]
    words += [word.__name__ for word in vars(dsl).values() if is_predictor(word)]

    assert [w for w in words if w not in INTERNAL and not re.search(rf"\b{w}\b", page)] == []


def is_predictor(word: object) -> bool:
    return isinstance(word, type) and issubclass(word, dsl.Predictor) and word is not dsl.Predictor


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (blocks[0], Blocks(0, 1)),
        (blocks[3], Blocks(3, 4)),
        (blocks[-1], Blocks(-1, None)),
        (blocks[-2], Blocks(-2, -1)),
        (blocks[1:], Blocks(1, None)),
        (blocks[:-2], Blocks(None, -2)),
        (blocks[2:6], Blocks(2, 6)),
        (blocks[:], Blocks(None, None)),
        (blocks[np.int64(2)], Blocks(2, 3)),
        (branches.attention, OfKind(Kind.ATTENTION)),
        (branches.mlp, OfKind(Kind.MLP)),
        (branches.adds, OfKind(Kind.ADD)),
    ],
)
def test_blocks_and_kinds_are_written_like_this(written: object, meant: object) -> None:
    assert meant == written


def test_a_comparison_may_be_written_from_either_side() -> None:
    assert (moved < 0.05) == (moved < 0.05)
    assert (moved <= 0.05) == (moved <= 0.05)
    assert (step >= 2) == (step >= 2)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    condition = moved <= np.float64(0.5)

    assert type(condition.limit) is float
    assert type((step >= np.int32(2)).limit) is int
    assert type(mask("person", inside=np.float32(2)).inside) is float
    assert condition == eval(repr(condition), dict(WORDS))


def test_an_infinite_limit_is_allowed() -> None:
    policy = Policy("always", (Rule(blocks[1:], moved <= inf),))

    assert policy == eval(repr(policy), dict(WORDS))


def test_a_rule_reuses_the_last_residual_unless_told_otherwise() -> None:
    assert Hold() == Rule(blocks[1:], moved <= 0.1).reuse
    assert Linear() == Rule(blocks[1:], moved <= 0.1, Linear()).reuse


def test_with_replaces_fields_of_the_policy() -> None:
    policy = Policy("mine", (Rule(blocks[1:], moved <= 0.1),))

    assert Policy("yours", policy.rules) == policy.with_(name="yours")


def test_measured_signals_are_those_that_need_a_tensor_each_once() -> None:
    total = accumulated(moved)
    condition = (total <= 0.1) & (step >= 2) & ((moved < 1) | ~(total > 3)) & Steps("CS")

    assert (moved,) == measured_signals(condition)
    assert measured_signals((step >= 2) & (skips < 3) | Steps("CCS")) == ()


@settings(max_examples=50, deadline=None)
@given(condition=conditions)
def test_measured_signals_appear_in_the_condition(condition: dsl.Condition) -> None:
    found = measured_signals(condition)

    assert len(found) == len(set(found))
    assert all(repr(signal) in repr(condition) for signal in found)
    assert bool(found) == any(f"{word.__name__}(" in repr(condition) for word in dsl.MEASURED)


WRONG: list[tuple[str, Callable[[], object], str]] = [
    # thresholds
    ("text as a limit", lambda: moved <= "0.05", "must be a number, got '0.05'"),
    ("negative limit", lambda: moved < -0.05, r"must lie in \[0, inf\], got -0.05"),
    ("NaN as a limit", lambda: moved <= math.nan, "must be a number, got nan"),
    ("truth value as a limit", lambda: moved <= True, "must be a number, got True"),
    ("None as a limit", lambda: moved <= None, "must be a number, got None"),
    # Python's own logic
    ("and", lambda: (moved <= 0.1) and (step >= 2), "Write & for and"),
    ("or", lambda: (moved <= 0.1) or (step >= 2), r"\| for or"),
    ("not", lambda: not (moved <= 0.1), "~ for not"),
    ("chained", lambda: 0.01 <= moved <= 0.05, r"a <= x <= b is \(x >= a\) & \(x <= b\)"),
    ("if on a signal", lambda: 1 if moved else 2, "Compare it with a number first"),
    ("no parentheses", lambda: moved <= 0.05 & step >= 2, "each comparison in parentheses"),
    ("bare signal on the right", lambda: (moved <= 0.05) & step, "right side of & must be a cond"),
    ("bare signal on the left", lambda: step & (moved <= 0.05), "each comparison in parentheses"),
    ("bare signal behind |", lambda: (moved <= 0.05) | step, r"right side of \| must be a cond"),
    ("equality", lambda: (moved <= 0.05) & (step == 3), "must be a condition, got False"),
    ("inverted signal", lambda: ~step, "each comparison in parentheses"),
    ("unknown comparison", lambda: dsl.Compare(step, "==", 3), "Use <, <=, >, >="),
    # selectors
    ("and between selectors", lambda: blocks[0] and blocks[1], r"Join selectors with \|, & and -"),
    ("stride", lambda: blocks[::2], r"Join single blocks with \|"),
    ("text as an index", lambda: blocks["0"], "must be an integer, got '0'"),
    ("truth value as an index", lambda: blocks[True], "must be an integer, got True"),
    ("fraction as a border", lambda: blocks[0.5:], "must be an integer, got 0.5"),
    ("list of blocks", lambda: blocks[[0, 1]], r"must be an integer, got \[0, 1\]"),
    ("tag is no text", lambda: branches.reading(3), "Known names are audio"),
    ("empty tag", lambda: branches.reading(""), "takes a condition's name"),
    ("after a number", lambda: branches.after(0), "must be a selector, got 0"),
    ("kind as a text", lambda: OfKind("mlp"), "Use ATTENTION, MLP or ADD"),
    ("selector joined with a number", lambda: blocks[0] | 1, r"right side of \| must be a sel"),
    ("selector joined with segments", lambda: blocks[0] | segments(blocks[1:]), "must be a selec"),
    ("selector less a tag", lambda: branches - AUDIO, "right side of - must be a selector"),
    ("nested segments", lambda: segments(segments(branches)), "do not nest"),
    ("segments of a probe", lambda: segments(output(blocks[0])), "must be a selector"),
    # probes and signals
    ("probe of an index", lambda: output(0), r"must be a selector, got 0"),
    ("probe of segments", lambda: residual(segments(branches)), "must be a selector"),
    ("bare blocks", lambda: output(blocks), r"E?e?.*blocks\[0\]"),
    ("selector as a probe", lambda: relative_l1(blocks[0], since=PREVIOUS), "Probes are output"),
    ("since as a text", lambda: RelativeL1(output(blocks[0]), "previous"), "Use PREVIOUS"),
    ("weight as a number", lambda: RelativeL1(output(blocks[0]), PREVIOUS, 2.0), "maskweight"),
    ("mask without a name", lambda: mask("", inside=2.0), "takes the mask's name"),
    ("negative mask weight", lambda: mask("person", inside=-1), r"lie in \[0, 1e\+06\], got -1"),
    ("infinite mask weight", lambda: mask("person", inside=inf), "must lie in"),
    ("accumulated condition", lambda: accumulated(moved <= 1), "must be a signal, got Compare"),
    ("accumulated counter", lambda: accumulated(step), "must be measured; step is counted"),
    ("polynomial as a list", lambda: Polynomial(moved, [1.0, 0.0]), "must be a tuple"),
    ("empty polynomial", lambda: Polynomial(moved, ()), "must be a tuple of at least one"),
    ("NaN in a polynomial", lambda: Polynomial(moved, (1.0, math.nan)), "got nan"),
    (
        "unknown counter",
        lambda: Counter("time"),
        "Use step, skips, skipped, progress, noise, timestep",
    ),
    # step masks
    ("empty step mask", lambda: Steps(""), "a text of C and S, got ''"),
    ("step mask of digits", lambda: Steps("1010"), "a text of C and S, got '1010'"),
    ("step mask as a list", lambda: Steps(["C", "S"]), "a text of C and S"),
    # rules and policies
    (
        "rule skips a number",
        lambda: Rule(1, moved <= 1),
        "must be a selector or segments or values or modules or network or whole or nothing, got 1",
    ),
    ("rule skips blocks", lambda: Rule(blocks, moved <= 1), r"Select branches, e.g. blocks\[1:\]"),
    ("rule when a signal", lambda: Rule(branches, moved), "Compare a signal with a number"),
    ("rule when a number", lambda: Rule(branches, 0.05), "must be a condition, got 0.05"),
    ("rule reuses a class", lambda: Rule(branches, step > 1, Hold), "got <class"),
    ("policy without a name", lambda: Policy(""), "name must be a text"),
    ("rules as a list", lambda: Policy("p", [Rule(branches, step > 1)]), "must be a tuple"),
    ("one bare rule", lambda: Policy("p", Rule(branches, step > 1)), "with a comma"),
    ("rule that is none", lambda: Policy("p", (branches,)), "p: rule 1 must be a Rule"),
    ("leader as a text", lambda: Policy("p", (), "first_branch"), "Use FIRST_BRANCH or EACH"),
    ("unknown field", lambda: Policy("p").with_(thresold=1), "It has name, rules, leader"),
    ("no threshold", lambda: Policy("p").with_(threshold=1), r"this policy has 0 \(none\)"),
]


@pytest.mark.parametrize(("write", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_policy_fails_when_it_is_written(write: Callable[[], object], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        write()


def test_parts_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        moved.since = PREVIOUS


def test_a_signal_inside_an_accumulator_keeps_its_reference() -> None:
    assert Accumulated(moved) == accumulated(moved)
    assert LAST_COMPUTED is accumulated(moved).of.since
