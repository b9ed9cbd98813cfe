"""Rows 1, 2, 3, 8 and 13: calls about rollouts, beside an echo of the same messages."""

from __future__ import annotations

from benchmarks.bench import Bench, Samples, cpu_each, rate

PARTS = ("enqueue", "claim", "update")
#: The peer is slower, and so are its preparations.
PEER_CALLS = 1500


def _kinds(bench: Bench) -> list[str]:
    kinds = ["echo"]
    if 1 in bench.rows:
        kinds.append("memory")
    if 2 in bench.rows:
        kinds.append("sqlite")
        if bench.peer:
            kinds.append("peer")
    return kinds


def _at_64(bench: Bench) -> Samples:
    job = {"workload": "calls", "callers": 64, "seconds": bench.seconds}
    slow = {"most_calls": PEER_CALLS}
    return bench.shared("calls", lambda: bench.rounds(_kinds(bench), job, peer=slow))


def _at_1(bench: Bench) -> Samples:
    job = {"workload": "calls", "callers": 1, "seconds": bench.seconds, "most_calls": 3000}
    kinds = ["echo", "sqlite"] if 2 in bench.rows else ["echo"]
    return bench.shared("calls at 1", lambda: bench.rounds(kinds, job))


def memory(bench: Bench) -> None:
    """Row 1: memory ÷ echo at 64 callers. Both ratios have to reach the goal.

    Not measured: TLS, large inputs, request ids, priorities, workers.
    """
    found = _at_64(bench)
    for part in PARTS:
        bench.compare("1", part, found["memory"], found["echo"], 0.85)


def sqlite(bench: Bench) -> None:
    """Row 2: SQLite at full durability ÷ echo, at 64 callers and at 1; and the peer.

    At 1 caller the wait for the disk counts, so only the rate is held to the goal. The peer is asked through
    its own client, which has a process to itself as every load has.
    """
    found = _at_64(bench)
    for part in PARTS:
        bench.compare("2", part, found["sqlite"], found["echo"], 0.75)
    alone = _at_1(bench)
    for part in PARTS:
        pairs = zip(alone["sqlite"], alone["echo"], strict=True)
        ratios = [rate(a[part]) / rate(b[part]) for a, b in pairs]
        bench.add("2", f"{part}, 1 caller: per second", "×", ratios, 0.5)
    if "peer" in found:
        for part in PARTS:
            beside_peer(bench, f"{part}: SQLite ÷ peer", found, part, part, 6)


def beside_peer(
    bench: Bench, label: str, found: Samples, part: str, peer_part: str, goal: float
) -> None:
    """Add how many times as much SQLite does in a second as the peer does."""
    pairs = zip(found["sqlite"], found["peer"], strict=True)
    bench.add("peer", label, "×", [rate(a[part]) / rate(b[peer_part]) for a, b in pairs], goal)


def batches(bench: Bench) -> None:
    """Row 3: 100 rollouts a call, 16 callers, SQLite; rollouts per second of server CPU, all threads.

    Not measured: what the same costs the caller, who gets 100 rollouts with their inputs back.
    """
    job = {"workload": "batches", "callers": 16, "seconds": bench.seconds, "most_rollouts": 60_000}
    found = bench.rounds(["sqlite"], job)["sqlite"]
    for part, goal in (("enqueue 100", 40_000), ("claim 100", 30_000)):
        samples = [1 / cpu_each(trial[part]) for trial in found]
        bench.add("3", f"{part}: rollouts per second of server CPU", "/s", samples, goal)
        bench.add("3", f"{part}: rollouts per second", "/s", [rate(t[part]) for t in found])


def waiters(bench: Bench) -> None:
    """Row 8: from the answer of UpdateAttempt to the waiter's message, SQLite.

    The echo's round trip is the median of its UpdateAttempt at 1 caller. Many waiters share one process of
    Python, whose own time for their messages is in the figure.
    """
    trips = [trial["update"]["p50_ms"] for trial in _at_1(bench)["echo"]]
    one = {"workload": "told", "callers": 1, "waiters": 1, "rounds": 100}
    many = {"workload": "told", "callers": 1000, "waiters": 1000, "rounds": 5}
    alone = [trial["told 1"] for trial in bench.rounds(["sqlite"], one)["sqlite"]]
    ratios = [told["p50_ms"] / trip for told, trip in zip(alone, trips, strict=True)]
    bench.add("8", "1 waiter told: echo round trips", "×", ratios, 2, at_least=False)
    bench.add("8", "1 waiter told", "ms", [told["p50_ms"] for told in alone])
    crowd = [trial["told 1000"] for trial in bench.rounds(["sqlite"], many)["sqlite"]]
    last = [told["last_ms"] for told in crowd]
    bench.add("8", "last of 1,000 waiters told", "ms", last, 100, at_least=False)
    bench.add("8", "1,000 waiters told, median", "ms", [told["p50_ms"] for told in crowd])


def life(bench: Bench) -> None:
    """Row 13: enqueue, wait, claim, 10 spans, finish, notification; 16 callers, SQLite.

    With a call for the spans and a wait of its own for each (five calls a life), and with streams that
    stay open for both (three).
    """
    job = {"workload": "life", "callers": 16, "seconds": bench.seconds}
    found = bench.rounds(["sqlite", "peer"] if bench.peer else ["sqlite"], job)
    bench.add("13", "full lives", "/s", [rate(trial["life"]) for trial in found["sqlite"]], 900)
    streamed = bench.rounds(["sqlite"], {**job, "workload": "streamed_life"})["sqlite"]
    samples = [rate(trial["life by stream"]) for trial in streamed]
    bench.add("13", "full lives over open streams", "/s", samples, 900)
    if bench.peer:
        beside_peer(bench, "full life: SQLite ÷ peer", found, "life", "life", 20)
        both = {"sqlite": streamed, "peer": found["peer"]}
        beside_peer(
            bench, "full life, open streams: SQLite ÷ peer", both, "life by stream", "life", 20
        )
