"""Servers to play against, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from lightningstore.service.security.permissions import Role, new_token
from lightningstore.v1 import rollout_pb2 as rollouts
from lightningstore.v1.namespace_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    Namespace,
)
from lightningstore.v1.namespace_pb2_grpc import NamespaceServiceStub
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

_COMMAND = str(Path(sys.executable).parent / "lightningstore")
_STOP_SECONDS = 20
_CALL_SECONDS = 20
_OPEN = (
    rollouts.ROLLOUT_STATUS_QUEUING,
    rollouts.ROLLOUT_STATUS_PREPARING,
    rollouts.ROLLOUT_STATUS_RUNNING,
    rollouts.ROLLOUT_STATUS_REQUEUING,
)
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Server:
    """A server over one back end, with some options."""

    def __init__(self, backend: str, settings: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lightningstore-conformance-")
        self._options = ["--backend", backend, "--db", str(self._path("store.db")), "--grace", "2"]
        #: What scenarios may name: the tokens.
        self.variables: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self.address = "127.0.0.1:0"
        for name, value in settings.items():
            if name == "auth_tokens":
                self._make_tokens()
            elif name != "fresh":
                self._options += [f"--{name.replace('_', '-')}", str(value)]
        self.start()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _make_tokens(self) -> None:
        lines = []
        for role in Role:
            secret, token = new_token(role.value, role, None)
            self.variables[f"token_{role.value.replace('-', '_')}"] = secret
            lines.append(token.line())
        secret, token = new_token("expired", Role.ADMIN, _LONG_AGO)
        self.variables["token_expired"] = secret
        path = self._path("tokens")
        path.touch(mode=0o600)
        path.write_text("".join(line.rstrip("\n") + "\n" for line in [*lines, token.line()]))
        self._options += ["--auth-tokens", str(path)]

    def start(self) -> None:
        """Start it; return when it listens. After a stop: at the same address."""
        port = self.address.rpartition(":")[2]
        process = subprocess.Popen(
            [_COMMAND, "serve", *self._options, "--port", port, "--http-port", "0"],
            cwd=self._folder.name,
            env={k: v for k, v in os.environ.items() if not k.startswith("LIGHTNINGSTORE_")},
            stdout=subprocess.PIPE,
            stderr=self._path("log").open("a"),
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r" on (\S+),", line)
        if found is None:
            process.wait(_STOP_SECONDS)
            raise RuntimeError(f"the server does not start: {self.log()}")
        self.address, self._process = found[1], process

    def log(self) -> str:
        """Return what the server wrote to stderr."""
        return self._path("log").read_text()

    def stop(self) -> None:
        """End it as an operator would. Harmless to repeat."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("the server does not end after SIGTERM") from None
        finally:
            assert process.stdout is not None
            process.stdout.close()

    def close(self) -> None:
        """End it for good."""
        self.stop()
        self._folder.cleanup()

    @contextlib.contextmanager
    def namespace(self, name: str) -> Iterator[None]:
        """Create a namespace, and delete it at the end."""
        with grpc.insecure_channel(self.address) as channel:
            stub = NamespaceServiceStub(channel)
            new = CreateNamespaceRequest(namespace=Namespace(name=name))
            stub.CreateNamespace(new, timeout=_CALL_SECONDS)
            try:
                yield
            finally:
                old = DeleteNamespaceRequest(name=name, force=True)
                stub.DeleteNamespace(old, timeout=_CALL_SECONDS)

    def tidy(self) -> None:
        """Cancel what is not finished, so that the next scenario finds an empty queue."""
        token = self.variables.get("token_admin")
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        with grpc.insecure_channel(self.address) as channel:
            stub = LightningStoreServiceStub(channel)
            while True:
                request = rollouts.ListRolloutsRequest(statuses=_OPEN, page_size=1000)
                found = stub.ListRollouts(request, timeout=_CALL_SECONDS, metadata=metadata)
                ids = [rollout.rollout_id for rollout in found.rollouts]
                if not ids:
                    return
                for start in range(0, len(ids), 5):  # scenarios may set a low limit
                    cancel = rollouts.CancelRolloutsRequest(rollout_ids=ids[start : start + 5])
                    stub.CancelRollouts(cancel, timeout=_CALL_SECONDS, metadata=metadata)


class Servers:
    """Servers by their settings, each started when it is first needed."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._shared: dict[tuple[tuple[str, Any], ...], Server] = {}

    def get(self, settings: tuple[tuple[str, Any], ...]) -> Server:
        """Return the server with these settings; a fresh one is the caller's to close."""
        if dict(settings).get("fresh"):
            return Server(self.backend, dict(settings))
        if settings not in self._shared:
            self._shared[settings] = Server(self.backend, dict(settings))
        return self._shared[settings]

    def give_back(self, settings: tuple[tuple[str, Any], ...], server: Server) -> None:
        """Make it ready for the next, or close it if it was fresh."""
        if dict(settings).get("fresh"):
            server.close()
        else:
            server.tidy()

    def forget(self, settings: tuple[tuple[str, Any], ...]) -> None:
        """End the one with these settings; the next gets another."""
        server = self._shared.pop(settings, None)
        if server is not None:
            with contextlib.suppress(RuntimeError):
                server.close()

    def close(self) -> None:
        """End all of them."""
        for server in self._shared.values():
            server.close()
