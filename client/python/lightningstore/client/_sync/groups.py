# Generated from _async/groups.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Groups of rollouts, in the blocking client: get, list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightningstore.client._calls import groups as calls
from lightningstore.client._sync.caller import Caller
from lightningstore.client.values import Group, GroupStatus, Page


class GroupCalls(Caller):
    """The calls on groups, which `enqueue_rollouts` creates. Statuses are passed as enums or as their words."""

    def get_group(self, group_id: str) -> Group:
        """Get one group with the numbers and the ids of its members.

        Args:
            group_id: Id of the group.

        Returns:
            The group.

        Raises:
            NotFoundError: No group with this id was created. Rollouts may have the id as a label.
            InvalidArgumentError: The id is empty.

        Example:
            store.enqueue_rollouts(
                [{"rollout_id": f"task-1-{n}", "input": n, "group_id": "task-1"} for n in range(4)],
                groups=[{"group_id": "task-1", "size": 4}],
            )
            group = store.get_group("task-1")
            print(group.status, group.member_count, group.rollout_ids)
        """
        return self._send(calls.get_group(group_id))

    def list_groups(
        self,
        *,
        group_ids: Iterable[str] = (),
        statuses: Iterable[GroupStatus | str | int] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Group]:
        """List one page of groups, in the order in which they were created.

        Args:
            group_ids: Only groups with one of these ids. Empty filters are ignored.
            statuses: Only groups with one of these statuses.
            page_size: Maximum groups in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page, with the same filters.

        Returns:
            The page.

        Raises:
            InvalidArgumentError: A filter or the page token is invalid.
            TypeError: `group_ids` is a single string.
            ValueError: A status is unknown.
        """
        return self._send(
            calls.list_groups(
                group_ids=group_ids, statuses=statuses, page_size=page_size, page_token=page_token
            )
        )

    def iter_groups(
        self,
        *,
        group_ids: Iterable[str] = (),
        statuses: Iterable[GroupStatus | str | int] = (),
        page_size: int = 0,
    ) -> Iterator[Group]:
        """Iterate over all groups that `list_groups` would list, page after page.

        Args:
            group_ids: Only groups with one of these ids. Empty filters are ignored.
            statuses: Only groups with one of these statuses.
            page_size: Maximum groups requested at a time. 0: 100.

        Yields:
            The groups.

        Raises:
            InvalidArgumentError: A filter is invalid.
            TypeError: `group_ids` is a single string.
            ValueError: A status is unknown.

        Example:
            waiting = [group.group_id for group in store.iter_groups(statuses=["open"])]
        """
        call = calls.list_groups(group_ids=group_ids, statuses=statuses, page_size=page_size)
        while True:
            page = self._send(call)
            yield from page
            if not page.next_page_token:
                return
            call = call.for_page(page.next_page_token)
