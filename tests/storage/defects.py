"""Back ends with one defect each, and the case of the storage suite that finds it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import RequestRow
from lightningstore.service.storage.base import Changes, Counters

from tests.storage.model import ModelStorage, Store

#: Back ends with a defect, each with the case that finds it.
DEFECTIVE: list[tuple[type[ModelStorage], str]] = []


def found_by(case: str) -> Callable[[type[ModelStorage]], type[ModelStorage]]:
    def register(defective: type[ModelStorage]) -> type[ModelStorage]:
        DEFECTIVE.append((defective, case))
        return defective

    return register


@found_by("test_removed_rollout_is_in_no_answer")
class ForgetsNothingRemoved(ModelStorage):
    def remove(self, data, changes):
        pass


@found_by("test_commit_keeps_nothing_of_a_rollout_that_it_removes")
class KeepsRowsOfTheCommitThatRemoves(ModelStorage):
    def apply(self, data, changes):
        held = replace(changes, removed=[])
        super().apply(data, changes)
        data.rollouts.update(held.rollouts)
        data.inputs.update(held.inputs)


@found_by("test_id_of_a_removed_rollout_can_be_used_again")
class RemovesAfterItWrites(ModelStorage):
    def apply(self, data, changes):
        ids = {data.rollouts[k].rollout.rollout_id for k in changes.removed if k in data.rollouts}
        super().apply(data, changes)
        for key, row in list(data.rollouts.items()):
            if row.rollout.rollout_id in ids:
                del data.rollouts[key]


@found_by("test_leftover_spans_survive_reopening")
class LosesLeftoverWhenReopened(ModelStorage):
    async def close(self):
        self.store.data.removed.clear()
        await super().close()


@found_by("test_leftover_spans_are_swept_until_none_is_left")
class SweepsEverythingAtOnce(ModelStorage):
    async def leftover_spans(self):
        return [r.key for r in self.data.spans.values() if r.rollout_key in self.data.removed]


@found_by("test_spans_of_others_are_left_alone")
class SweepsWhatIsKept(ModelStorage):
    def apply(self, data, changes):
        super().apply(data, changes)
        if changes.swept:
            data.spans = {k: row for k, row in data.spans.items() if k > max(changes.swept)}


@found_by("test_commit_that_fails_leaves_nothing")
class CommitsHalf(ModelStorage):
    async def commit(self, changes):
        self.apply(self.data, changes)


@found_by("test_large_commit_that_fails_leaves_nothing")
class SwallowsErrors(ModelStorage):
    async def commit(self, changes):
        with suppress(StorageFailed):
            await super().commit(changes)


@found_by("test_commit_that_fails_leaves_nothing")
class ReplacesBatches(ModelStorage):
    def put_spans(self, data, rows):
        data.spans.update({row.key: row for row in rows})


@found_by("test_records_of_one_commit_become_visible_together")
class CommitsInTwoSteps(ModelStorage):
    async def commit(self, changes):
        attempts, changes.attempts = changes.attempts, {}
        await super().commit(changes)
        await super().commit(Changes(attempts=attempts))


@found_by("test_commit_is_visible_to_every_read_when_it_returns")
class CommitsLater(ModelStorage):
    async def commit(self, changes):
        data = self.data.copy()
        self.apply(data, changes)
        asyncio.get_running_loop().call_later(0.001, setattr, self.store, "data", data)


@found_by("test_cancelled_commit_is_written_whole_or_not_at_all")
class WritesWhatFollowsACancelledCommit(ModelStorage):
    async def commit(self, changes):
        rollouts, changes.rollouts = changes.rollouts, {}
        self.apply(self.data, changes)
        await asyncio.sleep(0)
        self.data.rollouts.update(rollouts)


@found_by("test_old_requests_are_forgotten")
class LosesForget(ModelStorage):
    def forget(self, data, before_ns):
        pass


@found_by("test_old_requests_are_forgotten")
class ForgetsOneTooMany(ModelStorage):
    def forget(self, data, before_ns):
        super().forget(data, before_ns + 1)


@found_by("test_request_ids_are_unique_by_method")
class KeepsFirstRequest(ModelStorage):
    def apply(self, data, changes):
        before = data.requests.copy()
        super().apply(data, changes)
        data.requests.update({k: row for k, row in before.items() if k in data.requests})


@found_by("test_request_ids_are_unique_by_method")
class RequestsOfAllMethodsAreOne(ModelStorage):
    async def open(self):
        snapshot = await super().open()
        snapshot.requests = list({row.request_id: row for row in snapshot.requests}.values())
        return snapshot


@found_by("test_counters_come_back_as_last_committed")
class LosesCounters(ModelStorage):
    async def close(self):
        self.store.data.counters = Counters()
        await super().close()


@found_by("test_counters_come_back_as_last_committed")
class LosesClock(ModelStorage):
    async def open(self):
        snapshot = await super().open()
        snapshot.counters = replace(snapshot.counters, clock=[])
        return snapshot


@found_by("test_store_keeps_its_id")
class ChangesItsId(ModelStorage):
    async def open(self):
        self.store.store_id = Store().store_id
        return await super().open()


@found_by("test_stores_at_different_places_share_nothing")
class SharesOneStore(ModelStorage):
    def __init__(self, place):
        super().__init__(next((k for k in self.stores if k in place.parents), place))

    def acquire(self):
        self.store.owner = self


@found_by("test_workers_come_back_as_last_committed")
class LosesWorkers(ModelStorage):
    def apply(self, data, changes):
        workers = data.workers.copy()
        super().apply(data, changes)
        data.workers.update(workers)


@found_by("test_ended_rollout_with_live_attempt_comes_back")
class ForgetsEndedRolloutsWithLiveAttempts(ModelStorage):
    def is_live(self, row):
        return row.live


@found_by("test_finished_rollout_does_not_come_back")
class LoadsEverythingAsLive(ModelStorage):
    def is_live(self, row):
        return True


@found_by("test_live_rollouts_come_back_without_their_inputs")
class LosesLastAttemptWhenReopened(ModelStorage):
    async def open(self):
        snapshot = await super().open()
        snapshot.live = [item._replace(attempts=item.attempts[-1:]) for item in snapshot.live]
        return snapshot


@found_by("test_open_store_cannot_be_opened_by_another")
class LetsTwoOpen(ModelStorage):
    def acquire(self):
        pass

    @property
    def data(self):
        return self.store.data


@found_by("test_closed_storage_says_so")
class AnswersWhenClosed(ModelStorage):
    async def close(self):
        pass

    def acquire(self):
        self.store.owner = self


@found_by("test_open_store_cannot_be_opened_by_another")
class KeepsLockAfterFailedOpen(ModelStorage):
    def acquire(self):
        if self.store.owner not in (None, self):
            self.store.owner = object()
        super().acquire()


@found_by("test_pages_follow_every_order")
class IgnoresOrder(ModelStorage):
    def place(self, query, row):
        return row.key, row.key


@found_by("test_pages_follow_every_order")
class TiesGoByKeyAlways(ModelStorage):
    def page(self, query):
        rows = sorted(self.matching(query), key=lambda row: row.key)
        rows.sort(key=lambda row: self.place(query, row)[0], reverse=query.descending)
        rows = [row for row in rows if query.after is None or self.is_after(query, row)]
        return rows[query.skip :][: query.limit]


@found_by("test_pages_follow_every_order")
class IgnoresDirection(ModelStorage):
    def page(self, query):
        return super().page(replace(query, descending=False))


@found_by("test_pages_follow_every_order")
class IgnoresAfter(ModelStorage):
    def is_after(self, query, row):
        return True


@found_by("test_pages_follow_every_order")
class RepeatsLastOfPage(ModelStorage):
    def is_after(self, query, row):
        return super().is_after(query, row) or self.place(query, row) == query.after


@found_by("test_order_goes_with_skip_and_limit")
class IgnoresSkip(ModelStorage):
    def page(self, query):
        return super().page(replace(query, skip=0))


@found_by("test_count_ignores_place_and_limit")
class CountsAPage(ModelStorage):
    async def count_rollouts(self, query):
        return Counter(row.rollout.status for row in self.page(query))


@found_by("test_filters_match_alone_and_joined")
class JoinsFiltersWithAnd(ModelStorage):
    def matching(self, query):
        return super().matching(replace(query, any_of=False))


@found_by("test_filter_that_matches_nothing")
class IgnoresCase(ModelStorage):
    def matching(self, query):
        part = query.rollout_id_contains.lower()
        rows = super().matching(replace(query, rollout_id_contains=""))
        return [row for row in rows if part in row.rollout.rollout_id.lower()]


@found_by("test_odd_ids_are_kept_apart_and_found")
class TakesPercentForAnything(ModelStorage):
    def matching(self, query):
        part = query.rollout_id_contains.replace("%", "")
        return super().matching(replace(query, rollout_id_contains=part))


@found_by("test_scan_shows_input_and_latest_attempt_alone")
class ShowsAllAttempts(ModelStorage):
    def shown(self, row):
        return self.loaded(row)


@found_by("test_completions_go_by_number")
class ShowsFirstAttempt(ModelStorage):
    def shown(self, row):
        item = self.loaded(row)
        return item._replace(attempts=item.attempts[:1])


@found_by("test_scans_beside_removals_show_whole_rollouts")
class ShowsHalfOfRemovedRollouts(ModelStorage):
    async def scan_rollouts(self, query):
        for row in self.page(query):
            yield self.shown(row)
            await asyncio.sleep(0)

    def loaded(self, row):
        self.data.inputs.setdefault(row.key, b"")
        return super().loaded(row)


@found_by("test_load_returns_all_attempts_oldest_first")
class LoadsUpToTheFirstMissing(ModelStorage):
    async def load(self, rollout_ids):
        for n, rollout_id in enumerate(rollout_ids):
            if not await super().load([rollout_id]):
                return await super().load(rollout_ids[:n])
        return await super().load(rollout_ids)


@found_by("test_group_has_its_members_in_order_of_enqueueing")
class GroupsGoById(ModelStorage):
    async def group_members(self, group_id):
        return sorted(await super().group_members(group_id), reverse=True)


@found_by("test_empty_group_id_is_no_group")
class EmptyGroupHasMembers(ModelStorage):
    async def group_members(self, group_id):
        if group_id:
            return await super().group_members(group_id)
        return [r.rollout.rollout_id for r in self.data.rollouts.values() if not r.rollout.group_id]


@found_by("test_completions_go_by_number")
class CompletionsStartAtTheNumber(ModelStorage):
    async def completions(self, after, limit):
        return await super().completions(max(0, after - 1), limit)


@found_by("test_completions_leave_out_rollouts_that_were_reopened")
class KeepsNumbersOfReopenedRollouts(ModelStorage):
    def apply(self, data, changes):
        before = {k: r for k, r in data.rollouts.items() if r.rollout.completion_number}
        super().apply(data, changes)
        for key, row in before.items():
            if key in data.rollouts and not data.rollouts[key].rollout.completion_number:
                data.rollouts[key].rollout.completion_number = row.rollout.completion_number


@found_by("test_finished_rollouts_by_the_time_at_which_they_had_ended")
class EndsExclusively(ModelStorage):
    def had_ended(self, end_ns, by_ns):
        return end_ns < by_ns


@found_by("test_finished_rollouts_by_the_time_at_which_they_had_ended")
class FinishedIgnoresTime(ModelStorage):
    async def finished(self, after, limit, ended_by_ns=None):
        return await super().finished(after, limit)


@found_by("test_later_values_replace_earlier_ones")
class UpdatesDropInputs(ModelStorage):
    def apply(self, data, changes):
        super().apply(data, changes)
        for key in changes.rollouts:
            data.inputs[key] = dict(changes.inputs).get(key, b"")


@found_by("test_batches_above_a_key_are_left_out")
class IgnoresMaxKey(ModelStorage):
    def scan_spans(self, rollout_key, attempt_key, max_key):
        return super().scan_spans(rollout_key, attempt_key, 1 << 63)


@found_by("test_batches_go_by_sequence_id_and_key")
class SpansGoByKey(ModelStorage):
    def batches(self, rollout_key):
        return sorted(super().batches(rollout_key), key=lambda row: row.key)


@found_by("test_span_ids_of_an_attempt_go_by_key")
class SpanIdsGoBySequence(ModelStorage):
    async def span_ids(self, rollout_key, attempt_key):
        rows = [row for row in self.batches(rollout_key) if row.attempt_key == attempt_key]
        return [(row.key, row.span_ids) for row in rows]


@found_by("test_batches_go_by_sequence_id_and_key")
class ScansSpansOfAllAttempts(ModelStorage):
    def scan_spans(self, rollout_key, attempt_key, max_key):
        return super().scan_spans(rollout_key, None, max_key)


@found_by("test_many_batches_are_all_scanned")
class EndsScansEarly(ModelStorage):
    async def scan_spans(self, rollout_key, attempt_key, max_key) -> AsyncIterator:
        left = 256
        async for row in super().scan_spans(rollout_key, attempt_key, max_key):
            if not left:
                return
            left -= 1
            yield row


@found_by("test_resources_go_by_key")
class ResourcesGoByUpdate(ModelStorage):
    async def list_resources(self, query):
        rows = sorted(self.current(), key=lambda row: row.record.publish_number)
        named = [r for r in rows if query.id_contains in r.record.resources_id]
        return [(r.key, r.record) for r in named if r.key > query.after][: query.limit]


@found_by("test_latest_version_of_a_record_is_returned")
class ListsFirstResources(ModelStorage):
    def current(self):
        rows = sorted(self.data.resources.values(), key=lambda row: -row.record.publish_number)
        return list({row.key: row for row in rows}.values())


@found_by("test_bytes_are_not_taken_for_text")
class TakesBytesForText(ModelStorage):
    def apply(self, data, changes):
        changes.inputs = [(k, v.decode(errors="replace").encode()) for k, v in changes.inputs]
        super().apply(data, changes)


@found_by("test_records_as_large_as_the_limits_let_them_be")
class CutsLargeInputs(ModelStorage):
    def apply(self, data, changes):
        changes.inputs = [(k, v[: 8 << 20]) for k, v in changes.inputs]
        super().apply(data, changes)


@found_by("test_odd_ids_are_kept_apart_and_found")
class StripsIds(ModelStorage):
    async def load(self, rollout_ids):
        return await super().load([rollout_id.strip() for rollout_id in rollout_ids])


@found_by("test_largest_and_smallest_numbers")
class HasNumbersOf32Bits(ModelStorage):
    def apply(self, data, changes):
        rows = changes.rollouts.items()
        changes.rollouts = {
            k: r._replace(available_ns=r.available_ns & 0xFFFFFFFF) for k, r in rows
        }
        super().apply(data, changes)


@found_by("test_used_bytes_follow_what_is_stored")
class ReportsNoBytes(ModelStorage):
    async def used_bytes(self):
        return 0


@found_by("test_used_bytes_follow_what_is_stored")
class NeverFreesBytes(ModelStorage):
    async def used_bytes(self):
        self.store.most = max(getattr(self.store, "most", 0), self.data.size)
        return self.store.most


@found_by("test_probe_leaves_nothing")
class LeavesItsProbe(ModelStorage):
    async def probe(self, size):
        self.data.requests["", "probe"] = RequestRow("", "probe", 0, bytes(size), 0)


@found_by("test_live_rollouts_come_back_without_their_inputs")
class LoadsInputsWhenOpened(ModelStorage):
    async def open(self):
        snapshot = await super().open()
        snapshot.live = [self.loaded(item.row) for item in snapshot.live]
        return snapshot


@found_by("test_live_rollouts_come_back_without_their_inputs")
class ForgetsSizesOfInputs(ModelStorage):
    async def open(self):
        snapshot = await super().open()
        snapshot.live = [item._replace(input_bytes=0) for item in snapshot.live]
        return snapshot
