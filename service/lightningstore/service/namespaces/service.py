"""The calls of namespace.proto, which only translate: the directory does the work."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.operations.table import Operation
from lightningstore.service.rules.errors import NamespaceNotFound
from lightningstore.service.rules.ids import check_request_id
from lightningstore.service.rules.namespaces import check_namespace
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.v1.namespace_pb2 import (
    CreateNamespaceRequest,
    CreateNamespaceResponse,
    DeleteNamespaceRequest,
    DeleteNamespaceResponse,
    GetNamespaceRequest,
    GetNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    UpdateNamespaceRequest,
    UpdateNamespaceResponse,
)

#: Whether the caller may see a namespace, by its name. Access control sets it in the task of a call; None: all.
VISIBLE: ContextVar[Callable[[str], bool] | None] = ContextVar("visible namespaces", default=None)


class NamespaceCalls:
    """The calls of namespace.proto."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def create_namespace(self, request: CreateNamespaceRequest) -> CreateNamespaceResponse:
        """Create a namespace."""
        check_namespace("namespace.name", request.namespace.name)
        check_request_id(request.request_id)
        _check_visible(request.namespace.name)
        space = await self._directory.create(request)
        return CreateNamespaceResponse(namespace=space.namespace)

    async def get_namespace(self, request: GetNamespaceRequest) -> GetNamespaceResponse:
        """Return a namespace."""
        check_namespace("name", request.name)
        _check_visible(request.name)
        return GetNamespaceResponse(namespace=self._directory.find(request.name).namespace)

    async def list_namespaces(self, request: ListNamespacesRequest) -> ListNamespacesResponse:
        """Return one page of the namespaces that the caller may see, ordered by name."""
        digest = query_digest(request, "page_size", "page_token")
        size = self._directory.limits.page_length(request.page_size)
        after = ""
        if request.page_token:
            after = parse_page_token(request.page_token, digest, (str,))[0]
        visible = VISIBLE.get()
        reply = ListNamespacesResponse()
        for space in self._directory.spaces():
            if space.name <= after or request.name_contains not in space.name:
                continue
            if visible is not None and not visible(space.name):
                continue
            if len(reply.namespaces) == size:
                reply.next_page_token = page_token(digest, [reply.namespaces[-1].name])
                break
            reply.namespaces.append(space.namespace)
        return reply

    async def update_namespace(self, request: UpdateNamespaceRequest) -> UpdateNamespaceResponse:
        """Change the settings of a namespace."""
        check_namespace("namespace.name", request.namespace.name)
        _check_visible(request.namespace.name)
        space = await self._directory.update(request)
        return UpdateNamespaceResponse(namespace=space.namespace)

    async def delete_namespace(self, request: DeleteNamespaceRequest) -> DeleteNamespaceResponse:
        """Delete a namespace."""
        check_namespace("name", request.name)
        try:
            _check_visible(request.name)
            await self._directory.delete(request.name, force=request.force)
        except NamespaceNotFound:
            if not request.allow_missing:
                raise
        return DeleteNamespaceResponse()


def table(directory: Directory) -> dict[str, Operation]:
    """Return the operation of each method of NamespaceService, by its name in the contract."""
    calls = NamespaceCalls(directory)
    return {
        "CreateNamespace": Operation(calls.create_namespace),
        "GetNamespace": Operation(calls.get_namespace),
        "ListNamespaces": Operation(calls.list_namespaces),
        "UpdateNamespace": Operation(calls.update_namespace),
        "DeleteNamespace": Operation(calls.delete_namespace),
    }


def _check_visible(name: str) -> None:
    """Raise NamespaceNotFound for a namespace that the caller may not see."""
    visible = VISIBLE.get()
    if visible is not None and not visible(name):
        raise NamespaceNotFound(name, "the token is limited to other namespaces")
