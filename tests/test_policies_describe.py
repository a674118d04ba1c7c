"""Policies in words, as reports and refusals say them."""

import pytest
from hypothesis import given, settings
from random_policies import policies as random_policies

from synccache import policies
from synccache.policies import dsl
from synccache.policies.describe import describe
from synccache.policies.dsl import PREVIOUS, Policy, blocks, latent, output, relative_l1, step


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (step >= 2, "step >= 2"),
        (abs(relative_l1(latent, since=PREVIOUS) - 0.0), "|change of the sample since previous|"),
        (output(blocks[1:]), "output of blocks[1:]"),
        (dsl.between(dsl.timestep, 100, 800), "timestep between 100 and 800"),
        (~dsl.every(step, 3, 1), "not (every 3 of step from 1)"),
        (step >= dsl.share(0.2), "step >= 0.2 of the steps"),
        (dsl.choose(step < 3, 0.2, 0.1), "(0.2 where step < 3, else 0.1)"),
    ],
)
def test_a_part_of_a_policy_in_words(item: object, words: str) -> None:
    assert describe(item) == words


@settings(max_examples=60, deadline=None)
@given(policy=random_policies)
def test_every_condition_and_signal_has_words_of_its_own(policy: Policy) -> None:
    for rule in policy.rules:
        for part in dsl.parts(rule.when):
            assert f"{type(part).__name__}(" not in describe(part).split(" by ")[0]


def test_every_method_of_the_library_has_words() -> None:
    for name in ("teacache", "easycache", "seacache", "dbcache", "confidence_taylor"):
        (rule,) = policies.by_name(name).rules
        assert "(of=" not in describe(rule.when)
