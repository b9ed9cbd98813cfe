"""The settings of a namespace: how they are stored, checked and changed, and what they set."""

from __future__ import annotations

from dataclasses import replace

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.rules.checks import mask_paths
from lightningstore.service.rules.errors import FieldInvalid, StorageUnusable
from lightningstore.service.rules.limits import Limits, Retention
from lightningstore.service.rules.times import check_duration, seconds
from lightningstore.v1.namespace_pb2 import (
    CreateNamespaceRequest,
    Namespace,
    UpdateNamespaceRequest,
)

MAX_DESCRIPTION_LENGTH = 1000
MAX_LABELS = 32
MAX_LABEL_LENGTH = 63
_CHANGEABLE = (
    *("description", "labels", "retain_finished", "max_bytes", "max_queue_length"),
    "keep_resource_versions",
)
_OUTPUT_ONLY = ("create_time", "update_time", "store_id")

#: Settings as they are stored: the namespace without its store id, and the request id that created it.
Settings = CreateNamespaceRequest


def parse(data: bytes) -> Settings:
    """Return stored settings; without any, those of a store that never had some. Raises StorageUnusable."""
    try:
        return Settings.FromString(data)
    except DecodeError:
        raise StorageUnusable("the settings of the namespace are damaged") from None


def created(request: CreateNamespaceRequest, now: Timestamp) -> Settings:
    """Return the settings of a new namespace. Raises FieldInvalid."""
    for descriptor, _ in request.namespace.ListFields():
        if descriptor.name in _OUTPUT_ONLY:
            raise FieldInvalid(f"namespace.{descriptor.name}", "is set by the server; leave it out")
    _check(request.namespace)
    settings = Settings()
    settings.CopyFrom(request)
    settings.namespace.create_time.CopyFrom(now)
    return settings


def updated(settings: Settings, request: UpdateNamespaceRequest, now: Timestamp) -> Settings:
    """Return settings with the changes of a request; the same object if it changes nothing. Raises FieldInvalid."""
    mask = request.update_mask if request.HasField("update_mask") else None
    paths = mask_paths(mask, request.namespace, _CHANGEABLE)
    _check(request.namespace)
    changed = Settings()
    changed.CopyFrom(settings)
    for path in paths:
        changed.namespace.ClearField(path)  # type: ignore[arg-type]
    part = Namespace()
    part.CopyFrom(request.namespace)
    for descriptor, _ in request.namespace.ListFields():
        if descriptor.name not in paths:
            part.ClearField(descriptor.name)  # type: ignore[arg-type]
    changed.namespace.MergeFrom(part)
    if changed == settings:
        return settings
    changed.namespace.update_time.CopyFrom(now)
    return changed


def shown(settings: Settings, name: str, store_id: str) -> Namespace:
    """Return a namespace as answers contain it. A copy of a file has the name that it was given, not the stored one."""
    namespace = Namespace()
    namespace.CopyFrom(settings.namespace)
    namespace.name, namespace.store_id = name, store_id
    return namespace


def limits_of(settings: Settings, limits: Limits) -> Limits:
    """Return the limits of the server with those that the namespace sets itself."""
    namespace = settings.namespace
    if namespace.HasField("max_queue_length"):
        limits = replace(limits, queue_length=namespace.max_queue_length)
    if namespace.HasField("keep_resource_versions"):
        limits = replace(limits, resource_versions=namespace.keep_resource_versions)
    return limits


def retention_of(settings: Settings, retention: Retention) -> Retention:
    """Return what the server keeps, with what the namespace sets itself. Zero means unlimited."""
    namespace = settings.namespace
    if namespace.HasField("retain_finished"):
        retention = retention._replace(finished_seconds=seconds(namespace.retain_finished) or None)
    if namespace.HasField("max_bytes"):
        retention = retention._replace(data_bytes=namespace.max_bytes or None)
    return retention


def _check(namespace: Namespace) -> None:
    """Raise FieldInvalid for invalid settings."""
    if len(namespace.description) > MAX_DESCRIPTION_LENGTH:
        raise FieldInvalid(
            "namespace.description", f"must have at most {MAX_DESCRIPTION_LENGTH} characters"
        )
    if len(namespace.labels) > MAX_LABELS:
        raise FieldInvalid("namespace.labels", f"must be at most {MAX_LABELS}")
    for key, value in namespace.labels.items():
        if not 0 < len(key) <= MAX_LABEL_LENGTH or len(value) > MAX_LABEL_LENGTH:
            raise FieldInvalid(
                "namespace.labels",
                f"must have keys of 1 to {MAX_LABEL_LENGTH} characters and values of at most as many",
            )
    if namespace.HasField("retain_finished"):
        check_duration("namespace.retain_finished", namespace.retain_finished)
    for name in ("max_bytes", "max_queue_length", "keep_resource_versions"):
        if getattr(namespace, name) < 0:
            raise FieldInvalid(f"namespace.{name}", "must not be negative; 0 means no limit")
