"""Calls over HTTP compared with gRPC, and gRPC with and without the HTTP port: `python -m benchmarks.http`.

The kinds of calls take turns in short slices, so that a busy machine slows all of them alike. The processor time is that
of the server alone.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
from lightningstore.v1.rollout_pb2 import (
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    GetRolloutRequest,
)

COMMAND = str(Path(sys.executable).parent / "lightningstore")
STORE = "lightningstore.v1.LightningStoreService"
SLICES = 40
INPUT = json.dumps({"question": "x" * 200}).encode()


class Server:
    """A server process, and how it is reached."""

    def __init__(self, process: subprocess.Popen[str], address: str, port: int) -> None:
        self.cpu = psutil.Process(process.pid).cpu_times
        self.channel = grpc.insecure_channel(address)
        self.http = socket.create_connection(("127.0.0.1", port)) if port else None
        request = EnqueueRolloutsRequest()
        request.rollouts.add(input_json=INPUT)
        enqueue = self.channel.unary_unary(f"/{STORE}/EnqueueRollouts")
        answer = EnqueueRolloutsResponse.FromString(enqueue(request.SerializeToString()))
        self.rollout_id = answer.rollouts[0].rollout_id

    def over_grpc(self) -> Callable[[], object]:
        """Return a call of GetRollout by gRPC."""
        call = self.channel.unary_unary(f"/{STORE}/GetRollout")
        data = GetRolloutRequest(rollout_id=self.rollout_id).SerializeToString()
        return lambda: call(data)

    def over_http(self, kind: str) -> Callable[[], object]:
        """Return a call of GetRollout by HTTP, on a connection that stays open, with a client that costs little."""
        assert self.http is not None
        connection = self.http
        body = GetRolloutRequest(rollout_id=self.rollout_id).SerializeToString()
        if kind == "json":
            body = json.dumps({"rolloutId": self.rollout_id}).encode()
        head = f"POST /{STORE}/GetRollout HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        sent = head.encode() + body

        def call() -> None:
            connection.sendall(sent)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536)
            head, _, content = answer.partition(b"\r\n\r\n")
            assert b" 200 " in head[:16]
            found = re.search(rb"Content-Length: (\d+)", head)
            assert found is not None
            while len(content) < int(found[1]):
                content += connection.recv(65536)
            assert kind != "json" or base64.b64encode(INPUT) in content

        return call


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Run a server."""
    command = (COMMAND, "serve", "--backend", "memory", "--port", "0", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address, port = "", 0
        for line in process.stdout:
            address = address or line.partition(" on ")[2].partition(",")[0]
            if line.startswith("console: "):
                port = int(line.rpartition(":")[2])
            if line.startswith("next: "):
                break
        try:
            yield Server(process, address, port)
        finally:
            process.terminate()


def measured(server: Server, call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return the processor time of the server and the time per call, in microseconds."""
    before, began, count = server.cpu(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        call()
        count += 1
    elapsed, after = time.perf_counter() - began, server.cpu()
    used = after.user + after.system - before.user - before.system
    return used / count * 1e6, elapsed / count * 1e6


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each slice, default 0.5")
    seconds = parser.parse_args().seconds
    with serving() as server, serving("--http-port", "0") as without:
        kinds = {
            "gRPC, no HTTP port": (without, without.over_grpc()),
            "gRPC": (server, server.over_grpc()),
            "JSON over HTTP": (server, server.over_http("json")),
            "protobuf over HTTP": (server, server.over_http("proto")),
        }
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(SLICES):
            for kind, (one, call) in kinds.items():
                found[kind].append(measured(one, call, seconds))
        base = statistics.median(cpu for cpu, _ in found["gRPC"])
        for kind, pairs in found.items():
            cpu, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
            print(f"{kind}: {cpu:.0f} µs of the server's processor, {wall:.0f} µs", end="")
            print(f", {cpu / base:.2f} times gRPC")


if __name__ == "__main__":
    main()
