"""Settings of the server. Options take precedence over environment variables, and these over defaults."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Literal

import psutil
from lightningstore.service.rules.limits import (
    HIGHEST_ITEMS,
    HIGHEST_MESSAGE_BYTES,
    MIB,
    Limits,
    Retention,
)
from lightningstore.service.security.permissions import lifetime
from pydantic import ByteSize, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_DEFAULTS = Limits()
#: Default of http_port.
DEFAULT_HTTP_PORT = 4748
#: Beginnings of a database_url.
DATABASES = ("postgresql://", "postgres://")


class Config(BaseSettings):
    """One field for each option: `--db` is `db`, and the environment variable LIGHTNINGSTORE_DB."""

    model_config = SettingsConfigDict(env_prefix="LIGHTNINGSTORE_", extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(4747, ge=0, le=65535, description="Port to listen on; 0: a free one.")
    backend: Literal["sqlite", "memory"] = Field(
        "sqlite", description="Back end that stores the data."
    )
    db: Path = Field(Path("lightningstore.db"), description="Data file of the sqlite back end.")
    data: Path | None = Field(
        None,
        description="Folder with one data file per namespace, instead of --db. Required by --processes.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of processes that share the namespaces in --data, for a machine with many cores.",
    )
    advertise: str | None = Field(
        None,
        description="Address (HOST or HOST:PORT) at which clients and other servers reach this server, if it is one "
        "of several.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL database that stores the data instead of a file: postgresql://user@host/database. Requires "
        "lightningstore[postgres]. A password is safer in LIGHTNINGSTORE_DATABASE_URL or ~/.pgpass.",
    )
    durability: Literal["full", "relaxed"] = Field(
        "full",
        description="Answered writes survive a power failure (full) or a crash of the process (relaxed).",
    )
    compress_spans: bool | None = Field(
        None,
        description="Compress stored spans, to about a third of their size (default: only in a PostgreSQL database).",
    )
    grace: float = Field(10.0, ge=0, description="Seconds that calls have to end at shutdown.")
    log_json: bool = Field(False, description="Write log lines as JSON objects.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum log level."
    )
    tls_cert: Path | None = Field(
        None, description="Certificate chain (PEM). With it the server accepts only TLS."
    )
    tls_key: Path | None = Field(None, description="Private key of --tls-cert (PEM, unencrypted).")
    tls_client_ca: Path | None = Field(
        None,
        description="Mutual TLS: CA certificates (PEM) used to verify clients.",
    )
    peer_ca: Path | None = Field(
        None,
        description="CA certificates (PEM) used to verify the other servers of a database (default: the system's).",
    )
    auth_tokens: Path | None = Field(
        None,
        description="File of tokens, made by `lightningstore token new`. With it every call requires one.",
    )
    insecure: bool = Field(
        False,
        description="Allow other addresses than loopback, also for metrics, without tokens over TLS or mutual TLS.",
    )
    retain_finished: timedelta | None = Field(
        None,
        description="Age at which finished rollouts are removed: 7d, 12h or 45m.",
    )
    max_db_size: ByteSize | None = Field(
        None,
        description="Size of the data on disk, in PostgreSQL of each namespace's spans and inputs, above which the rollouts that "
        "finished first are removed: 500MB, 20GiB.",
    )
    keep_resource_versions: int = Field(
        _DEFAULTS.resource_versions,
        ge=0,
        description="Number of versions that are kept of each resources id, besides those that running attempts use; "
        "0: all.",
    )
    http_port: int = Field(
        DEFAULT_HTTP_PORT,
        ge=0,
        le=65535,
        description="Port for HTTP, with the address, TLS and tokens of --port: every call as JSON, OTLP, metrics and "
        "health; 0: none. If the default is in use, or --port is 0, a free one.",
    )
    http_allow_hosts: str = Field(
        "",
        description="Names, separated by commas, under which clients reach --http-port besides its addresses and "
        "localhost; * allows all.",
    )
    http_allow_origins: str = Field(
        "",
        description="Origins, separated by commas, whose web pages may call --http-port: https://lab.example; * allows "
        "all.",
    )
    count_calls: bool | None = Field(
        None,
        description="Count and time calls for Prometheus, which costs 15 µs per call (default: only with "
        "--metrics-port).",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port for Prometheus to scrape; 0: a free one."
    )
    metrics_host: str = Field(
        "127.0.0.1",
        description="Address of --metrics-port, which requires no token. Any but loopback requires --insecure.",
    )
    otlp_http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for OTLP over HTTP (POST /v1/traces), with the address, TLS and tokens of --port; 0: a free "
        "one. Other servers use 4318.",
    )
    trace_calls: bool = Field(
        False,
        description="Record OpenTelemetry spans of the server's own calls and export them to "
        "OTEL_EXPORTER_OTLP_ENDPOINT. Requires lightningstore[tracing].",
    )
    max_message_bytes: int = Field(
        _DEFAULTS.message_bytes,
        ge=MIB,
        le=HIGHEST_MESSAGE_BYTES,
        description="Maximum size of a message, in bytes.",
    )
    max_input_bytes: int = Field(
        _DEFAULTS.input_bytes, ge=1, description="Maximum size of a rollout's input, in bytes."
    )
    max_span_bytes: int = Field(
        _DEFAULTS.span_bytes, ge=1, description="Maximum size of a span, in bytes."
    )
    max_message_spans: int = Field(
        _DEFAULTS.message_spans, ge=1, description="Maximum number of spans in a message."
    )
    max_batch_items: int = Field(
        _DEFAULTS.batch_items,
        ge=1,
        le=HIGHEST_ITEMS,
        description="Maximum number of items in a call.",
    )
    max_page_size: int = Field(
        _DEFAULTS.page_size,
        ge=1,
        le=HIGHEST_ITEMS,
        description="Maximum number of items on a page.",
    )
    max_queue_length: int = Field(
        _DEFAULTS.queue_length,
        ge=0,
        description="Maximum number of rollouts in the queue; 0: unlimited.",
    )
    max_connection_streams: int = Field(
        _DEFAULTS.connection_streams,
        ge=1,
        description="Maximum number of concurrent calls of a connection.",
    )
    max_open_streams: int = Field(
        _DEFAULTS.open_streams, ge=1, description="Maximum number of open streams of the server."
    )
    max_pending_bytes: int = Field(
        _DEFAULTS.pending_bytes,
        ge=MIB,
        description="Maximum number of bytes that wait for the disk.",
    )
    eviction_threshold: float = Field(
        0.7,
        description="memory back end: spans above this are evicted, the oldest first; up to 1 a share of "
        "the machine's memory, above it bytes.",
    )
    safe_threshold: float = Field(
        0.8, description="Eviction stops at this share of the threshold, or at these bytes."
    )

    @field_validator("host", "metrics_host")
    @classmethod
    def _strip_brackets(cls, value: str) -> str:
        """Accept an IPv6 address as it stands before a port."""
        return value[1:-1] if value.startswith("[") and value.endswith("]") else value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(DATABASES):
            raise ValueError("must be a URL such as postgresql://user@host:5432/database")
        return value

    @field_validator("retain_finished", mode="before")
    @classmethod
    def _parse_lifetime(cls, value: object) -> object:
        return lifetime(value) if isinstance(value, str) else value

    @field_validator("eviction_threshold", "safe_threshold")
    @classmethod
    def _check_threshold(cls, value: float) -> float:
        if not 0 < value < math.inf or (value > 1 and value != int(value)):
            raise ValueError("must be a ratio above 0 and up to 1, or a whole number of bytes")
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Config:
        if self.database_url is not None and self.backend == "memory":
            raise ValueError("database_url stores the data in a database: leave backend out")
        if self.safe_bytes >= self.eviction_bytes:
            raise ValueError(
                f"safe_threshold ({self.safe_bytes} bytes) must be below "
                f"eviction_threshold ({self.eviction_bytes} bytes)"
            )
        return self

    @model_validator(mode="after")
    def _check_processes(self) -> Config:
        if self.processes > 1 and self.data is None:
            raise ValueError("--processes requires --data, the folder that the processes share")
        if self.data is not None and self.backend != "sqlite":
            raise ValueError("--data is of the sqlite back end")
        if self.data is not None and "db" in self.model_fields_set:
            raise ValueError("--data and --db exclude each other")
        if self.data is not None and self.data.is_file():
            raise ValueError(f"--data is a folder, and {self.data} is a file: --db names a file")
        if self.data is not None and self.database_url is not None:
            raise ValueError("--data and --database-url exclude each other")
        return self

    @property
    def http_port_is_chosen(self) -> bool:
        """Whether http_port has been set. If not, any port will do."""
        return "http_port" in self.model_fields_set

    @property
    def serves_http(self) -> bool:
        """Whether any port serves HTTP."""
        ports = (self.http_port or None, self.otlp_http_port, self.metrics_port)
        return any(port is not None for port in ports)

    @property
    def counts_calls(self) -> bool:
        """Whether calls are counted and timed."""
        return self.metrics_port is not None if self.count_calls is None else self.count_calls

    @property
    def eviction_bytes(self) -> int:
        """Span bytes above which the memory back end evicts."""
        if self.eviction_threshold <= 1:
            return int(self.eviction_threshold * memory_bytes())
        return int(self.eviction_threshold)

    @property
    def safe_bytes(self) -> int:
        """Span bytes at which eviction stops."""
        if self.safe_threshold <= 1:
            return int(self.safe_threshold * self.eviction_bytes)
        return int(self.safe_threshold)

    def retention(self) -> Retention:
        """Return the ages and sizes up to which data is kept."""
        kept = self.retain_finished
        return Retention(kept.total_seconds() if kept is not None else None, self.max_db_size)

    def limits(self) -> Limits:
        """Return the limits that the store enforces."""
        return Limits(
            message_bytes=self.max_message_bytes,
            input_bytes=self.max_input_bytes,
            span_bytes=self.max_span_bytes,
            message_spans=self.max_message_spans,
            batch_items=self.max_batch_items,
            page_size=self.max_page_size,
            queue_length=self.max_queue_length,
            resource_versions=self.keep_resource_versions,
            connection_streams=self.max_connection_streams,
            pending_bytes=self.max_pending_bytes,
            open_streams=self.max_open_streams,
            eviction_bytes=self.eviction_bytes,
            safe_bytes=self.safe_bytes,
        )


def memory_bytes() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its cgroup's if less."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total
