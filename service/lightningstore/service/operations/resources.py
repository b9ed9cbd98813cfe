"""Resources: add, update, get, list, watch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import Pace
from lightningstore.service.operations import watching
from lightningstore.service.rules.checks import check_enum, check_json, check_json_object
from lightningstore.service.rules.errors import (
    DataDamaged,
    FieldInvalid,
    NumberNotPublished,
    PayloadTooLarge,
    PublishNumberBeyondEnd,
    ResourcesExist,
    ResourcesNotFound,
    StoreError,
    VersionNotPublished,
    VersionRemoved,
    quoted,
)
from lightningstore.service.rules.ids import LATEST, check_new_id, new_id
from lightningstore.service.rules.limits import CHUNK_BYTES
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
    WatchResourcesRequest,
    WatchResourcesResponse,
)

#: Maximum number of versions in a message of WatchResources: reading them may hold the event loop.
CHUNK_VERSIONS = 256

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
            kept = AddResourcesResponse.FromString(answer).resources
            return AddResourcesResponse(resources=await self._published(kept))
        if request.resources_id in self._live.state.resources:
            raise ResourcesExist(request.resources_id)
        resources_id = request.resources_id
        while not resources_id or (resources_id in self._live.state.resources):
            resources_id = new_id("rs-", 12)
        reply = AddResourcesResponse(resources=self._put(resources_id, request, None))
        if request.request_id:
            short = AddResourcesResponse(resources=_reference(reply.resources))
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
            kept = UpdateResourcesResponse.FromString(answer).resources
            return UpdateResourcesResponse(resources=await self._published(kept))
        reply = UpdateResourcesResponse(resources=self._put(resources_id, request, old))
        if request.request_id:
            short = UpdateResourcesResponse(resources=_reference(reply.resources))
            self._engine.remember("UpdateResources", request, short)
        await self._engine.commit()
        return reply

    def _put(self, resources_id: str, request: _Request, old: Resources | None) -> Resources:
        # The version comes from memory, because another update may have run since `old` was read.
        resources, counters = self._live.state.resources, self._live.state.counters
        counters.resources_updates += 1
        version = resources.next(resources_id, counters.resources_updates)
        now = self._live.now()
        record = Resources(
            resources_id=resources_id,
            version=version.version,
            create_time=old.create_time if old is not None else now,
            update_time=now,
            names=request.names,
            publish_number=version.publish_number,
        )
        record.resources.MergeFrom(request.resources)
        resources.add(version)
        self._live.note_publication(version.publish_number)
        changes = self._engine.committer.changes
        changes.resources[version.publish_number] = ResourcesRow(version.key, record)
        changes.size += record.ByteSize()
        keep = self._engine.limits.resource_versions
        for number in resources.drop_outdated(resources_id, keep):
            # One that this commit would write is left out of it.
            if changes.resources.pop(number, None) is None:
                changes.outdated.append(number)
        return record

    async def get_resources(self, request: GetResourcesRequest) -> GetResourcesResponse:
        """Return resources by id, in their current or an earlier version, by publish number, or the latest."""
        if self._engine.committer.failure is not None:
            raise self._engine.committer.failure
        resources_id = request.resources_id
        _check_version(request)
        if request.publish_number:
            record = await self._read(lambda: self._numbered(request.publish_number))
        elif request.version:
            record = await self._read(lambda: self._versioned(resources_id, request.version))
        else:
            record = await self._current(resources_id)
        return GetResourcesResponse(resources=record)

    def _named(self, resources_id: str) -> ResourcesVersion:
        current = self._live.state.resources.current(resources_id)
        if current is None:
            raise ResourcesNotFound("" if resources_id == LATEST else resources_id)
        return current

    def _versioned(self, resources_id: str, version: int) -> ResourcesVersion:
        current = self._named(resources_id)
        if version > current.version:
            raise VersionNotPublished(resources_id, version, current.version)
        found = self._live.state.resources.find(resources_id, version)
        if found is None:
            name = f"resources {quoted(resources_id)} of version {version}"
            raise VersionRemoved(name, resourcesId=resources_id, version=version)
        return found

    def _numbered(self, publish_number: int) -> ResourcesVersion:
        last = self._live.state.counters.resources_updates
        if publish_number > last:
            raise NumberNotPublished(publish_number, last)
        found = self._live.state.resources.numbered(publish_number)
        if found is None:
            name = f"resources with publish number {publish_number}"
            raise VersionRemoved(name, publishNumber=publish_number)
        return found

    async def _published(self, kept: Resources) -> Resources:
        """Return what a repeated request published, or the current version if that one is not kept any more."""
        known = self._live.state.resources
        if known.numbered(kept.publish_number) is not None:
            with suppress(VersionRemoved):
                return await self._read(lambda: self._numbered(kept.publish_number))
        return await self._current(kept.resources_id)

    async def _current(self, resources_id: str) -> Resources:
        return await self._read(lambda: self._named(resources_id))

    async def _read(self, find: Callable[[], ResourcesVersion]) -> Resources:
        """Read a version. It is looked for again if it was removed before it could be read."""
        while True:
            try:
                version = find()
            except StoreError:
                await self._engine.barrier()  # a crash could undo the removal of a version
                raise
            await self._engine.barrier()
            record = await self._engine.storage.get_resources(version.publish_number)
            if record is not None:
                return record
            if find() is version:  # a damaged store
                raise ResourcesNotFound(version.resources_id)

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

    async def watch_resources(self, request: WatchResourcesRequest) -> AsyncIterator[bytes | None]:
        """Yield None once the watch is registered, then serialised WatchResourcesResponses."""
        await watching.prepared(self._engine, request.store_id)
        given, waiters = request.HasField("after_publish_number"), self._engine.waiters
        through = watching.first_number(
            request.after_publish_number if given else None,
            waiters.published_resources,
            "after_publish_number",
            PublishNumberBeyondEnd,
        )

        async def after(number: int) -> AsyncGenerator[watching.Part, None]:
            versions, reached = await self._versions_after(number)
            yield self._watched(versions, reached) if reached > number else None, reached

        registered = waiters.watching_resources()
        stream = watching.messages(self._engine, registered, through, self._progress, after)
        async with aclosing(stream) as messages:
            async for message in messages:
                yield message

    def _progress(self, through: int) -> bytes:
        return self._watched([], through)

    async def _versions_after(self, number: int) -> tuple[list[Resources], int]:
        """Return kept versions after a publish number, and the number up to which none is missing.

        As many as fit into a message; one that is larger comes alone. Damaged ones are left out.
        """
        published, size = self._engine.waiters.published_resources, 0
        versions: list[Resources] = []
        while size < CHUNK_BYTES and len(versions) < CHUNK_VERSIONS:
            version = self._live.state.resources.after(number)
            if version is None or version.publish_number > published:
                return versions, max(number, published)
            record = None
            with suppress(DataDamaged):
                record = await self._engine.storage.get_resources(version.publish_number)
            if record is not None:
                size += record.ByteSize()
                if versions and size > CHUNK_BYTES:
                    break
                versions.append(record)
            number = version.publish_number
        return versions, number

    def _watched(self, versions: list[Resources], through: int) -> bytes:
        return WatchResourcesResponse(
            resources=versions,
            through_publish_number=through,
            store_id=self._engine.store_id,
        ).SerializeToString()

    def _check(self, request: _Request) -> None:
        self._engine.check_batch("resources", len(request.resources))
        self._engine.check_batch("names", len(request.names))
        total = sum(len(name.encode()) for name in request.names)
        for name, resource in request.resources.items():
            _check_resource(f"resources[{name!r}]", resource)
            total += resource.ByteSize()
        if total > self._engine.limits.inputs_bytes:
            raise PayloadTooLarge("resources", total, self._engine.limits.inputs_bytes)


def _reference(record: Resources) -> Resources:
    """Return what identifies a version, which is what is kept for a repeat of its request."""
    return Resources(
        resources_id=record.resources_id,
        version=record.version,
        publish_number=record.publish_number,
    )


def _check_version(request: GetResourcesRequest) -> None:
    """Check which version is requested. Raises FieldInvalid."""
    for name in ("version", "publish_number"):
        if getattr(request, name) < 0:
            raise FieldInvalid(name, "must not be negative; versions count from 1")
    if request.publish_number and (request.resources_id or request.version):
        raise FieldInvalid(
            "publish_number", "identifies a version; leave out resources_id and version"
        )
    if request.version and request.resources_id in ("", LATEST):
        raise FieldInvalid("version", "requires a resources_id: versions count for each id")


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
