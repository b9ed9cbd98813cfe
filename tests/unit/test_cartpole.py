"""The demo's policy: what of it can be tested without the demo's libraries."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples/cartpole/policy.py"
spec = importlib.util.spec_from_file_location("policy", PATH)
assert spec is not None
assert spec.loader is not None
policy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(policy)


def test_same_seed_draws_the_same_weights_around_the_mean() -> None:
    drawn = policy.perturb([1.0, 2.0], [0.0, 1.0], 7)
    assert drawn == policy.perturb([1.0, 2.0], [0.0, 1.0], 7)
    assert drawn[0] == 1.0
    assert drawn[1] != policy.perturb([1.0, 2.0], [0.0, 1.0], 8)[1]


def test_policy_pushes_where_its_weights_lean() -> None:
    dice = random.Random(1)
    assert {policy.act([9.0], [9.0], dice) for _ in range(50)} == {1}
    assert {policy.act([9.0], [-9.0], dice) for _ in range(50)} == {0}
    assert {policy.act([0.0], [9.0], dice) for _ in range(50)} == {0, 1}


def test_improvement_moves_to_the_best_and_keeps_a_least_spread() -> None:
    samples = [([0.0], 1.0), ([4.0], 9.0), ([2.0], 8.0), ([9.0], 0.0)]
    mean, spread = policy.improve(samples, 0.5, 0.1)
    assert mean == [3.0]
    assert spread == pytest.approx([1.0])
    assert policy.improve(samples, 0.1, 0.5) == ([4.0], [0.5])
