"""Every status with every event, against tables written by hand from SPEC section 2."""

from __future__ import annotations

from itertools import product

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.errors import TransitionNotAllowed
from lightningstore.service.rules.lifecycle import Queue, Transition
from lightningstore.v1.attempt_pb2 import Attempt, Failure
from lightningstore.v1.rollout_pb2 import RetryBackoff, Rollout, RolloutConfig

NOW = Timestamp(seconds=1_000_000)
THEN = Timestamp(seconds=500_000)

# Attempts: Preparing, Running, Succeeded, Failed, Timeout, Unresponsive. The numbers are the contract's.
ATTEMPTS = {"P": 1, "R": 2, "S": 3, "F": 4, "T": 5, "U": 6}
# Rollouts: Queuing, Preparing, Running, Succeeded, Failed, Cancelled, reQueuing (X).
ROLLOUTS = {"Q": 1, "P": 2, "R": 3, "S": 4, "F": 5, "C": 6, "X": 7}
OPEN, DONE = "QPRX", "SF"

# What an attempt becomes: one letter a status in the order P R S F T U; "!" is refused.
#                 open, latest / done, latest / cancelled, latest / open, old / finished, old
ATTEMPT_TABLE = {
    "span": ("RRSFTR", "RRSFTU", "RRSFTU", "RRSFTR", "RRSFTU"),
    "heartbeat": ("PRSFTR", "PRSFTU", "PRSFTU", "PRSFTR", "PRSFTU"),
    "succeed": ("SSS!SS", "SSS!SS", "SSSSSS", "SSSSSS", "SSSSSS"),
    "fail": ("FF!FFF", "FF!FFF", "FFFFFF", "FFFFFF", "FFFFFF"),
    "timeout": ("TTSFTU", "TTSFTU", "TTSFTU", "TTSFTU", "TTSFTU"),
    "silence": ("UUSFTU", "UUSFTU", "UUSFTU", "UUSFTU", "UUSFTU"),
}
# What the rollout becomes when its latest attempt goes from the first letter to the second, by the
# rollout's status in the order Q P R S F C X. A retry is due after any end but success.
ROLLOUT_TABLE = {
    "span": {"PR": "RRRSFCR", "RR": "RRRSFCR", "UR": "RRRSFCR"},
    "heartbeat": {"RR": "RRRSFCR", "UR": "RRRSFCR"},
    "succeed": {"PS": "SSSSFCS", "RS": "SSSSFCS", "TS": "SSSSFCS", "US": "SSSSFCS"},
    "fail": {"PF": "XXXSFCX", "RF": "XXXSFCX", "TF": "XXXSFCX", "UF": "XXXSFCX"},
    "timeout": {"PT": "XXXSFCX", "RT": "XXXSFCX"},
    "silence": {"PU": "XXXSFCX", "RU": "XXXSFCX"},
}
UNCHANGED = "QPRSFCX"
RETRIED = RolloutConfig(max_attempts=3, retry_condition=[4, 5, 6])


def situation(rollout: str, *, latest: bool) -> int:
    if latest:
        return 0 if rollout in OPEN else 1 if rollout in DONE else 2
    return 3 if rollout in OPEN else 4


def records(
    attempt: str, rollout: str, *, latest: bool, config: RolloutConfig = RETRIED
) -> tuple[Rollout, Attempt]:
    one = Attempt(rollout_id="ro", attempt_id="at-1", sequence_number=1, status=ATTEMPTS[attempt])
    if attempt in "SFTU":
        one.end_time.CopyFrom(THEN)
    task = Rollout(
        rollout_id="ro",
        status=ROLLOUTS[rollout],
        config=config,
        attempt_count=1 if latest else 2,
        latest_attempt_id="at-1" if latest else "at-2",
    )
    if rollout in "SFC":
        task.end_time.CopyFrom(THEN)
        task.completion_number = 7
    return task, one


def happen(event: str, task: Rollout, one: Attempt) -> Transition:
    if event in ("span", "heartbeat"):
        return lifecycle.heard_from(task, one, NOW, by_span=event == "span")
    if event in ("succeed", "fail"):
        return lifecycle.report(task, one, 3 if event == "succeed" else 4, None, NOW, 0.5)
    return lifecycle.expire(task, one, 5 if event == "timeout" else 6, NOW, 0.5)


def letter(letters: dict[str, int], status: int) -> str:
    return next(key for key, value in letters.items() if value == status)


@pytest.mark.parametrize(
    ("event", "attempt", "rollout", "latest"),
    list(product(ATTEMPT_TABLE, ATTEMPTS, ROLLOUTS, [True, False])),
)
def test_event_does_what_the_tables_say(
    event: str, attempt: str, rollout: str, latest: bool
) -> None:
    task, one = records(attempt, rollout, latest=latest)
    before = (task.SerializeToString(), one.SerializeToString())
    row = ATTEMPT_TABLE[event][situation(rollout, latest=latest)]
    expected = row["PRSFTU".index(attempt)]
    if expected == "!":
        with pytest.raises(TransitionNotAllowed):
            happen(event, task, one)
        return
    transition = happen(event, task, one)
    assert (task.SerializeToString(), one.SerializeToString()) == before
    after = transition.attempt or one
    assert letter(ATTEMPTS, after.status) == expected
    moves = ROLLOUT_TABLE[event].get(attempt + expected, UNCHANGED) if latest else UNCHANGED
    wanted = moves["QPRSFCX".index(rollout)]
    moved = transition.rollout or task
    assert letter(ROLLOUTS, moved.status) == wanted
    check_consequences(event, rollout, wanted, transition, after, attempt)


def check_consequences(
    event: str, rollout: str, wanted: str, transition: Transition, after: Attempt, attempt: str
) -> None:
    newly_ended = letter(ATTEMPTS, after.status) in "SFTU"
    if letter(ATTEMPTS, after.status) != attempt:
        assert after.HasField("end_time") == newly_ended
    if event in ("span", "heartbeat"):
        assert after.last_heartbeat_time == NOW
    if wanted == rollout:
        assert not transition.finished
        assert transition.queue is not Queue.TAIL
        return
    assert transition.finished == (wanted in "SFC")
    assert transition.queue is (Queue.TAIL if wanted == "X" else Queue.OUT)
    if wanted in "SFC":
        assert transition.rollout is not None
        assert transition.rollout.end_time == NOW


@pytest.mark.parametrize(("attempt", "rollout"), list(product("PRFTU", ROLLOUTS)))
def test_end_without_a_retry_due_fails_an_open_rollout(attempt: str, rollout: str) -> None:
    task, one = records(attempt, rollout, latest=True, config=RolloutConfig(max_attempts=1))
    transition = happen("fail", task, one)
    moved = transition.rollout or task
    wanted = "F" if rollout in OPEN and attempt != "F" else rollout
    assert letter(ROLLOUTS, moved.status) == wanted
    assert transition.finished == (wanted != rollout)


@pytest.mark.parametrize("rollout", list(ROLLOUTS))
def test_claim_prepares_all_but_a_cancelled_rollout(rollout: str) -> None:
    task, _ = records("S", rollout, latest=True)
    new = Attempt(rollout_id="ro", attempt_id="at-2", sequence_number=2, status=1)
    if rollout == "C":
        with pytest.raises(TransitionNotAllowed):
            lifecycle.claim(task, new)
        return
    transition = lifecycle.claim(task, new)
    assert transition.rollout is not None
    assert (transition.queue, transition.finished) == (Queue.OUT, False)
    assert transition.rollout.status == ROLLOUTS["P"]
    assert transition.rollout.latest_attempt_id == "at-2"
    assert transition.rollout.attempt_count == 2
    assert not transition.rollout.HasField("end_time")
    assert transition.rollout.completion_number == 0


# What a rollout (in the order Q P R S F C X) becomes when its status is set; "!" is refused.
SET_STATUS = {
    "Q": "QQQQQQQ",
    "X": "XXXXXXX",
    "P": "!P!!!!!",
    "R": "!!R!!!!",
    "S": "SSSS!!S",
    "F": "FFF!F!F",
    "C": "CCC!!CC",
}


@pytest.mark.parametrize(("status", "rollout"), list(product(SET_STATUS, ROLLOUTS)))
def test_setting_a_status_does_what_the_table_says(status: str, rollout: str) -> None:
    task, _ = records("P", rollout, latest=True)
    expected = SET_STATUS[status]["QPRSFCX".index(rollout)]
    if expected == "!":
        with pytest.raises(TransitionNotAllowed):
            lifecycle.set_status(task, ROLLOUTS[status], NOW)
        return
    transition = lifecycle.set_status(task, ROLLOUTS[status], NOW)
    if status == rollout:
        assert transition == lifecycle.NOTHING
        return
    assert transition.rollout is not None
    assert letter(ROLLOUTS, transition.rollout.status) == expected
    assert transition.queue is (Queue.TAIL if expected in "QX" else Queue.OUT)
    assert transition.finished == (expected in "SFC")
    assert transition.rollout.HasField("end_time") == (expected in "SFC")


@pytest.mark.parametrize(
    ("rollout", "latest", "reason"),
    [
        ("R", True, 0),
        ("X", True, 0),
        ("C", True, 1),
        ("C", False, 1),
        ("S", True, 2),
        ("F", True, 2),
        ("R", False, 3),
        ("S", False, 3),
    ],
)
def test_runner_is_told_why_to_stop(rollout: str, latest: bool, reason: int) -> None:
    assert lifecycle.stop_reason(*records("R", rollout, latest=latest)) == reason


@pytest.mark.parametrize(
    ("status", "sequence", "failure", "retried"),
    [
        (4, 1, None, True),
        (4, 2, Failure(), True),
        (4, 3, None, False),
        (5, 1, None, False),
        (4, 1, Failure(retryable=True), True),
        (4, 1, Failure(retryable=False), False),
    ],
)
def test_retry_needs_condition_attempts_and_no_veto(
    status: int, sequence: int, failure: Failure | None, retried: bool
) -> None:
    config = RolloutConfig(max_attempts=3, retry_condition=[4, 6])
    assert lifecycle.should_retry(config, status, sequence, failure) is retried


@pytest.mark.parametrize(
    ("sequence", "dice", "delay"),
    [(1, 0.5, 2.0), (2, 0.5, 6.0), (3, 0.5, 10.0), (99, 0.5, 10.0), (1, 0.0, 1.5), (1, 1.0, 2.5)],
)
def test_back_off_grows_to_its_bound_and_varies_by_its_jitter(
    sequence: int, dice: float, delay: float
) -> None:
    backoff = RetryBackoff(factor=3, jitter=0.25)
    backoff.initial_delay.seconds, backoff.max_delay.seconds = 2, 10
    config = RolloutConfig(retry_backoff=backoff)
    assert lifecycle.backoff_delay(config, sequence, dice) == pytest.approx(delay)


def test_without_a_back_off_a_retry_waits_not_at_all() -> None:
    assert lifecycle.backoff_delay(RolloutConfig(), 5, 1.0) == 0


# What a rollout (in the order Q P R S F C X) becomes by what is done to it and not to an attempt: whatever
# its attempts are, they stay as they are.
ROLLOUT_EVENTS = {"claim": "PPPPP!P", "cancel": "CCC!!CC", "requeue": "QQQQQQQ"}


@pytest.mark.parametrize(
    ("event", "attempt", "rollout", "latest"),
    list(product(ROLLOUT_EVENTS, ATTEMPTS, ROLLOUTS, [True, False])),
)
def test_what_is_done_to_a_rollout_leaves_its_attempts_as_they_are(
    event: str, attempt: str, rollout: str, latest: bool
) -> None:
    task, one = records(attempt, rollout, latest=latest)
    before = (task.SerializeToString(), one.SerializeToString())
    new = Attempt(rollout_id="ro", attempt_id="at-3", sequence_number=3, status=1)

    def act() -> Transition:
        if event == "claim":
            return lifecycle.claim(task, new)
        return lifecycle.set_status(task, ROLLOUTS["C" if event == "cancel" else "Q"], NOW)

    expected = ROLLOUT_EVENTS[event]["QPRSFCX".index(rollout)]
    if expected == "!":
        with pytest.raises(TransitionNotAllowed):
            act()
        return
    transition = act()
    assert (task.SerializeToString(), one.SerializeToString()) == before
    assert transition.attempt is (new if event == "claim" else None)
    assert letter(ROLLOUTS, (transition.rollout or task).status) == expected
    assert transition.finished == (event == "cancel" and rollout != "C")


# What an attempt becomes when its runner says RUNNING, by the rollout as above; "!" is refused: nothing
# leads back from an end, but for the watchdog's UNRESPONSIVE.
SAY_RUNNING = ("RR!!!R", "RR!!!!", "RR!!!!", "RR!!!R", "RR!!!!")


@pytest.mark.parametrize(
    ("attempt", "rollout", "latest"), list(product(ATTEMPTS, ROLLOUTS, [True, False]))
)
def test_runner_may_say_that_it_runs(attempt: str, rollout: str, latest: bool) -> None:
    task, one = records(attempt, rollout, latest=latest)
    expected = SAY_RUNNING[situation(rollout, latest=latest)]["PRSFTU".index(attempt)]
    if expected == "!":
        with pytest.raises(TransitionNotAllowed):
            lifecycle.report(task, one, ATTEMPTS["R"], None, NOW, 0.5)
        return
    transition = lifecycle.report(task, one, ATTEMPTS["R"], None, NOW, 0.5)
    after = transition.attempt or one
    assert letter(ATTEMPTS, after.status) == "R"
    assert not after.HasField("end_time")
    runs = latest and attempt != "R" and rollout in OPEN
    moved = transition.rollout or task
    assert letter(ROLLOUTS, moved.status) == ("R" if runs else rollout)


def report(task: Rollout, one: Attempt, word: str, failure: Failure | None = None) -> Transition:
    return lifecycle.report(task, one, ATTEMPTS[word], failure, NOW, 0.5)


@pytest.mark.parametrize("verdict", ["T", "U"])
def test_late_success_decides_a_rollout_that_waits_for_its_retry(verdict: str) -> None:
    transition = report(*records(verdict, "X", latest=True), "S")
    assert transition.rollout is not None
    assert transition.rollout.status == ROLLOUTS["S"]
    assert (transition.queue, transition.finished) == (Queue.OUT, True)


@pytest.mark.parametrize("verdict", ["T", "U"])
def test_late_failure_leaves_the_waiting_retry_in_its_place(verdict: str) -> None:
    transition = report(*records(verdict, "X", latest=True), "F")
    assert transition.attempt is not None
    assert transition.attempt.status == ATTEMPTS["F"]
    assert (transition.rollout, transition.queue) == (None, Queue.KEEP)


@pytest.mark.parametrize("verdict", ["T", "U"])
def test_late_failure_that_retrying_cannot_help_ends_the_wait_for_a_retry(verdict: str) -> None:
    transition = report(*records(verdict, "X", latest=True), "F", Failure(retryable=False))
    assert transition.rollout is not None
    assert transition.rollout.status == ROLLOUTS["F"]
    assert (transition.queue, transition.finished) == (Queue.OUT, True)


@pytest.mark.parametrize(("word", "rollout"), list(product("SF", "SFC")))
def test_late_word_under_a_finished_rollout_is_recorded_and_no_more(
    word: str, rollout: str
) -> None:
    transition = report(*records("U", rollout, latest=True), word)
    assert transition.attempt is not None
    assert transition.attempt.status == ATTEMPTS[word]
    assert transition.attempt.end_time == NOW
    assert transition._replace(attempt=None) == lifecycle.NOTHING


def test_late_span_of_a_failed_attempt_leaves_the_waiting_retry_in_the_queue() -> None:
    transition = lifecycle.heard_from(*records("F", "X", latest=True), NOW, by_span=True)
    assert (transition.rollout, transition.queue) == (None, Queue.KEEP)


def test_late_span_revives_unresponsive_attempt_and_takes_its_retry_out_of_the_queue() -> None:
    transition = lifecycle.heard_from(*records("U", "X", latest=True), NOW, by_span=True)
    assert transition.attempt is not None
    assert transition.rollout is not None
    assert not transition.attempt.HasField("end_time")
    assert transition.rollout.status == ROLLOUTS["R"]
    assert transition.queue is Queue.OUT


@pytest.mark.parametrize(("word", "other"), [("S", "F"), ("F", "S")])
def test_word_that_decided_is_final_and_may_be_repeated(word: str, other: str) -> None:
    task, one = records(word, word, latest=True)
    assert report(task, one, word) == lifecycle.NOTHING
    assert lifecycle.decided(task, one, ATTEMPTS[word])
    with pytest.raises(TransitionNotAllowed, match="cannot become"):
        report(task, one, other)


def test_record_of_a_superseded_attempt_may_be_corrected() -> None:
    transition = report(*records("S", "R", latest=False), "F", Failure(message="wrong"))
    assert transition.attempt is not None
    assert transition.attempt.failure.message == "wrong"
    assert transition._replace(attempt=None) == lifecycle.NOTHING


def test_success_after_a_failure_forgets_why_it_failed() -> None:
    task, one = records("F", "R", latest=False)
    one.failure.message = "wrong"
    transition = report(task, one, "S")
    assert transition.attempt is not None
    assert not transition.attempt.HasField("failure")


@pytest.mark.parametrize("max_attempts", [0, 1])
def test_one_attempt_is_all_unless_more_are_asked_for(max_attempts: int) -> None:
    config = RolloutConfig(max_attempts=max_attempts, retry_condition=[4])
    assert not lifecycle.should_retry(config, 4, 1, None)


def test_attempt_beyond_max_attempts_is_not_retried() -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=[4])
    assert not lifecycle.should_retry(config, 4, 5, None)  # StartAttempt ignores max_attempts


def test_retry_waits_for_its_back_off() -> None:
    backoff = RetryBackoff(factor=2)
    backoff.initial_delay.seconds = 4
    config = RolloutConfig(max_attempts=3, retry_condition=[4], retry_backoff=backoff)
    transition = report(*records("R", "R", latest=True, config=config), "F")
    assert (transition.queue, transition.delay) == (Queue.TAIL, 4.0)


def test_back_off_without_a_bound_ends_at_an_hour() -> None:
    backoff = RetryBackoff(factor=10)
    backoff.initial_delay.seconds = 1
    delays = [lifecycle.backoff_delay(RolloutConfig(retry_backoff=backoff), n, 0.5) for n in (4, 9)]
    assert delays == [1000, 3600]


def test_back_off_without_a_factor_stays_the_same() -> None:
    backoff = RetryBackoff()
    backoff.initial_delay.nanos = 500_000_000
    config = RolloutConfig(retry_backoff=backoff)
    assert [lifecycle.backoff_delay(config, n, 0.5) for n in (1, 2, 50)] == [0.5, 0.5, 0.5]


@given(
    initial=st.integers(0, 10_000),
    factor=st.floats(1, 1e6),
    jitter=st.floats(0, 1),
    sequence=st.integers(1, 2**31 - 1),
    dice=st.floats(0, 1),
)
def test_jitter_stays_within_its_share_of_the_delay(
    initial: int, factor: float, jitter: float, sequence: int, dice: float
) -> None:
    backoff = RetryBackoff(factor=factor, jitter=jitter)
    backoff.initial_delay.seconds = initial
    config = RolloutConfig(retry_backoff=backoff)
    plain = lifecycle.backoff_delay(config, sequence, 0.5)
    delay = lifecycle.backoff_delay(config, sequence, dice)
    assert 0 <= plain <= 3600
    assert plain * (1 - jitter) <= delay + 1e-9
    assert delay <= plain * (1 + jitter) + 1e-9
