# Generated from _async/resources.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Resources, in the blocking client: add, update, get, list, watch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightningstore.client._calls import traces as calls
from lightningstore.client._calls.streams import ResourceWatchState
from lightningstore.client._sync.caller import Caller
from lightningstore.client._sync.streams import ResourceStream
from lightningstore.client.values import Page, Resources


class ResourceCalls(Caller):
    """The calls on resources: what agents work with, such as model endpoints, prompts and weights."""

    def add_resources(
        self,
        resources: Mapping[str, Any],
        *,
        resources_id: str = "",
        request_id: str | None = None,
    ) -> Resources:
        """Store new resources by name, and make them the latest.

        Args:
            resources: `LLM`, `ProxyLLM`, `PromptTemplate` or `CustomResource` objects by name. Any other value with
                JSON is stored as a `CustomResource` without type.
            resources_id: Id of the resources. Empty: the server creates one.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The stored resources, version 1, with their publish number.

        Raises:
            AlreadyExistsError: The id exists.
            InvalidArgumentError: A name or a resource is invalid.
            TypeError: A part of a value has no JSON.
            ValueError: A number has no JSON, or a template engine is unknown.

        Example:
            resources = store.add_resources(
                {
                    "model": LLM("http://localhost:8000/v1", "qwen"),
                    "prompt": PromptTemplate("Answer in one word: {question}"),
                    "weights": [0.1, 0.2],
                }
            )
            assert resources["model"].model == "qwen"
        """
        return self._send(calls.add_resources(resources, resources_id, request_id))

    def update_resources(
        self, resources_id: str, resources: Mapping[str, Any], *, request_id: str | None = None
    ) -> Resources:
        """Replace resources as a new version, and make them the latest.

        Args:
            resources_id: Id of the resources. If it does not exist, the resources are created with version 1.
            resources: All resources by name, as in `add_resources`. Names left out are removed.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The stored resources, with the new version and its publish number.

        Raises:
            InvalidArgumentError: A name or a resource is invalid.
            TypeError: A part of a value has no JSON.
            ValueError: A number has no JSON, or a template engine is unknown.
        """
        return self._send(calls.update_resources(resources_id, resources, request_id))

    def get_resources(
        self, resources_id: str = "", *, version: int = 0, publish_number: int = 0
    ) -> Resources:
        """Get resources in their current version, or in an earlier one that is kept.

        Args:
            resources_id: Id of the resources. Empty or "latest": the latest ones.
            version: Version of these resources. 0: the current one. Requires `resources_id`.
            publish_number: Publish number of the version, instead of `resources_id` and `version`. 0: not used.

        Returns:
            The resources.

        Raises:
            NotFoundError: The resources do not exist, or there are none yet. With the reason
                "ERROR_REASON_RESOURCES_VERSION_REMOVED": the version is not kept any more.
            InvalidArgumentError: The arguments contradict each other, or are negative.

        Example:
            first = store.add_resources({"prompt": PromptTemplate("Why?")})
            store.update_resources(first.resources_id, {"prompt": PromptTemplate("How?")})
            assert store.get_resources(first.resources_id, version=1) == first
            assert store.get_resources(publish_number=first.publish_number) == first
        """
        return self._send(calls.get_resources(resources_id, version, publish_number))

    def list_resources(
        self, *, resources_id_contains: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page[Resources]:
        """List one page of resources in their current versions, in the order in which they were first added.

        Args:
            resources_id_contains: Only resources whose id contains this text. Empty: all.
            page_size: Maximum resources in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page, with the same filter.

        Returns:
            One page of resources.

        Raises:
            InvalidArgumentError: The page size or page token is invalid.
        """
        return self._send(calls.list_resources(resources_id_contains, page_size, page_token))

    def watch_resources(
        self, after_publish_number: int | None = None, *, store_id: str = ""
    ) -> ResourceStream:
        """Iterate over the publications of all resources without end, in the order of their publish numbers.

        After a broken connection the watch resumes; no version that is kept is missed. A version that was removed
        before it could be sent is left out, so its number is missing. To resume after a restart of your program, keep
        `through_publish_number` and `store_id` of the stream.

        Args:
            after_publish_number: Only versions with a greater number. 0: from the oldest one that is kept. None: from
                now on.
            store_id: Id of the store that the number comes from. Empty: not checked.

        Returns:
            A stream of resources.

        Raises:
            OutOfRangeError: While iterating: the number is greater than the latest one of the store.
            FailedPreconditionError: While iterating: `store_id` is the id of another store.
            InvalidArgumentError: While iterating: the number is negative.

        Example:
            weights = store.add_resources({"weights": [0.1]})
            with store.watch_resources(weights.publish_number - 1) as publications:
                for resources in publications:
                    print("load", resources["weights"], resources.publish_number)
                    break
        """
        state = ResourceWatchState(after_publish_number, store_id)
        return ResourceStream(self._transport, state, self._timeout)
