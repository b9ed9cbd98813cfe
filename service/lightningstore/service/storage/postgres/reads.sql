-- Each query has one index that it can use: see migrations/002_indexes.sql. Nested parts with LIMIT run once for each row
-- before them: a join might begin at the other end, and read a whole namespace.

-- name: live_keys
-- Rollouts that are live, or have a live attempt.
SELECT key FROM ls_rollouts WHERE ns::bigint = $1 AND live
UNION SELECT rollout_key FROM ls_attempts WHERE ns::bigint = $1 AND live ORDER BY 1

-- name: loaded
-- Rollouts in the order of an array, with all their attempts: as many as have `$3` bytes, and at least one. Whatever the
-- statement returns is of one moment. A rollout without input is damaged.
SELECT p.key, p.rollout_id, p.position, p.available_ns, p.record, {input}, p.input_bytes,
    a.keys, a.last_sequence_ids, a.records, p.place
FROM (
    SELECT r.key, r.rollout_id, r.position, r.available_ns, r.record, i.input_json,
        octet_length(i.input_json) AS input_bytes, w.place,
        sum(octet_length(r.record) + {counted}) OVER (ORDER BY w.place)
            - octet_length(r.record) - {counted} AS before
    FROM unnest({wanted}) WITH ORDINALITY w ({by}, place)
    CROSS JOIN LATERAL (SELECT * FROM ls_rollouts WHERE {match} LIMIT 1) r
    LEFT JOIN LATERAL (SELECT input_json FROM ls_inputs WHERE ns = $1 AND rollout_key = r.key LIMIT 1) i ON TRUE
) p
LEFT JOIN LATERAL (
    SELECT array_agg(t.key) AS keys, array_agg(t.last_sequence_id) AS last_sequence_ids, array_agg(t.record) AS records
    FROM (
        SELECT key, last_sequence_id, record FROM ls_attempts
        WHERE ns::bigint = $1 AND rollout_key >= 0 AND rollout_key = p.key ORDER BY key {latest}
    ) t
) a ON TRUE
WHERE p.before < $3 ORDER BY p.place

-- name: known_ids
-- Those of some ids that rollouts have, and NULL for each of the others.
SELECT (SELECT rollout_id FROM ls_rollouts WHERE ns::bigint = $1 AND rollout_id >= '' AND rollout_id = w.id)
FROM unnest($2::bytea[]) w (id)

-- name: scan_rollouts
-- The places of one page of a list, without their records, so that what is skipped is not read.
SELECT {value}, key FROM {source} {order}

-- name: label_counts
-- How many rollouts have each of some labels, up to a limit.
SELECT (
    SELECT count(*) FROM (
        SELECT 1 FROM ls_labels l
        WHERE l.ns::bigint = $1 AND l.name = w.name AND l.value = w.value LIMIT $4
    ) few
) FROM unnest($2::bytea[], $3::bytea[]) w (name, value)

-- name: value_count
-- How many rollouts have one of some values of a column, up to a limit.
SELECT count(*) FROM (
    SELECT 1 FROM unnest($2::{kind}[]) w (value)
    CROSS JOIN LATERAL (SELECT 1 FROM ls_rollouts WHERE {test} LIMIT $3) one LIMIT $3
) few

-- name: count_rollouts
-- How many rollouts match a filter, by status.
SELECT status, count(*) FROM {source} GROUP BY status

-- name: group_members
-- The rollouts of a group, in enqueue order.
SELECT rollout_id FROM ls_rollouts WHERE ns::bigint = $1 AND group_id <> '' AND group_id = $2 ORDER BY key

-- name: completions
-- Rollouts by completion number.
SELECT key, completion_number FROM ls_rollouts
WHERE ns::bigint = $1 AND completion_number > 0 AND completion_number > $2 ORDER BY completion_number LIMIT $3

-- name: finished
-- Finished rollouts by completion number, with the bytes of their inputs.
SELECT completion_number, key, rollout_id, coalesce((
    SELECT octet_length(input_json) FROM ls_inputs WHERE ns = $1 AND rollout_key = r.key
), 0)
FROM ls_rollouts r
WHERE ns::bigint = $1 AND completion_number > 0 AND completion_number > $2 ORDER BY completion_number LIMIT $3

-- name: finished_by
-- Finished rollouts that had ended by a time. None of them began later: the index on that leads to them. (With `> 0`, the
-- index on completion numbers would do too.)
SELECT start_time, key, rollout_id, coalesce((
    SELECT octet_length(input_json) FROM ls_inputs WHERE ns = $1 AND rollout_key = r.key
), 0)
FROM ls_rollouts r
WHERE ns::bigint = $1 AND start_time >= 0 AND start_time <= $2 AND (start_time, key) > ($3, $4)
    AND completion_number <> 0 AND end_time <= $2
ORDER BY start_time, key LIMIT $5

-- name: series_range
-- The lowest and the highest value of a column among finished rollouts, each from the end of an index.
SELECT (SELECT {axis} FROM ls_rollouts WHERE ns::bigint = $1 AND {axis} > 0 AND completion_number <> 0 ORDER BY {axis} LIMIT 1),
    (SELECT {axis} FROM ls_rollouts WHERE ns::bigint = $1 AND {axis} > 0 AND completion_number <> 0 ORDER BY {axis} DESC LIMIT 1)

-- name: series
-- The values of finished rollouts by bucket.
SELECT (({axis} - {first}::bigint) / {width}::bigint)::integer, {value} FROM {source}
WHERE {finished} AND {axis} >= {first}::bigint AND {axis} < {end}::bigint AND {where} GROUP BY 1

-- name: series_source
-- The rollouts that an index of a filter leads to.
(SELECT found.* FROM {source} CROSS JOIN LATERAL (SELECT * FROM ls_rollouts WHERE ns = $1 AND key = r.key LIMIT 1) found) chosen

-- name: leftover
-- Some batches of spans of rollouts that were removed, up to `$3` bytes, and at least one.
SELECT key FROM (
    SELECT key, sum(size) OVER (ORDER BY key) - size AS before
    FROM (
        SELECT s.key, s.size
        FROM ls_leftovers l CROSS JOIN LATERAL (
            SELECT key, octet_length(data)::bigint AS size FROM ls_spans
            WHERE ns::bigint = $1 AND rollout_key >= 0 AND rollout_key = l.rollout_key LIMIT $2
        ) s
        WHERE l.ns = $1 LIMIT $2
    ) few
) counted WHERE before < $3

-- name: span_ids
-- The packed span ids of an attempt, by batch.
SELECT key, span_ids FROM ls_spans
WHERE ns::bigint = $1 AND rollout_key >= 0 AND rollout_key = $2 AND attempt_key = $3 ORDER BY key

-- name: scan_spans
-- A few batches of a rollout in order, from a place on, up to `$8` bytes, and at least one; attempt key NULL: of all
-- attempts.
SELECT key, attempt_key, first_sequence_id, last_sequence_id, span_count, contiguous, encoding, data
FROM (
    SELECT *, sum(octet_length(data)) OVER (ORDER BY first_sequence_id, key) - octet_length(data) AS before
    FROM (
        SELECT key, attempt_key, first_sequence_id, last_sequence_id, span_count, contiguous, encoding, data
        FROM ls_spans
        WHERE ns::bigint = $1 AND rollout_key >= 0 AND rollout_key = $2 AND (first_sequence_id, key) > ($3, $4)
            AND key <= $5 AND ($6::bigint IS NULL OR attempt_key = $6)
        ORDER BY first_sequence_id, key LIMIT $7
    ) few
) counted WHERE before < $8 ORDER BY first_sequence_id, key

-- name: get_spans
-- One batch by its key.
SELECT key, attempt_key, first_sequence_id, last_sequence_id, span_count, contiguous, encoding, data
FROM ls_spans WHERE ns = $1 AND key = $2

-- name: scan_resources
-- One page of the highest versions of resources, in the order of adding.
SELECT key, resources_id, updated, record FROM ls_resources r
WHERE ns::bigint = $1 AND key > $2 AND ($3::bytea = '' OR position($3::bytea IN resources_id) > 0)
    AND updated = (SELECT updated FROM ls_resources WHERE ns::bigint = $1 AND key = r.key ORDER BY updated DESC LIMIT 1)
ORDER BY key LIMIT $4

-- name: get_resources
-- One version by its publish number.
SELECT key, resources_id, updated, record FROM ls_resources WHERE ns = $1 AND updated = $2

-- name: all_resources
-- What the engine keeps of all versions of resources.
SELECT key, resources_id, version, updated FROM ls_resources WHERE ns = $1

-- name: open_groups
-- Groups that are open.
SELECT key, group_id, deadline_ns, record FROM ls_groups WHERE ns::bigint = $1 AND status >= 0 AND status = 1

-- name: load_groups
-- Groups by id.
SELECT one.* FROM unnest($2::bytea[]) w (id) CROSS JOIN LATERAL (
    SELECT key, group_id, deadline_ns, record FROM ls_groups
    WHERE ns::bigint = $1 AND group_id >= '' AND group_id = w.id LIMIT 1
) one

-- name: group_completions
-- Complete groups by completion number.
SELECT key, group_id, deadline_ns, record, completion_number FROM ls_groups
WHERE ns::bigint = $1 AND completion_number > 0 AND completion_number > $2 ORDER BY completion_number LIMIT $3

-- name: all_consumers
-- All consumers.
SELECT key, name, created, record FROM ls_consumers WHERE ns = $1

-- name: all_deliveries
-- All deliveries.
SELECT consumer, number, deadline_ns, gone, end_ns, record FROM ls_deliveries WHERE ns = $1

-- name: all_workers
-- All workers.
SELECT record, worker_id FROM ls_workers WHERE ns = $1

-- name: settings
-- The settings of the store.
SELECT data FROM ls_settings WHERE ns = $1

-- name: recent_requests
-- What request ids were answered, oldest first.
SELECT method, request_id, digest, answer, time_ns FROM ls_requests WHERE ns = $1 ORDER BY time_ns

-- name: table_bytes
-- What all tables of all namespaces hold on disk, with their indexes.
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND c.relname LIKE 'ls\_%'
