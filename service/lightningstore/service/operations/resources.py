"""Resources: add, update, get, list."""

from __future__ import annotations

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import Pace
from lightningstore.service.rules.checks import check_enum, check_json, check_json_object
from lightningstore.service.rules.errors import (
    FieldInvalid,
    PayloadTooLarge,
    ResourcesExist,
    ResourcesNotFound,
)
from lightningstore.service.rules.ids import check_new_id, new_id
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.service.rules.rows import ResourcesQuery, ResourcesRow, ResourcesVersion
from lightningstore.v1.resources_pb2 import (
    AddResourcesRequest,
    AddResourcesResponse,
    GetResourcesRequest,
    GetResourcesResponse,
    ListResourcesRequest,
    ListResourcesResponse,
    Resource,
    Resources,
    TemplateEngine,
    UpdateResourcesRequest,
    UpdateResourcesResponse,
)

_Request = AddResourcesRequest | UpdateResourcesRequest


class ResourceVersions:
    """The calls of resources.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def add_resources(self, request: AddResourcesRequest) -> AddResourcesResponse:
        """Store new resources and make them the latest."""
        self._engine.committer.admit()
        self._check(request)
        check_new_id("resources_id", request.resources_id, required=False)
        if (answer := self._engine.requests.find("AddResources", request)) is not None:
            kept = AddResourcesResponse.FromString(answer).resources.resources_id
            return AddResourcesResponse(resources=await self._current(kept))
        if request.resources_id in self._live.state.resources:
            raise ResourcesExist(request.resources_id)
        resources_id = request.resources_id
        while not resources_id or (resources_id in self._live.state.resources):
            resources_id = new_id("rs-", 12)
        reply = AddResourcesResponse(resources=self._put(resources_id, request, None))
        if request.request_id:
            short = AddResourcesResponse(resources=Resources(resources_id=resources_id))
            self._engine.remember("AddResources", request, short)
        await self._engine.commit()
        return reply

    async def update_resources(self, request: UpdateResourcesRequest) -> UpdateResourcesResponse:
        """Replace resources and make them the latest. An id that does not exist is created."""
        self._engine.committer.admit()
        self._check(request)
        resources_id = request.resources_id
        check_new_id("resources_id", resources_id)
        old, failures = None, self._engine.committer.failures
        if resources_id in self._live.state.resources:
            old = await self._current(resources_id)
            self._engine.check_unbroken(failures)
        if (answer := self._engine.requests.find("UpdateResources", request)) is not None:
            kept = UpdateResourcesResponse.FromString(answer).resources.resources_id
            return UpdateResourcesResponse(resources=await self._current(kept))
        reply = UpdateResourcesResponse(resources=self._put(resources_id, request, old))
        if request.request_id:
            short = UpdateResourcesResponse(resources=Resources(resources_id=resources_id))
            self._engine.remember("UpdateResources", request, short)
        await self._engine.commit()
        return reply

    def _put(self, resources_id: str, request: _Request, old: Resources | None) -> Resources:
        # The version comes from memory, because another update may have run since `old` was read.
        state = self._live.state
        known = state.resources.get(resources_id) or ResourcesVersion(state.resources_key + 1, 0, 0)
        now = self._live.now()
        record = Resources(
            resources_id=resources_id,
            version=known.version + 1,
            create_time=old.create_time if old is not None else now,
            update_time=now,
            names=request.names,
        )
        record.resources.MergeFrom(request.resources)
        state.counters.resources_updates += 1
        updated = state.counters.resources_updates
        state.put_resources(resources_id, ResourcesVersion(known.key, record.version, updated))
        changes = self._engine.committer.changes
        changes.resources[resources_id] = ResourcesRow(known.key, updated, record)
        changes.size += record.ByteSize()
        return record

    async def get_resources(self, request: GetResourcesRequest) -> GetResourcesResponse:
        """Return resources by id, or the latest."""
        if self._engine.committer.failure is not None:
            raise self._engine.committer.failure
        resources_id = request.resources_id or self._live.state.latest_resources_id
        if resources_id not in self._live.state.resources:
            raise ResourcesNotFound(request.resources_id)
        return GetResourcesResponse(resources=await self._current(resources_id))

    async def _current(self, resources_id: str) -> Resources:
        await self._engine.barrier()
        record = await self._engine.storage.get_resources(resources_id)
        if record is None:
            raise ResourcesNotFound(resources_id)
        return record

    async def list_resources(self, request: ListResourcesRequest) -> ListResourcesResponse:
        """Return one page of resources, in the order in which they were first added."""
        digest = query_digest(request, "page_size", "page_token")
        size = self._engine.limits.page_length(request.page_size)
        after = 0
        if request.page_token:
            after = parse_page_token(request.page_token, digest, (int,))[0]
        await self._engine.barrier()
        reply = ListResourcesResponse()
        total, pace = 0, Pace()
        while True:
            query = ResourcesQuery(request.resources_id_contains, after, pace.count)
            found = await self._engine.storage.list_resources(query)
            sizes = [record.ByteSize() for _, record in found]
            for (place, record), record_bytes in zip(found, sizes, strict=True):
                total += record_bytes
                full = reply.resources and total > self._engine.limits.answer_bytes
                if len(reply.resources) == size or full:
                    reply.next_page_token = page_token(digest, [after])
                    return reply
                reply.resources.append(record)
                after = place
            if len(found) < query.limit:
                return reply
            pace.note(sizes)

    def _check(self, request: _Request) -> None:
        self._engine.check_batch("resources", len(request.resources))
        self._engine.check_batch("names", len(request.names))
        total = sum(len(name.encode()) for name in request.names)
        for name, resource in request.resources.items():
            _check_resource(f"resources[{name!r}]", resource)
            total += resource.ByteSize()
        if total > self._engine.limits.inputs_bytes:
            raise PayloadTooLarge("resources", total, self._engine.limits.inputs_bytes)


def _check_resource(field: str, resource: Resource) -> None:
    kind = resource.WhichOneof("kind")
    if kind is None:
        raise FieldInvalid(field, "must be one of llm, proxy_llm, prompt_template, custom")
    if kind == "llm":
        parameters = resource.llm.sampling_parameters_json
        check_json_object(f"{field}.llm.sampling_parameters_json", parameters)
    elif kind == "proxy_llm":
        parameters = resource.proxy_llm.llm.sampling_parameters_json
        check_json_object(f"{field}.proxy_llm.llm.sampling_parameters_json", parameters)
    elif kind == "prompt_template":
        check_enum(
            f"{field}.prompt_template.engine", TemplateEngine, resource.prompt_template.engine
        )
    else:
        check_json(f"{field}.custom.value_json", resource.custom.value_json)
