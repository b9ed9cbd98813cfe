from __future__ import annotations

import pytest
from lightningstore.client import (
    DeadlineExceededError,
    InvalidArgumentError,
    LightningStoreError,
    ResourceExhaustedError,
    UnavailableError,
)
from lightningstore.client._transport.methods import (
    SERVICE,
    answer_type,
    method_path,
    repeats_are_harmless,
)
from lightningstore.client._transport.retries import MAX_DELAY, Retry
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(timeout: float | None, *, safe: bool = True) -> tuple[Retry, Clock]:
    clock = Clock()
    return Retry(timeout, safe=safe, now=clock, jitter=lambda: 1.0), clock


def delays(retry: Retry, clock: Clock, error: LightningStoreError) -> list[float]:
    found = []
    while (delay := retry.delay_after(error)) is not None:
        found.append(delay)
        clock.now += delay
    return found


def test_delays_grow_up_to_a_bound_until_the_deadline() -> None:
    retry, clock = make(30.0)
    found = delays(retry, clock, UnavailableError())
    assert found[:4] == [0.05, 0.1, 0.2, 0.4]
    assert max(found) == MAX_DELAY
    assert 28.0 <= sum(found) < 30.0


def test_delays_vary_between_a_half_and_the_whole() -> None:
    assert Retry(30.0, jitter=lambda: 0.0).delay_after(UnavailableError()) == 0.025
    assert Retry(30.0, jitter=lambda: 1.0).delay_after(UnavailableError()) == 0.05


def test_what_a_repeat_could_do_twice_is_not_repeated() -> None:
    retry, _ = make(30.0, safe=False)
    assert retry.delay_after(UnavailableError()) is None
    # It says itself that nothing was done.
    assert retry.delay_after(UnavailableError(retry_delay=0.1)) is not None
    assert retry.delay_after(ResourceExhaustedError(retry_delay=0.1)) is not None


def test_the_servers_delay_is_kept() -> None:
    retry, _ = make(30.0)
    assert retry.delay_after(ResourceExhaustedError(retry_delay=5.0)) == 6.0
    assert Retry(30.0, jitter=lambda: 0.0).delay_after(
        ResourceExhaustedError(retry_delay=5.0)
    ) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "error", [InvalidArgumentError(), ResourceExhaustedError(), DeadlineExceededError()]
)
def test_what_waiting_does_not_mend_is_not_repeated(error: LightningStoreError) -> None:
    retry, _ = make(30.0)
    assert retry.delay_after(error) is None


def test_no_try_begins_after_the_deadline() -> None:
    retry, clock = make(1.0)
    assert retry.remaining() == pytest.approx(1.0)
    clock.now += 0.99
    assert retry.delay_after(UnavailableError()) is None
    clock.now += 1
    assert retry.remaining() == 0.001


def test_without_a_timeout_there_is_no_end() -> None:
    retry, clock = make(None)
    assert retry.remaining() is None
    for _ in range(100):
        clock.now += 100
        assert retry.delay_after(UnavailableError()) is not None


def test_a_stream_that_works_has_its_whole_time_again() -> None:
    retry, clock = make(10.0)
    retry.heard()
    clock.now += 3600
    assert retry.delay_after(UnavailableError()) == 0.05
    clock.now += 9.0
    assert retry.delay_after(UnavailableError()) is not None
    clock.now += 1.0
    assert retry.delay_after(UnavailableError()) is None


def test_safety_follows_the_contract_and_the_ids() -> None:
    unsafe = {
        method.name
        for method in SERVICE.methods
        if not repeats_are_harmless(method.name, rollout_pb2.GetRolloutRequest())
    }
    assert unsafe == {
        "EnqueueRollouts",
        "StartRollout",
        "DequeueRollouts",
        "StartAttempt",
        "UpdateRollout",
        "AllocateSequenceIds",
        "AddResources",
        "UpdateResources",
        "PauseClaims",
        "ResumeClaims",
        "PullFinished",
        "Acknowledge",
    }
    assert repeats_are_harmless("DequeueRollouts", claim_pb2.DequeueRolloutsRequest(request_id="x"))
    assert not repeats_are_harmless("DequeueRollouts", claim_pb2.DequeueRolloutsRequest())
    assert repeats_are_harmless("UpdateAttempt", attempt_pb2.UpdateAttemptRequest())
    named = rollout_pb2.EnqueueRolloutsRequest(rollouts=[{"rollout_id": "a"}])
    assert repeats_are_harmless("EnqueueRollouts", named)
    named.rollouts.add()
    assert not repeats_are_harmless("EnqueueRollouts", named)


def test_methods_go_by_the_contracts_names() -> None:
    assert method_path("GetRollout") == "/lightningstore.v1.LightningStoreService/GetRollout"
    assert answer_type("GetRollout") is rollout_pb2.GetRolloutResponse
    with pytest.raises(ValueError, match="GetRolout"):
        method_path("GetRolout")
