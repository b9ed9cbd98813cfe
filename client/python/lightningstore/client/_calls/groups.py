"""Requests about groups, the conversion of their responses, and where a watch stands."""

from __future__ import annotations

from collections.abc import Iterable

from lightningstore.client._calls.call import Call
from lightningstore.client._values import convert
from lightningstore.client._values.groups import GROUP_STATUS, Group
from lightningstore.client._values.text import check, names_fields
from lightningstore.client._values.view import Page
from lightningstore.v1 import group_pb2


@names_fields
def get_group(group_id: str) -> Call[Group]:
    """GetGroup."""
    request = group_pb2.GetGroupRequest(group_id=group_id)
    return Call("GetGroup", request, lambda answer: Group(answer.group))


@names_fields
def list_groups(
    *,
    group_ids: Iterable[str],
    statuses: Iterable[str | int],
    page_size: int = 0,
    page_token: str = "",
) -> Call[Page[Group]]:
    """ListGroups."""
    request = group_pb2.ListGroupsRequest(
        group_ids=convert.ids(group_ids, "group_ids"),
        statuses=convert.to_numbers(GROUP_STATUS, statuses),
        page_size=page_size,
        page_token=page_token,
    )
    return Call(
        "ListGroups",
        request,
        lambda answer: Page([Group(group) for group in answer.groups], answer.next_page_token),
    )


class GroupWatchState:
    """Where a watch of groups stands. It never ends by itself."""

    method = "WatchGroups"
    ended = False

    def __init__(self, after_completion_number: int | None, store_id: str) -> None:
        """Start after a completion number. None: from now on."""
        check("store_id", store_id)
        #: The caller has all completions up to this number. None: the server has not said yet.
        self.through_completion_number = after_completion_number
        self.store_id = store_id
        self._last: group_pb2.WatchGroupsResponse | None = None

    def request(self) -> group_pb2.WatchGroupsRequest:
        """Return what to request from the server."""
        return group_pb2.WatchGroupsRequest(
            after_completion_number=self.through_completion_number, store_id=self.store_id
        )

    def take(self, answer: group_pb2.WatchGroupsResponse) -> list[Group]:
        """Return the groups of a response."""
        self.store_id = answer.store_id
        self._last = answer
        if not answer.groups:
            self.passed_on_all()
        return [Group(group) for group in answer.groups]

    def passed_on(self, group: Group) -> None:
        """Note that the caller has a group."""
        self.through_completion_number = group.completion_number

    def passed_on_all(self) -> None:
        """Note that the caller has all groups of the last response, and so all completions up to its number."""
        if self._last is not None:
            self.through_completion_number = self._last.through_completion_number
            self._last = None
