"""Converts rollouts, attempts, workers and resources between agentlightning and the contract.

agentlightning's times are float seconds since 1970, the contract's are Timestamps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any

from agentlightning.store.base import Unset as AglUnset
from agentlightning.types import (
    LLM,
    Attempt,
    AttemptedRollout,
    PromptTemplate,
    ProxyLLM,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    Worker,
)
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore import client
from lightningstore.client import UNSET, RawJSON
from pydantic_core import to_json

logger = logging.getLogger(__name__)

NANOS = 1_000_000_000


def raw_json(value: object) -> RawJSON:
    """Return a value, including pydantic models in it, as JSON. Raises ValueError."""
    return RawJSON(to_json(value))


def given(value: Any) -> Any:
    """Return an argument, with agentlightning's UNSET replaced by the client's."""
    return UNSET if isinstance(value, AglUnset) else value


def given_json(value: Any) -> Any:
    """Return an argument as JSON; UNSET and None as in `given`."""
    return given(value) if value is None or isinstance(value, AglUnset) else raw_json(value)


def _seconds(stamp: Timestamp) -> float:
    # A division of integers is rounded once, and therefore returns the stored float.
    return (stamp.seconds * NANOS + stamp.nanos) / NANOS


def _time(message: Any, field: str) -> float | None:
    return _seconds(getattr(message, field)) if message.HasField(field) else None


def _word(value: Enum) -> Any:
    """Return the name of an enum of the client, which pydantic checks against agentlightning's."""
    return value.value


def to_config(config: client.RolloutConfig) -> RolloutConfig:
    """Return a config as agentlightning's, which has no back-off."""
    return RolloutConfig(
        timeout_seconds=config.timeout,
        unresponsive_seconds=config.unresponsive_timeout,
        max_attempts=config.max_attempts,
        retry_condition=[_word(client.AttemptStatus(status)) for status in config.retry_condition],
    )


def from_config(config: RolloutConfig | None) -> client.RolloutConfig | None:
    """Return agentlightning's config as the client's."""
    if config is None:
        return None
    return client.RolloutConfig(
        timeout=config.timeout_seconds,
        unresponsive_timeout=config.unresponsive_seconds,
        max_attempts=config.max_attempts,
        retry_condition=config.retry_condition,
    )


def to_attempt(attempt: client.Attempt) -> Attempt:
    """Return an attempt as agentlightning's."""
    message = attempt.message
    return Attempt(
        rollout_id=message.rollout_id,
        attempt_id=message.attempt_id,
        sequence_id=message.sequence_number,
        start_time=_seconds(message.start_time),
        end_time=_time(message, "end_time"),
        status=_word(attempt.status),
        worker_id=message.worker_id or None,
        last_heartbeat_time=_time(message, "last_heartbeat_time"),
        metadata=attempt.metadata or None,
    )


def _rollout_fields(rollout: client.Rollout) -> dict[str, Any]:
    message = rollout.message
    return {
        "rollout_id": message.rollout_id,
        "input": rollout.input,
        "start_time": _seconds(message.start_time),
        "end_time": _time(message, "end_time"),
        "mode": None if rollout.mode is None else rollout.mode.value,
        "resources_id": message.resources_id or None,
        "status": rollout.status.value,
        "config": to_config(rollout.config),
        "metadata": rollout.metadata,
    }


def to_rollout(rollout: client.Rollout) -> Rollout:
    """Return a rollout as agentlightning's, without its attempt."""
    return Rollout(**_rollout_fields(rollout))


def to_attempted(rollout: client.Rollout) -> AttemptedRollout:
    """Return a rollout as agentlightning's, with its newest attempt."""
    return AttemptedRollout(**_rollout_fields(rollout), attempt=to_attempt(rollout.attempt))


def with_attempt(rollout: client.Rollout) -> Rollout:
    """Return a rollout as agentlightning's, with its newest attempt if it has one."""
    return to_rollout(rollout) if rollout.latest_attempt is None else to_attempted(rollout)


def to_worker(worker: client.Worker) -> Worker:
    """Return a worker as agentlightning's."""
    message = worker.message
    return Worker(
        worker_id=message.worker_id,
        status=_word(worker.status),
        heartbeat_stats=worker.stats,
        last_heartbeat_time=_time(message, "last_heartbeat_time"),
        last_dequeue_time=_time(message, "last_dequeue_time"),
        last_busy_time=_time(message, "last_busy_time"),
        last_idle_time=_time(message, "last_idle_time"),
        current_rollout_id=message.current_rollout_id or None,
        current_attempt_id=message.current_attempt_id or None,
    )


def from_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return named resources as the client's. Raises ValueError for an invalid resource."""
    return {name: _from_resource(name, value) for name, value in resources.items()}


def _from_resource(name: str, value: Any) -> client.LLM | client.PromptTemplate:
    if isinstance(value, PromptTemplate):
        engine = client.TemplateEngine(value.engine.replace("-", "_"))
        return client.PromptTemplate(value.template, engine)
    if not isinstance(value, LLM):
        raise ValueError(  # noqa: TRY004 - pydantic's, which agentlightning's own stores raise, is one
            f"resources[{name!r}]: LLM, ProxyLLM or PromptTemplate is wanted, "
            f"not {type(value).__name__}"
        )
    proxied = isinstance(value, ProxyLLM)
    kind = client.ProxyLLM if proxied else client.LLM
    return kind(
        # Reading the endpoint of a ProxyLLM would log a warning.
        value.get_base_url(None, None),
        value.model,
        value.api_key or "",
        raw_json(value.sampling_parameters) if value.sampling_parameters else {},
    )


def to_resources_update(resources: client.Resources) -> ResourcesUpdate:
    """Return resources as agentlightning's, without those of unknown kinds."""
    message = resources.message
    return ResourcesUpdate(
        resources_id=message.resources_id,
        create_time=_seconds(message.create_time),
        update_time=_seconds(message.update_time),
        version=message.version,
        resources={
            name: known
            for name, value in resources.resources.items()
            if (known := _to_resource(message.resources_id, name, value)) is not None
        },
    )


def _to_resource(
    resources_id: str, name: str, value: Any
) -> LLM | ProxyLLM | PromptTemplate | None:
    if isinstance(value, client.PromptTemplate):
        engine = _word(client.TemplateEngine(value.engine)).replace("_", "-")
        return PromptTemplate(template=value.template, engine=engine)
    if not isinstance(value, client.LLM):
        logger.warning(
            "%s of resources %s is left out: agentlightning has no such kind of resource",
            name,
            resources_id,
        )
        return None
    kind = ProxyLLM if isinstance(value, client.ProxyLLM) else LLM
    parameters: Any = value.sampling_parameters
    return kind(
        endpoint=value.endpoint,
        model=value.model,
        api_key=value.api_key or None,
        sampling_parameters=parameters,
    )
