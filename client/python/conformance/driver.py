"""Reads commands, a JSON object a line, and answers them side by side."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from lightningstore.client import Runner
from lightningstore.client.connection import endpoint
from lightningstore.client.transports import GrpcTransport

from conformance import agent, calls, export

Command = dict[str, Any]


class Driver:
    """One connection, and what is under way over it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._transport = GrpcTransport(endpoint(address))
        self._calls: dict[Any, calls.Call] = {}
        self._runners: dict[Any, Runner] = {}

    def run(self) -> None:
        """Obey until the end of stdin."""
        for line in sys.stdin:
            command = json.loads(line)
            if command["op"] == "reconnect":  # in order with the calls around it
                self._reconnect(command)
                continue
            threading.Thread(target=self._prepare(command), daemon=True).start()

    def _prepare(self, command: Command) -> Callable[[], None]:
        """Make what a later command may name, before that one is read."""
        work: Callable[[Command], None] | None = getattr(self, f"_op_{command['op']}", None)
        known = command["op"] != "call" or calls.is_method(command["method"])
        if work is None or not known:
            return lambda: self.answer(command, unsupported="no such op or method")
        if command["op"] == "call":
            self._calls[command["id"]] = calls.Call(self._transport, command)
        elif command["op"] == "runner":
            self._runners[command["id"]] = self._runner(command)
        return lambda: self._guarded(work, command)

    def answer(self, command: Command, **what: Any) -> None:
        """Write one line."""
        text = json.dumps({"id": command["id"], **what})
        with self._lock:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def _guarded(self, work: Callable[[Command], None], command: Command) -> None:
        try:
            work(command)
        except Exception as error:
            traceback.print_exc()
            found = {"code": "UNKNOWN", "message": f"{type(error).__name__}: {error}"}
            self.answer(command, responses=[], error=found)

    def _op_call(self, command: Command) -> None:
        call = self._calls[command["id"]]
        self.answer(command, **call.run(lambda: self.answer(command, started=True)))

    def _op_cancel(self, command: Command) -> None:
        runner = self._runners.get(command["target"])
        if runner is not None:
            runner.stop()
            runner.stop()
        else:
            self._calls[command["target"]].cancel()
        self.answer(command, ok=True)

    def _reconnect(self, command: Command) -> None:
        old, self._transport = self._transport, GrpcTransport(endpoint(self._address))
        old.close()
        self.answer(command, ok=True)

    def _runner(self, command: Command) -> Runner:
        names = ("worker_id", "concurrency", "max_rollouts", "heartbeat_period", "queues")
        options = {name: command[name] for name in names if name in command}
        return Runner(self._address, agent.scripted, **options)

    def _op_runner(self, command: Command) -> None:
        self.answer(command, started=True)
        asyncio.run(self._runners[command["id"]].arun())
        self.answer(command, ended=True)

    def _op_stop(self, command: Command) -> None:
        self._runners[command["target"]].stop()
        self.answer(command, ok=True)

    def _op_export(self, command: Command) -> None:
        self.answer(command, span_ids=export.export(self._address, command))
