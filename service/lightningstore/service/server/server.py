"""Builds everything from a Config; starts, drains and stops it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2
from lightningstore.service.cluster import calls as servers
from lightningstore.service.cluster.cluster import Cluster
from lightningstore.service.cluster.processes import Process, ProcessCluster
from lightningstore.service.engine.clock import Clock, SystemClock
from lightningstore.service.engine.shared import Shared
from lightningstore.service.namespaces.directory import Common, Directory
from lightningstore.service.operations.store import Store
from lightningstore.service.operations.store import open_store as opened
from lightningstore.service.rpc import handlers, health, otlp
from lightningstore.service.rpc.calls import Calls, Handler, Streams
from lightningstore.service.rpc.dispatch import Dispatcher
from lightningstore.service.rpc.forwarding import Forwarding
from lightningstore.service.rpc.reflection import reflection
from lightningstore.service.rpc.router import Router
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.server.addresses import AddressInUse, bracketed, check_addresses
from lightningstore.service.server.config import Config
from lightningstore.service.server.gate import Gate, open_gate, peer_credentials
from lightningstore.service.server.tracing import tracer
from lightningstore.service.storage.back_ends import catalog_at, database_at, storage_at
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.catalog import Catalog
from lightningstore.v1.statistics_pb2 import Durability

if TYPE_CHECKING:
    from lightningstore.service.server.http_ports import HttpPorts
    from lightningstore.service.server.metrics import Metrics

logger = logging.getLogger(__name__)

KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
#: Milliseconds between two attempts to connect to another server that is away.
MIN_RECONNECT_MS = 100
MAX_RECONNECT_MS = 1_000
MIN_PING_INTERVAL_MS = 10_000
METADATA_BYTES = 16_384
#: Messages that exceed the limit by no more than this are rejected by the handlers, whose error names the reason.
MESSAGE_SLACK_BYTES = 16 << 20
#: Maximum number of calls that wait for the event loop, which accepts them one by one. Above it gRPC cancels some calls,
#: above twice the number all. Its defaults of 1,000 and 3,000 are exceeded when a server that was stopped for two seconds
#: continues with a few dozen clients, and clients do not retry a call that was CANCELLED. A waiting call costs 16 KB.
MAX_PENDING_CALLS = 20_000
#: Seconds that connections may take to close once their calls have been cancelled. gRPC waits for the last one without
#: a limit: after a flood of pings that takes minutes.
CLOSING_SECONDS = 2.0


async def open_store(config: Config, clock: Clock | None = None) -> Store:
    """Open a store in this process. Raises StorageUnusable."""
    return await opened(
        _storage(config), clock or SystemClock(), config.limits(), config.retention()
    )


async def open_directory(config: Config, clock: Clock | None = None) -> Directory:
    """Open all namespaces that a configuration names, to be used in this process. Raises as `open_store` does."""
    store = await open_store(config, clock)
    common = _common(config, store, store.engine.clock)
    directory = Directory(common, _catalog(config, store), config.retention(), default=store)
    try:
        await directory.start()
    except BaseException:
        await directory.close()
        raise
    return directory


def _storage(config: Config) -> Storage:
    full_sync = config.durability == "full"
    return storage_at(_url(config), full_sync=full_sync, compress=config.compress_spans)


def _catalog(config: Config, store: Store | None) -> Catalog:
    full_sync = config.durability == "full"
    storage = store.engine.storage if store is not None else None
    return catalog_at(_url(config), storage, full_sync=full_sync, compress=config.compress_spans)


def _common(config: Config, store: Store | None, clock: Clock) -> Common:
    """Return what all stores have in common, which an open store has already."""
    if store is not None:
        return Common(store.engine.clock, store.engine.server_limits, store.engine.shared)
    return Common(clock, config.limits(), Shared(config.limits()))


def _url(config: Config) -> str:
    if config.database_url is not None:
        return config.database_url.get_secret_value()
    return "memory:" if config.backend == "memory" else f"sqlite:///{config.db}"


class Server:
    """A gRPC server over the stores of its namespaces."""

    def __init__(
        self,
        store: Store | None,
        config: Config,
        gate: Gate | None = None,
        *,
        clock: Clock | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        """Prepare a server; `start` listens. Raises Misconfigured.

        A single server takes the open store of the default namespace, one of several the others as a `cluster`.
        """
        self._config = config
        self._cluster = cluster
        common = _common(config, store, clock or SystemClock())
        self.gate = gate or open_gate(config, common.clock)
        self.directory = Directory(
            common,
            cluster.catalog if cluster is not None else _catalog(config, store),
            config.retention(),
            default=store,
            placement=cluster,
        )
        self._forwarding: Forwarding | None = None
        usable = self.directory.is_usable
        self._health = health.Health(usable if cluster is None else self._is_usable)
        self.metrics = _metrics(config)
        counting = self.metrics if config.counts_calls else None
        tracing = tracer() if config.trace_calls else None
        interceptors = [i for i in (counting, tracing, self.gate.guard) if i is not None]
        self._interceptors = interceptors
        self._shares_port = cluster is not None and bool(cluster.listeners)
        options = grpc_options(config, shares_port=self._shares_port)
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        #: The ports of HTTP once they listen, None if the settings name none.
        self.http: HttpPorts | None = None
        self.port = 0

    async def start(self) -> None:
        """Find the namespaces, and listen. Raises AddressInUse, StorageFailed, StorageUnusable."""
        await self.directory.start()
        self.port = self._listen(self._config.host, self._config.port)
        advertised = self.address
        if (cluster := self._cluster) is not None:
            advertised = self._advertised(cluster.advertised)
            if advertised != self.address and cluster.listeners:
                self._listen(self._config.host, int(advertised.rpartition(":")[2]))
            self._join(cluster, advertised)
        streams = Streams(self._config.max_open_streams)
        guard = self.gate.guard
        permit = guard.check_namespace if guard else None
        elsewhere = otlp.Elsewhere(self.directory, permit, self._forwarding)
        services, dispatcher = self._add_handlers(streams, elsewhere, advertised)
        try:
            await self._start_http(dispatcher, streams, elsewhere, advertised)
            if cluster is not None and self._forwarding is not None:
                await cluster.start(advertised, self.directory, self._forwarding)
        except BaseException:
            if self.http is not None:
                await self.http.stop(0)
            raise
        await self._server.start()
        self._health.serve(("", *services))
        self.directory.watch(lambda _: self._health.wake())

    async def _start_http(
        self, dispatcher: Dispatcher, streams: Streams, elsewhere: otlp.Elsewhere, advertised: str
    ) -> None:
        """Listen on the ports of HTTP. Raises AddressInUse."""
        if not self._config.serves_http:
            return
        from lightningstore.service.server.http_ports import HttpCalls, HttpPorts  # noqa: PLC0415  (a third of all imports)

        calls = HttpCalls(dispatcher, streams, elsewhere, self._is_ready)
        self.http = HttpPorts(self._config, self.gate, self.directory, self.metrics)
        await self.http.start(calls, advertised, shares_port=self._shares_port)

    def _advertised(self, address: str) -> str:
        """Return an address that names a port; without one it is this server's."""
        if not address:
            return self.address
        has_port = ":" in address.rpartition("]")[2]
        return address if has_port else f"{address}:{self.port}"

    def _listen(self, host: str, port: int) -> int:
        """Listen at an address with the server's encryption; return the port. Raises AddressInUse."""
        address = f"{bracketed(host)}:{port}"
        try:
            if self.gate.credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self.gate.credentials)
        except RuntimeError as error:
            raise AddressInUse(
                f"cannot listen on {address}: in use, or not an address here"
            ) from error

    def _join(self, cluster: Cluster, advertised: str) -> None:
        """Prepare to forward calls, and to take those that others forward."""
        options = channel_options(self._config)
        self._forwarding = Forwarding(
            cluster, advertised, lambda address: cluster.connect(address, options)
        )
        for address in cluster.listeners:
            self._server.add_insecure_port(address)
        self.directory.announce(owner=advertised)

    def _is_usable(self, name: str) -> bool | None:
        """Return whether calls of a namespace can be answered, None if there is no such namespace.

        One of several servers is healthy while it can serve, whichever of them owns the default namespace.
        """
        usable = self.directory.is_usable(name)
        if usable is None and name != DEFAULT_NAMESPACE:
            return None
        return self._cluster is not None and self._cluster.is_usable

    def _is_ready(self) -> bool:
        """Return whether the server answers calls."""
        return self._health.status("") == health_pb2.HealthCheckResponse.SERVING

    def _add_handlers(
        self, streams: Streams, elsewhere: otlp.Elsewhere, advertised: str
    ) -> tuple[tuple[str, ...], Dispatcher]:
        """Add the handlers of all calls; return the names of the services, and what finds those of the contract."""
        directory, forwarding = self.directory, self._forwarding
        calls = Calls(directory.limits.message_bytes, streams, closing=lambda: directory.is_closing)

        def bind(store: Store) -> Mapping[str, Handler]:
            export = otlp.handler(store, calls, elsewhere)
            return {**handlers.handlers(store, calls), otlp.EXPORT: export}

        of_namespaces, of_servers = handlers.NAMESPACES.full_name, servers.SERVICE.full_name
        services = (
            handlers.SERVICE.full_name,
            of_namespaces,
            of_servers,
            otlp.SERVICE,
            health.SERVICE,
        )
        contract = (
            Router(directory, calls, bind, forwarding),
            grpc.method_handlers_generic_handler(
                of_namespaces, handlers.namespace_handlers(directory, calls, forwarding)
            ),
            grpc.method_handlers_generic_handler(
                of_servers, servers.handlers(directory, self._cluster, advertised, calls)
            ),
        )
        self._server.add_generic_rpc_handlers(
            (
                *contract,
                health.handler(self._health, lambda: directory.is_closing),
                *reflection(services, calls),
            )
        )
        return services, Dispatcher(self._interceptors, contract)

    @property
    def http_port(self) -> int:
        """The port of HTTP that serves everything; 0: none."""
        return self.http.port if self.http is not None else 0

    @property
    def metrics_port(self) -> int:
        """The port of metrics alone; 0: none."""
        return self.http.metrics_port if self.http is not None else 0

    @property
    def otlp_http_port(self) -> int:
        """The port of OTLP over HTTP alone; 0: none."""
        return self.http.otlp_port if self.http is not None else 0

    @property
    def is_usable(self) -> bool:
        """Whether all open storages answer. If not when the server has stopped, data may be incomplete at its path."""
        if self._cluster is not None:
            return self._cluster.is_usable
        stores = self.directory.open_stores()
        return all(store.engine.committer.failure is None for store in stores)

    @property
    def data(self) -> str:
        """Where the data is and what an answered write survives, for people."""
        if self._cluster is not None:
            return f"data in {self._cluster.location}, durability {self._config.durability}"
        assert self.directory.default is not None  # noqa: S101  (a single server has it)
        storage = self.directory.default.engine.storage
        durability = Durability.Name(storage.durability).removeprefix("DURABILITY_").lower()
        return f"data in {storage.location}, durability {durability}"

    @property
    def address(self) -> str:
        """The address of the server, as clients write it."""
        return f"{bracketed(self._config.host)}:{self.port}"

    async def stop(self, grace: float) -> bool:
        """End waits and long polls, let other calls end within `grace` seconds, then close.

        Takes at most CLOSING_SECONDS more, even if connections remain. All accepted writes are committed. Returns
        whether all calls had ended within the grace: gRPC cuts off those that have not.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        self._health.stop()
        if self._cluster is not None:
            await self._cluster.drain()
        self.directory.stop_waiting()
        if self._forwarding is not None:
            self._forwarding.stop_waiting()
        ports = [self.http.stop_calls(grace)] if self.http is not None else []
        closing = asyncio.gather(self._server.stop(grace), *ports)
        try:
            await asyncio.wait_for(asyncio.shield(closing), grace + CLOSING_SECONDS)
        except TimeoutError:
            logger.warning("some connections did not close in time; they end with the process")
        all_ended = loop.time() < until
        if self.http is not None:
            await self.http.stop(0)  # Metrics until here: they show how the shutdown proceeds.
        await self.directory.close()
        if self._forwarding is not None:
            await self._forwarding.close()
        if self._cluster is not None:
            await self._cluster.stop()
        return all_ended


async def start_server(config: Config, clock: Clock | None = None) -> Server:
    """Open the store and listen; nothing is left behind on failure.

    Raises AddressInUse, Misconfigured, StorageUnusable.
    """
    clock = clock or SystemClock()
    process = Process.current()
    if process is None:
        check_addresses(config)
    else:
        config = _for_process(config, process)
    gate = open_gate(config, clock)
    cluster = _cluster(config, process, clock)
    store = await open_store(config, clock) if cluster is None else None
    server = Server(store, config, gate, clock=clock, cluster=cluster)
    try:
        await server.start()
    except BaseException:
        await server.directory.close()
        if cluster is not None:
            await cluster.stop()
        raise
    logger.debug("process %s serves on %s", os.getpid(), server.address)
    return server


def _metrics(config: Config) -> Metrics | None:
    """Return metrics, None if no port shows them."""
    if config.metrics_port is None and not config.http_port:
        return None
    from lightningstore.service.server.metrics import Metrics  # noqa: PLC0415  (prometheus_client)

    return Metrics()


def _cluster(config: Config, process: Process | None, clock: Clock) -> Cluster | None:
    """Return the servers that share namespaces with this one; None: it is a single server. Raises StorageUnusable."""
    full_sync = config.durability == "full"
    if config.data is not None:
        return ProcessCluster(
            process or Process(0, ("",)),
            config.data,
            full_sync=full_sync,
            compress=bool(config.compress_spans),
        )
    if config.database_url is None:
        return None
    database = database_at(config.database_url.get_secret_value(), full_sync=full_sync)
    from lightningstore.service.cluster.servers import DatabaseCluster  # noqa: PLC0415  (an extra's driver)

    return DatabaseCluster(
        database,
        clock,
        compress=config.compress_spans is not False,
        advertised=config.advertise or "",
        credentials=None if config.tls_cert is None else lambda: peer_credentials(config),
    )


def _for_process(config: Config, process: Process) -> Config:
    """Return the settings of one of several processes: all serve on the same ports, and each has metrics of its own."""
    changes: dict[str, object] = {"port": process.port}
    if config.otlp_http_port is not None:
        changes["otlp_http_port"] = process.otlp_http_port
    changes["http_port"] = process.http_port
    if config.metrics_port:
        changes["metrics_port"] = config.metrics_port + process.index
    return config.model_copy(update=changes)


def channel_options(config: Config) -> list[tuple[str, int]]:
    """Return the options of a channel to another server, whose messages may be as large as those of clients."""
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes + MESSAGE_SLACK_BYTES),
        ("grpc.max_send_message_length", config.max_message_bytes + MESSAGE_SLACK_BYTES),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Reach a server that was away as soon as it is back. gRPC's default is two minutes.
        ("grpc.initial_reconnect_backoff_ms", MIN_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        # The http_proxy of the environment is for the web, and not for other servers.
        ("grpc.enable_http_proxy", 0),
    ]


def grpc_options(config: Config, *, shares_port: bool = False) -> list[tuple[str, int]]:
    """Return the options of the gRPC server. `shares_port`: other processes listen on the same port."""
    return [
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", config.max_message_bytes + MESSAGE_SLACK_BYTES),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", config.max_connection_streams),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
        # With it gRPC counts a call against the limit until Python has released it, well after its answer, and rejects
        # a third of the calls of a client that keeps 100 open, which is within the limit.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]
