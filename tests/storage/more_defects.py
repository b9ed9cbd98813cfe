"""More back ends with one defect each: leases, settings, versions of resources, and rewards."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from lightningstore.service.rules.errors import StorageFailed

from tests.storage.defects import DEFECTIVE, found_by
from tests.storage.model import Data, LeasedStorage, ModelStorage

__all__ = ["DEFECTIVE"]


@found_by("test_former_owner_writes_nothing")
class WritesWithoutALease(LeasedStorage):
    def check(self):
        pass

    @property
    def data(self):
        return self.store.data


@found_by("test_former_owner_writes_nothing")
class LosesACommitSilently(LeasedStorage):
    async def commit(self, changes):
        with suppress(StorageFailed):
            await super().commit(changes)


@found_by("test_lease_of_a_former_owner_is_over")
class BelievesInItsLease(LeasedStorage):
    @property
    def owned_until(self):
        return time.clock_gettime(time.CLOCK_BOOTTIME) + 60


@found_by("test_former_owner_that_closes_takes_nothing_from_the_new")
class ReleasesTheLeaseOfTheNewOwner(LeasedStorage):
    async def close(self):
        self.store.owner = None
        self.is_open = False


@found_by("test_new_owner_has_all_commits_of_the_former")
class TakesOverAnEmptyStore(LeasedStorage):
    def end_lease(self):
        super().end_lease()
        self.store.data = Data()


@found_by("test_settings_come_back_as_last_committed")
class KeepsTheFirstSettings(LeasedStorage):
    def apply(self, data, changes):
        changes.settings = data.settings or changes.settings
        super().apply(data, changes)


@found_by("test_settings_come_back_as_last_committed")
class ClearsSettingsThatACommitDoesNotName(LeasedStorage):
    def apply(self, data, changes):
        changes.settings = changes.settings or b""
        super().apply(data, changes)


@found_by("test_damaged_worker_is_left_out_and_counted")
class CountsNothingDamaged(LeasedStorage):
    damaged_records = 0


@found_by("test_damaged_resources_are_left_out_and_counted")
class FailsListsOfResources(LeasedStorage):
    async def list_resources(self, query):
        for row in self.data.resources.values():
            self.check_readable("resources", row.record.resources_id)
        return await super().list_resources(query)


@found_by("test_damaged_live_rollout_is_left_out_and_counted")
class DoesNotOpenWithDamage(LeasedStorage):
    async def open(self):
        snapshot = await super().open()
        for row in self.data.rollouts.values():
            self.loaded(row)
        return snapshot


@found_by("test_damaged_finished_rollout_is_left_out_and_counted")
class FailsCompletionsBesideADamagedOne(LeasedStorage):
    async def completions(self, after, limit):
        for row in self.finished_rows():
            self.loaded(row)
        return await super().completions(after, limit)


@found_by("test_every_version_is_found_by_its_number")
class KeepsCurrentResources(ModelStorage):
    def apply(self, data, changes):
        super().apply(data, changes)
        newest = sorted(data.resources.values(), key=lambda row: row.record.publish_number)
        current = {row.key: row for row in newest}.values()
        data.resources = {row.record.publish_number: row for row in current}


@found_by("test_outdated_versions_are_removed")
class KeepsOutdatedResources(ModelStorage):
    def apply(self, data, changes):
        changes.outdated = []
        super().apply(data, changes)


@found_by("test_outdated_versions_are_removed")
class RemovesAllVersionsOfAnId(ModelStorage):
    def apply(self, data, changes):
        keys = [data.resources[n].key for n in changes.outdated if n in data.resources]
        data.resources = {n: row for n, row in data.resources.items() if row.key not in keys}
        super().apply(data, changes)


@found_by("test_count_is_by_status")
class CountsWithoutStatus(ModelStorage):
    async def count_rollouts(self, query):
        return {1: sum((await super().count_rollouts(query)).values())}


@found_by("test_queue_of_a_rollout_changes")
class KeepsTheFirstQueue(ModelStorage):
    def matching(self, query):
        first = vars(self.store).setdefault("first", {})
        for row in self.data.rollouts.values():
            first.setdefault(row.key, row.rollout.queue)
        rows = super().matching(replace(query, queues=frozenset()))
        return [row for row in rows if not query.queues or first[row.key] in query.queues]


class LabelRows(ModelStorage):
    """Keeps labels in rows of their own, as a back end with tables does."""

    def apply(self, data, changes):
        super().apply(data, changes)
        rows = vars(self.store).setdefault("labels", {})
        for key, labels in changes.labels.items():
            self.put_labels(rows, key, labels)

    def put_labels(self, rows, key, labels):
        rows[key] = dict(labels)

    def matching(self, query):
        rows = vars(self.store).get("labels", {})
        found = super().matching(replace(query, labels=frozenset()))
        return [row for row in found if self.has_labels(rows.get(row.key, {}), query.labels)]

    def has_labels(self, labels, wanted):
        return wanted <= set(labels.items())


@found_by("test_labels_are_replaced_as_a_whole")
class AddsToTheLabels(LabelRows):
    def put_labels(self, rows, key, labels):
        rows.setdefault(key, {}).update(labels)


@found_by("test_labels_are_replaced_as_a_whole")
class KeepsTheLastLabels(LabelRows):
    def put_labels(self, rows, key, labels):
        rows[key] = labels or rows.get(key, {})


@found_by("test_labels_stay_when_the_rollout_changes")
class DropsLabelsThatACommitDoesNotName(LabelRows):
    def apply(self, data, changes):
        for key in changes.rollouts:
            vars(self.store).get("labels", {}).pop(key, None)
        super().apply(data, changes)


@found_by("test_filters_match_alone_and_joined")
class MatchesAnyLabel(LabelRows):
    def has_labels(self, labels, wanted):
        return not wanted or bool(wanted & set(labels.items()))


@found_by("test_filters_match_alone_and_joined")
class FiltersNoRewards(ModelStorage):
    def matching(self, query):
        return super().matching(replace(query, reward_range=None))


@found_by("test_filters_match_alone_and_joined")
class TakesNoRewardForALowOne(ModelStorage):
    def matching(self, query):
        if query.reward_range is not None:
            query = replace(query, reward_range=("", query.reward_range[1]))
        return super().matching(query)


@found_by("test_scan_goes_by_the_last_reward")
class KeepsTheFirstReward(ModelStorage):
    def apply(self, data, changes):
        for key, row in changes.rollouts.items():
            if key in data.rollouts:
                changes.rollouts[key] = row._replace(measures=data.rollouts[key].measures)
        super().apply(data, changes)


@found_by("test_pages_follow_every_order")
class SortsRewardsAsTextOfNumbers(ModelStorage):
    def place(self, query, row):
        value, key = super().place(query, row)
        return (value[::-1] if query.order_by == "reward" else value), key


@found_by("test_groups_are_returned_as_they_were_last_committed")
class KeepsTheFirstGroup(LeasedStorage):
    def put_groups(self, data, changes):
        changes.groups = {**changes.groups, **data.groups}
        super().put_groups(data, changes)


@found_by("test_groups_are_returned_as_they_were_last_committed")
class LosesDeadlinesOfGroups(LeasedStorage):
    async def load_groups(self, group_ids):
        return [row._replace(deadline_ns=0) for row in await super().load_groups(group_ids)]


@found_by("test_list_of_groups_is_filtered_and_goes_by_key")
class GroupsGoByName(LeasedStorage):
    async def list_groups(self, query):
        return sorted(await super().list_groups(query), key=lambda row: row.record.group_id)


@found_by("test_list_of_groups_is_filtered_and_goes_by_key")
class IgnoresStatusOfGroups(LeasedStorage):
    async def list_groups(self, query):
        return await super().list_groups(replace(query, statuses=frozenset()))


@found_by("test_list_of_groups_is_filtered_and_goes_by_key")
class GroupsOfAPageStartAtItsKey(LeasedStorage):
    async def list_groups(self, query):
        return await super().list_groups(replace(query, after=query.after - 1))


@found_by("test_completions_of_groups_go_by_number")
class GroupCompletionsGoByKey(LeasedStorage):
    async def group_completions(self, after, limit):
        return sorted(await super().group_completions(after, limit))


@found_by("test_completions_of_groups_go_by_number")
class KeepsNumbersOfReopenedGroups(LeasedStorage):
    def put_groups(self, data, changes):
        for key, row in changes.groups.items():
            old = data.groups.get(key)
            if old is not None and not row.record.completion_number:
                row.record.completion_number = old.record.completion_number
        super().put_groups(data, changes)


@found_by("test_removed_groups_are_in_no_answer")
class KeepsRemovedGroups(LeasedStorage):
    def put_groups(self, data, changes):
        data.groups.update(changes.groups)


@found_by("test_removed_groups_are_in_no_answer")
class WritesGroupsOfTheCommitThatRemovesThem(LeasedStorage):
    def apply(self, data, changes):
        groups = dict(changes.groups)
        super().apply(data, changes)
        data.groups.update(groups)


@found_by("test_id_of_a_removed_group_can_be_used_again")
class RemovesGroupsAfterItWrites(LeasedStorage):
    def put_groups(self, data, changes):
        gone = [data.groups[key].record.group_id for key in changes.removed_groups]
        super().put_groups(data, changes)
        data.groups = {k: r for k, r in data.groups.items() if r.record.group_id not in gone}


@found_by("test_open_groups_come_back")
class LoadsCompleteGroups(LeasedStorage):
    def is_open_group(self, row):
        return True


@found_by("test_group_and_its_members_are_one_commit")
class ForgetsTheEndOfAGroup(LeasedStorage):
    def put_groups(self, data, changes):
        data.groups = {**changes.groups, **data.groups}


@found_by("test_odd_ids_and_large_numbers_of_groups")
class HasDeadlinesOf32Bits(LeasedStorage):
    def put_groups(self, data, changes):
        rows = {
            k: row._replace(deadline_ns=row.deadline_ns % 2**32)
            for k, row in changes.groups.items()
        }
        changes.groups = rows
        super().put_groups(data, changes)


@found_by("test_rollouts_can_be_listed_without_their_inputs")
class AlwaysListsInputs(LeasedStorage):
    def scan_rollouts(self, query):
        return super().scan_rollouts(replace(query, inputs=True))


@found_by("test_damaged_groups_are_left_out_and_counted")
class ShowsDamagedGroups(LeasedStorage):
    def sound_groups(self):
        return list(self.data.groups.values())


@found_by("test_consumers_and_deliveries_come_back")
class KeepsTheFirstConsumer(LeasedStorage):
    def put_consumers(self, data, changes):
        changes.consumers = {**changes.consumers, **data.consumers}
        super().put_consumers(data, changes)


@found_by("test_consumers_and_deliveries_come_back")
class KeepsEndedDeliveries(LeasedStorage):
    def put_consumers(self, data, changes):
        changes.removed_deliveries = []
        super().put_consumers(data, changes)


@found_by("test_a_consumer_goes_with_its_deliveries")
class KeepsDeliveriesOfRemovedConsumers(LeasedStorage):
    def put_consumers(self, data, changes):
        kept = dict(data.deliveries)
        super().put_consumers(data, changes)
        data.deliveries = {**kept, **data.deliveries}


@found_by("test_a_consumer_goes_with_its_deliveries")
class RemovesConsumersAfterItWrites(LeasedStorage):
    def put_consumers(self, data, changes):
        names = [
            r.record.name for r in data.consumers.values() if r.key in changes.removed_consumers
        ]
        super().put_consumers(data, changes)
        data.consumers = {n: row for n, row in data.consumers.items() if n not in names}


@found_by("test_many_deliveries_end_with_one_commit")
class EndsAThousandDeliveries(LeasedStorage):
    def put_consumers(self, data, changes):
        del changes.removed_deliveries[1000:]
        super().put_consumers(data, changes)


@found_by("test_finished_rollouts_are_counted_by_number")
class CountsFinishedRolloutsOfAnyNumber(LeasedStorage):
    async def count_rollouts(self, query):
        return await super().count_rollouts(replace(query, completed=None))


@found_by("test_damaged_consumers_are_left_out_and_replaced")
class KeepsDamagedConsumers(LeasedStorage):
    def put_consumers(self, data, changes):
        damaged = data.damaged
        super().put_consumers(data, changes)
        data.damaged = damaged


@found_by("test_failure_is_searched_in_the_latest_attempt")
class SearchesTheFirstAttempt(ModelStorage):
    def latest(self, rollout_key):
        rows = self.attempts(rollout_key)
        return rows[0].attempt if rows else None


@found_by("test_disk_is_larger_than_what_is_free_on_it")
class SwapsFreeBytesAndSize(ModelStorage):
    async def disk_bytes(self):
        return 2, 1


@found_by("test_other_rollouts_take_the_place_of_damaged_ones_in_a_page")
class EndsPagesEarly(ModelStorage):
    def page(self, query):
        return super().page(query)[: query.limit]
