"""The demo: what of it can be tested without its libraries. Go and TypeScript read the same vectors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples/cartpole"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


policy, physics = load("policy"), load("physics")
vectors = json.loads((FOLDER / "vectors.json").read_text())


def test_step_is_that_of_gymnasium() -> None:
    assert len(vectors["steps"]) >= 100
    for before, action, after, over in vectors["steps"]:
        found = physics.step(tuple(before), action)
        assert found == pytest.approx(after, rel=0, abs=1e-12)
        assert physics.is_over(found) == over


def test_episodes_are_those_of_the_other_languages_to_the_last_bit() -> None:
    assert len(vectors["episodes"]) >= 30
    for episode in vectors["episodes"]:
        weights = physics.vary(episode["mean"], episode["spread"], episode["noise"])
        state, actions = tuple(episode["start"]), ""
        while len(actions) < physics.LONGEST and not physics.is_over(state):
            action = physics.act(weights, state)
            actions += str(action)
            state = physics.step(state, action)
        assert actions == episode["actions"]
        assert state == tuple(episode["end"])


def test_vectors_tell_much() -> None:
    lengths = [len(episode["actions"]) for episode in vectors["episodes"]]
    assert len([n for n in lengths if n == physics.LONGEST]) >= 5
    assert len([n for n in lengths if 50 < n < physics.LONGEST]) >= 15
    assert len([over for *_, over in vectors["steps"] if over]) >= 20


def test_same_seed_draws_the_same_episode() -> None:
    assert policy.new_task(7) == policy.new_task(7)
    assert policy.new_task(7) != policy.new_task(8)
    assert max(abs(x) for x in policy.new_task(7)["start"]) <= 0.05


def test_weights_are_the_mean_and_a_multiple_of_the_spread() -> None:
    assert physics.vary([1.0, 2.0], [0.0, 0.5], [3.0, -2.0]) == (1.0, 1.0)


def test_policy_pushes_where_its_weights_lean() -> None:
    assert physics.act([9.0, 0, 0, 0], (9.0, 0, 0, 0)) == 1
    assert physics.act([9.0, 0, 0, 0], (-9.0, 0, 0, 0)) == 0


def test_improvement_moves_to_the_best_and_keeps_a_least_spread() -> None:
    samples = [([0.0], 1.0), ([4.0], 9.0), ([2.0], 8.0), ([9.0], 0.0)]
    mean, spread = policy.improve(samples, 0.5, 0.1)
    assert mean == [3.0]
    assert spread == pytest.approx([1.0])
    assert policy.improve(samples, 0.1, 0.5) == ([4.0], [0.5])
