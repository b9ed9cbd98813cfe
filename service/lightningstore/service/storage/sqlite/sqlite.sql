-- name: put_rollouts
-- Rollouts without their inputs. This and the next ones write many rows at a time, columns as in commits.py.
INSERT INTO rollouts ({columns}) VALUES {rows}
ON CONFLICT (key) DO UPDATE SET
    live = excluded.live, status = excluded.status, mode = excluded.mode, priority = excluded.priority,
    group_id = excluded.group_id, resources_id = excluded.resources_id, end_time = excluded.end_time,
    attempt_count = excluded.attempt_count, latest_attempt_id = excluded.latest_attempt_id,
    completion_number = excluded.completion_number, position = excluded.position,
    available_ns = excluded.available_ns, record = excluded.record, queue = excluded.queue,
    reward = excluded.reward, scores = excluded.scores, duration = excluded.duration, queue_time = excluded.queue_time,
    publish_number = excluded.publish_number, lag = excluded.lag

-- name: put_labels
-- Labels of rollouts, for filters. Those that they had are removed before.
INSERT INTO labels ({columns}) VALUES {rows}

-- name: put_inputs
-- The inputs of rollouts.
INSERT OR REPLACE INTO inputs ({columns}) VALUES {rows}

-- name: put_attempts
-- Attempts, new or changed.
INSERT INTO attempts ({columns}) VALUES {rows}
ON CONFLICT (key) DO UPDATE SET
    live = excluded.live, status = excluded.status, last_sequence_id = excluded.last_sequence_id, record = excluded.record

-- name: put_spans
-- Batches of spans.
INSERT INTO spans ({columns}) VALUES {rows}

-- name: put_resources
-- Versions of resources.
INSERT INTO resources ({columns}) VALUES {rows}
ON CONFLICT (key, version) DO UPDATE SET
    resources_id = excluded.resources_id, updated = excluded.updated, record = excluded.record

-- name: remove_resources
-- Versions of resources that are not kept any more.
DELETE FROM resources WHERE updated IN ({marks})

-- name: put_workers
-- Workers, new or changed.
INSERT OR REPLACE INTO workers ({columns}) VALUES {rows}

-- name: put_requests
-- What request ids were answered.
INSERT OR REPLACE INTO requests ({columns}) VALUES {rows}

-- name: put_groups
-- Groups, new or changed.
INSERT INTO groups ({columns}) VALUES {rows}
ON CONFLICT (key) DO UPDATE SET
    status = excluded.status, completion_number = excluded.completion_number, deadline_ns = excluded.deadline_ns,
    record = excluded.record

-- name: put_consumers
-- Consumers, new or changed. A row of that name that cannot be read is replaced.
INSERT OR REPLACE INTO consumers ({columns}) VALUES {rows}

-- name: put_deliveries
-- Deliveries, new or changed.
INSERT OR REPLACE INTO deliveries ({columns}) VALUES {rows}

-- name: end_deliveries
-- Deliveries of a consumer that go.
DELETE FROM deliveries WHERE consumer = ? AND number IN ({marks});

-- name: remove_deliveries
-- All deliveries of consumers that go.
DELETE FROM deliveries WHERE consumer IN ({marks});

-- name: remove_consumers
-- Consumers that go.
DELETE FROM consumers WHERE key IN ({marks});

-- name: put_meta
-- A fact about the store.
INSERT OR REPLACE INTO meta (name, value) VALUES (:name, :value)

-- name: put_probe
-- Bytes that show whether the disk takes any.
INSERT OR REPLACE INTO meta (name, value) VALUES ('probe', zeroblob(:size))

-- name: remove_probe
-- Those bytes, once they are on disk; a crash may leave them behind.
DELETE FROM meta WHERE name = 'probe'

-- name: forget_requests
-- Request ids that are too old to be repeated.
DELETE FROM requests WHERE rowid IN (SELECT rowid FROM requests WHERE time_ns < :before_ns LIMIT :limit)

-- name: get_meta
-- A fact about the store.
SELECT value FROM meta WHERE name = :name

-- name: facts
-- What is known of a store without opening it.
SELECT name, value FROM meta WHERE name IN ('store_id', 'settings')

-- name: liveness
-- Whether anything is live or an open group has a deadline, and when the oldest rollout began; 0 if there is none.
SELECT EXISTS (SELECT 1 FROM rollouts WHERE live = 1) OR EXISTS (SELECT 1 FROM attempts WHERE live = 1)
        OR EXISTS (SELECT 1 FROM groups WHERE status = 1 AND deadline_ns > 0),
    coalesce((SELECT start_time FROM rollouts ORDER BY start_time, key LIMIT 1), 0)

-- name: live_keys
-- Rollouts that are live, or have a live attempt.
SELECT key FROM rollouts WHERE live = 1
UNION SELECT rollout_key FROM attempts WHERE live = 1

-- name: rollouts_by_key
-- Rollouts with their inputs; a rollout without one is damaged.
SELECT r.key, r.rollout_id, r.position, r.available_ns, r.record, i.input_json, length(i.input_json)
FROM rollouts r LEFT JOIN inputs i ON i.rollout_key = r.key WHERE r.key IN ({marks})

-- name: has_rollout
-- Whether there is a rollout with this id, from the index alone.
SELECT 1 FROM rollouts WHERE rollout_id = ?

-- name: rollouts_by_id
-- Rollouts with their inputs.
SELECT r.key, r.rollout_id, r.position, r.available_ns, r.record, i.input_json, length(i.input_json)
FROM rollouts r LEFT JOIN inputs i ON i.rollout_key = r.key WHERE r.rollout_id IN ({marks})

-- name: rollouts_without_inputs
-- Rollouts with the sizes of their inputs; SQLite reads size and type off the head of the row.
SELECT r.key, r.rollout_id, r.position, r.available_ns, r.record, x'',
    CASE typeof(i.input_json) WHEN 'blob' THEN length(i.input_json) END
FROM rollouts r LEFT JOIN inputs i ON i.rollout_key = r.key WHERE r.key IN ({marks})

-- name: record_sizes
-- How many bytes some rollouts have without their inputs.
SELECT key, length(record) FROM rollouts WHERE key IN ({marks})

-- name: sizes_by_key
-- How many bytes some rollouts have.
SELECT r.key, length(r.record) + coalesce(length(i.input_json), 0)
FROM rollouts r LEFT JOIN inputs i ON i.rollout_key = r.key WHERE r.key IN ({marks})

-- name: sizes_by_id
-- How many bytes some rollouts have.
SELECT r.key, length(r.record) + coalesce(length(i.input_json), 0)
FROM rollouts r LEFT JOIN inputs i ON i.rollout_key = r.key WHERE r.rollout_id IN ({marks})

-- name: attempts_by_rollout
-- All attempts at some rollouts, oldest first.
SELECT rollout_key, key, last_sequence_id, record FROM attempts
WHERE rollout_key IN ({marks}) ORDER BY rollout_key, key

-- name: scan_rollouts
-- The places of one page of a list, without their records, so that what is skipped is not read.
SELECT {value}, {key} FROM {source} WHERE {where} {page}

-- name: matches_among
-- The page of a list among the first rows of its order, which are few.
SELECT {value}, key FROM ({first}) WHERE {where} LIMIT ? OFFSET ?

-- name: count_rollouts
-- How many rollouts match a filter, by status. The plus keeps SQLite from the index on it, whose order is not that of the rows.
SELECT +status, count(*) FROM {source} WHERE {where} GROUP BY 1

-- name: label_count
-- How many rollouts have a label, up to a limit.
SELECT count(*) FROM (SELECT 1 FROM labels WHERE name = :name AND value = :value LIMIT :limit)

-- name: latest_attempts
-- The latest attempt at each of some rollouts.
SELECT rollout_key, max(key), last_sequence_id, record FROM attempts
WHERE rollout_key IN ({marks}) GROUP BY rollout_key

-- name: group_members
-- The rollouts of a group, in enqueue order.
SELECT rollout_id FROM rollouts WHERE group_id <> '' AND group_id = :group_id ORDER BY key

-- name: completions
-- Rollouts by completion number. SQLite begins at the first of two limits; the other one lets it use the partial index.
SELECT key, completion_number FROM rollouts WHERE completion_number > :after AND completion_number > 0
ORDER BY completion_number LIMIT :limit

-- name: finished
-- Finished rollouts by completion number, with the bytes of their inputs.
SELECT completion_number, key, rollout_id,
    coalesce((SELECT length(input_json) FROM inputs WHERE rollout_key = rollouts.key), 0)
FROM rollouts WHERE completion_number > :after AND completion_number > 0
ORDER BY completion_number LIMIT :limit

-- name: finished_by
-- Finished rollouts that had ended by a time. None of them began later: the index on that leads to them.
SELECT start_time, key, rollout_id,
    coalesce((SELECT length(input_json) FROM inputs WHERE rollout_key = rollouts.key), 0)
FROM rollouts WHERE start_time <= :ended_by_ns AND (start_time, key) > (:after_ns, :after_key)
    AND completion_number > 0 AND end_time <= :ended_by_ns
ORDER BY start_time, key LIMIT :limit

-- name: series_range
-- The lowest and the highest value of a column among finished rollouts.
SELECT (SELECT min({axis}) FROM rollouts WHERE completion_number > 0),
    (SELECT max({axis}) FROM rollouts WHERE completion_number > 0)

-- name: series_by_bucket
-- The values of some buckets of completion times, NULL where there are none.
WITH buckets (bucket, low, high) AS (VALUES {marks})
SELECT bucket, (
    SELECT {value} FROM rollouts INDEXED BY rollouts_finished
    WHERE completion_number > 0 AND end_time >= low AND end_time < high AND {where}
) FROM buckets

-- name: series_by_time
-- The values of rollouts that finished in a part of the time, by bucket: sorting all of them at once would take longer.
SELECT ({axis} - ?) / ?, {value} FROM rollouts INDEXED BY rollouts_finished
WHERE completion_number > 0 AND end_time >= ? AND end_time < ? AND {axis} >= ? AND {axis} < ? AND {where}
GROUP BY 1

-- name: series_by_completion
-- The values of few completion numbers by bucket.
SELECT ({axis} - ?) / ?, {value} FROM rollouts INDEXED BY rollouts_by_completion
WHERE {axis} >= ? AND {axis} < ? AND completion_number > 0 AND {where}
GROUP BY 1

-- name: series_of_all
-- The values by bucket, where an index leads to few rollouts.
SELECT ({axis} - ?) / ?, {value} FROM {source}
WHERE completion_number > 0 AND +{axis} >= ? AND +{axis} < ? AND {where}
GROUP BY 1

-- name: leftover
-- Some batches of spans of rollouts that were removed.
SELECT key, length(data) FROM spans WHERE rollout_key IN ({marks}) LIMIT {limit}

-- name: sweep
-- Batches of spans of rollouts that were removed.
DELETE FROM spans WHERE key IN ({marks})

-- name: span_ids
-- The packed span ids of an attempt, by batch.
SELECT key, span_ids FROM spans
WHERE rollout_key = :rollout_key AND attempt_key = :attempt_key ORDER BY key

-- name: span_sizes
-- The bytes of a few batches of a rollout in order, from a place on; attempt key NULL: of all attempts.
SELECT length(data) FROM spans
WHERE rollout_key = :rollout_key AND (first_sequence_id, key) > (:after_id, :after_key) AND key <= :max_key
    AND (:attempt_key IS NULL OR attempt_key = :attempt_key)
ORDER BY first_sequence_id, key LIMIT :limit

-- name: scan_spans
-- A few batches of a rollout in order, from a place on; attempt key NULL: of all attempts.
SELECT key, attempt_key, first_sequence_id, last_sequence_id, span_count, contiguous, encoding, data
FROM spans
WHERE rollout_key = :rollout_key AND (first_sequence_id, key) > (:after_id, :after_key) AND key <= :max_key
    AND (:attempt_key IS NULL OR attempt_key = :attempt_key)
ORDER BY first_sequence_id, key LIMIT :limit

-- name: get_spans
-- One batch by its key.
SELECT key, attempt_key, first_sequence_id, last_sequence_id, span_count, contiguous, encoding, data
FROM spans WHERE key = :key

-- name: scan_resources
-- One page of the highest versions of resources, in the order of adding.
SELECT key, resources_id, updated, record FROM resources r
WHERE key > :after AND (:id_contains = '' OR instr(resources_id, :id_contains) > 0)
    AND NOT EXISTS (SELECT 1 FROM resources n WHERE n.key = r.key AND n.version > r.version)
ORDER BY key LIMIT :limit

-- name: get_resources
-- One version by its publish number.
SELECT key, resources_id, updated, record FROM resources WHERE updated = :publish_number

-- name: all_resources
-- What the engine keeps of all versions of resources.
SELECT resources_id, key, version, updated FROM resources

-- name: open_groups
-- Groups that are open.
SELECT key, group_id, deadline_ns, record FROM groups WHERE status = 1

-- name: load_groups
-- Groups by id.
SELECT key, group_id, deadline_ns, record FROM groups WHERE group_id IN ({marks})

-- name: list_groups
-- One page of groups, in the order of creation.
SELECT key, group_id, deadline_ns, record FROM groups WHERE key > ? {where} ORDER BY key LIMIT ?

-- name: group_completions
-- Complete groups by completion number.
SELECT key, group_id, deadline_ns, record, completion_number FROM groups WHERE completion_number > :after AND completion_number > 0
ORDER BY completion_number LIMIT :limit

-- name: remove_groups
-- Groups that go.
DELETE FROM groups WHERE key IN ({marks});

-- name: all_consumers
-- All consumers.
SELECT key, name, created, record FROM consumers

-- name: all_deliveries
-- All deliveries.
SELECT consumer, number, deadline_ns, gone, end_ns, record FROM deliveries

-- name: all_workers
-- All workers.
SELECT rowid, worker_id, record FROM workers

-- name: recent_requests
-- What request ids were answered, oldest first.
SELECT method, request_id, digest, answer, time_ns FROM requests ORDER BY time_ns

-- name: remove_attempts
-- Everything of some rollouts that go.
DELETE FROM attempts WHERE rollout_key IN ({marks});

-- name: remove_labels
-- Labels of some rollouts that go or change.
DELETE FROM labels WHERE rollout_key IN ({marks});

-- name: remove_inputs
-- Everything of some rollouts that go.
DELETE FROM inputs WHERE rollout_key IN ({marks});

-- name: remove_rollouts
-- Everything of some rollouts that go.
DELETE FROM rollouts WHERE key IN ({marks});

-- name: used_bytes
-- What the file holds, without the pages that are free to be used again.
SELECT (p.page_count - f.freelist_count) * s.page_size
FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s;
