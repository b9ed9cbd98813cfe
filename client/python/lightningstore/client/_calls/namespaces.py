"""Requests about namespaces, and the conversion of their responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightningstore.client._calls.call import Call
from lightningstore.client._calls.control import or_new
from lightningstore.client._values import convert
from lightningstore.client._values.text import names_fields
from lightningstore.client.values import UNSET, Namespace, Page
from lightningstore.v1 import namespace_pb2


def _namespace(answer: Any) -> Namespace:
    return Namespace(answer.namespace)


def _set(record: namespace_pb2.Namespace, field: str, value: Any) -> None:
    """Set a field of a namespace; None leaves it unset."""
    if value is None:
        return
    if field == "labels":
        record.labels.update(value)
    elif field == "retain_finished":
        record.retain_finished.CopyFrom(convert.to_duration(value))
    else:
        setattr(record, field, value)


@names_fields
def create_namespace(
    name: str, fields: Mapping[str, Any], request_id: str | None
) -> Call[Namespace]:
    """CreateNamespace."""
    request = namespace_pb2.CreateNamespaceRequest(request_id=or_new(request_id))
    request.namespace.name = name
    for field, value in fields.items():
        _set(request.namespace, field, value)
    return Call("CreateNamespace", request, _namespace)


@names_fields
def get_namespace(name: str) -> Call[Namespace]:
    """GetNamespace."""
    return Call("GetNamespace", namespace_pb2.GetNamespaceRequest(name=name), _namespace)


@names_fields
def list_namespaces(
    *, name_contains: str, page_size: int, page_token: str
) -> Call[Page[Namespace]]:
    """ListNamespaces."""
    request = namespace_pb2.ListNamespacesRequest(
        name_contains=name_contains, page_size=page_size, page_token=page_token
    )
    return Call(
        "ListNamespaces",
        request,
        lambda answer: Page([Namespace(n) for n in answer.namespaces], answer.next_page_token),
    )


@names_fields
def update_namespace(name: str, fields: Mapping[str, Any]) -> Call[Namespace]:
    """UpdateNamespace. `fields`: values by name, UNSET for unchanged ones."""
    request = namespace_pb2.UpdateNamespaceRequest()
    request.namespace.name = name
    for field, value in fields.items():
        if value is not UNSET:
            _set(request.namespace, field, value)
            request.update_mask.paths.append(field)
    return Call("UpdateNamespace", request, _namespace)


@names_fields
def delete_namespace(name: str, *, force: bool, allow_missing: bool) -> Call[None]:
    """DeleteNamespace."""
    request = namespace_pb2.DeleteNamespaceRequest(
        name=name, force=force, allow_missing=allow_missing
    )
    return Call("DeleteNamespace", request, lambda _: None)
