"""How the command line connects to a server: the options, and calls that carry the token."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

DEFAULT_ADDRESS = "127.0.0.1:4747"
#: A server's limits may be set higher than a client's.
LARGE_MESSAGES = [("grpc.max_receive_message_length", -1)]
HEALTH_SECONDS = 3.0
#: The options besides the address, as `connect` takes them.
SECURITY = ("token", "tls_ca", "tls_cert", "tls_key", "allow_insecure_token")


def options() -> list[click.Parameter]:
    """Return the options of a command that asks a server."""
    return [
        click.Option(
            ["--address"],
            default=DEFAULT_ADDRESS,
            envvar="LIGHTNINGSTORE_ADDRESS",
            show_default=True,
            help="Server to ask; https://host:port for TLS.",
        ),
        click.Option(
            ["--token"],
            help="[env LIGHTNINGSTORE_TOKEN, which does not show in lists of processes]",
        ),
        click.Option(["--tls-ca"], help="Who signed the server. [env LIGHTNINGSTORE_TLS_CA]"),
        click.Option(["--tls-cert"], help="For mutual TLS. [env LIGHTNINGSTORE_TLS_CERT]"),
        click.Option(["--tls-key"], help="For mutual TLS. [env LIGHTNINGSTORE_TLS_KEY]"),
        click.Option(
            ["--allow-insecure-token"],
            is_flag=True,
            help="Send the token over plain text too. [env LIGHTNINGSTORE_ALLOW_INSECURE_TOKEN]",
        ),
    ]


def connect(address: str, **security: Any) -> tuple[grpc.Channel, Any]:
    """Return a channel to a server, and its calls. Raises click.ClickException for bad options."""
    # Here and not above: the client brings OpenTelemetry's SDK, which `serve` does not need.
    from lightningstore.client.connection import endpoint  # noqa: PLC0415

    try:
        where = endpoint(address, **security)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    channel = where.blocking_channel(LARGE_MESSAGES)
    return channel, _Calls(channel, where.metadata)


class _Calls:
    """The calls of the service, each with the metadata of the connection."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub: Any = LightningStoreServiceStub(channel)
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._stub, name), metadata=self._metadata)


def _health(address: str, **security: Any) -> None:
    """Ask a server whether it can serve; exit code 1 if it cannot. Needs no token."""
    channel, _ = connect(address, **security)
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
    except grpc.RpcError as error:
        raise click.ClickException(f"{address}: {error.details()}") from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit(1)


health = click.Command("health", params=options(), callback=_health, help=_health.__doc__)
