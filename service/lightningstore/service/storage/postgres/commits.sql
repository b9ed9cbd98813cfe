-- name: fence
-- Lets a commit through if this server still owns the namespace, and the commit before it is there. A takeover waits for
-- the commit, or the commit for the takeover, and then it writes nothing. The owner is compared too, because a database that
-- went back in time may give the same epoch to another server.
SELECT n.ns, c.bytes FROM ls_namespaces n JOIN ls_commits c ON c.ns = n.ns AND c.seq = $3::bigint - 1
WHERE n.ns = $1 AND n.epoch = $2 AND n.owner = $6 FOR SHARE OF n

-- name: put_commit
-- The commit itself, with the counters after it.
INSERT INTO ls_commits (ns, seq, epoch, counters, bytes)
SELECT f.ns, $3::bigint, $2, $4::bytea, f.bytes + $5::bigint {freed} FROM fence f RETURNING bytes

-- name: put_rollouts
-- Rollouts without their inputs. This and the next ones write one row for each element of the arrays, columns as in
-- commits.py.
INSERT INTO ls_rollouts (ns, {columns}) SELECT f.ns, u.* FROM fence f{first}, unnest({arrays}) u
ON CONFLICT (ns, key) DO UPDATE SET
    live = excluded.live, status = excluded.status, mode = excluded.mode, priority = excluded.priority,
    group_id = excluded.group_id, resources_id = excluded.resources_id, end_time = excluded.end_time,
    attempt_count = excluded.attempt_count, latest_attempt_id = excluded.latest_attempt_id,
    completion_number = excluded.completion_number, position = excluded.position,
    available_ns = excluded.available_ns, record = excluded.record, queue = excluded.queue,
    reward = excluded.reward, scores = excluded.scores, duration = excluded.duration, queue_time = excluded.queue_time,
    publish_number = excluded.publish_number, lag = excluded.lag

-- name: replace_labels
-- The labels that rollouts had, before they get others.
DELETE FROM ls_labels WHERE ctid = ANY (ARRAY(
    SELECT l.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_labels WHERE ns = f.ns AND rollout_key = u.key OFFSET 0) l
)) RETURNING 1

-- name: put_labels
-- Labels of rollouts, for filters.
INSERT INTO ls_labels (ns, {columns}) SELECT f.ns, u.* FROM fence f{first}, unnest({arrays}) u

-- name: put_inputs
-- The inputs of rollouts.
INSERT INTO ls_inputs (ns, {columns}) SELECT f.ns, u.* FROM fence f, unnest({arrays}) u
ON CONFLICT (ns, rollout_key) DO UPDATE SET input_json = excluded.input_json

-- name: put_attempts
-- Attempts, new or changed.
INSERT INTO ls_attempts (ns, {columns}) SELECT f.ns, u.* FROM fence f, unnest({arrays}) u
ON CONFLICT (ns, key) DO UPDATE SET
    live = excluded.live, status = excluded.status, last_sequence_id = excluded.last_sequence_id,
    record = excluded.record

-- name: put_spans
-- Batches of spans.
INSERT INTO ls_spans (ns, {columns}) SELECT f.ns, u.* FROM fence f, unnest({arrays}) u

-- name: put_resources
-- Versions of resources.
INSERT INTO ls_resources (ns, {columns}) SELECT f.ns, u.* FROM fence f, unnest({arrays}) u
ON CONFLICT (ns, updated) DO UPDATE SET
    key = excluded.key, resources_id = excluded.resources_id, version = excluded.version, record = excluded.record

-- name: remove_resources
-- Versions of resources that are not kept any more.
DELETE FROM ls_resources WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_resources WHERE ns = f.ns AND updated = u.key LIMIT 1) r
))

-- name: put_groups
-- Groups, new or changed.
INSERT INTO ls_groups (ns, {columns}) SELECT f.ns, u.* FROM fence f{first}, unnest({arrays}) u
ON CONFLICT (ns, key) DO UPDATE SET
    status = excluded.status, completion_number = excluded.completion_number, deadline_ns = excluded.deadline_ns,
    record = excluded.record

-- name: put_consumers
-- Consumers, new or changed. A row of that name that cannot be read is replaced.
INSERT INTO ls_consumers (ns, {columns}) SELECT f.ns, u.* FROM fence f{first}, unnest({arrays}) u
ON CONFLICT (ns, name) DO UPDATE SET key = excluded.key, created = excluded.created, record = excluded.record

-- name: put_deliveries
-- Deliveries, new or changed.
INSERT INTO ls_deliveries (ns, {columns}) SELECT f.ns, u.* FROM fence f, unnest({arrays}) u
ON CONFLICT (ns, consumer, number) DO UPDATE SET
    deadline_ns = excluded.deadline_ns, gone = excluded.gone, end_ns = excluded.end_ns, record = excluded.record

-- name: end_deliveries
-- Deliveries that go.
DELETE FROM ls_deliveries WHERE ctid = ANY (ARRAY(
    SELECT d.ctid FROM fence f CROSS JOIN unnest({arrays}) u (consumer, number)
    CROSS JOIN LATERAL (
        SELECT ctid FROM ls_deliveries WHERE ns = f.ns AND consumer = u.consumer AND number = u.number LIMIT 1
    ) d
))

-- name: remove_consumers
-- Consumers that go.
DELETE FROM ls_consumers c USING fence f WHERE c.ns = f.ns AND c.key = ANY ({keys}) RETURNING 1

-- name: remove_deliveries
-- All deliveries of consumers that go.
DELETE FROM ls_deliveries WHERE ctid = ANY (ARRAY(
    SELECT d.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_deliveries WHERE ns = f.ns AND consumer = u.key OFFSET 0) d
))

-- name: put_workers
-- Workers, new or changed.
INSERT INTO ls_workers (ns, {columns}) SELECT f.ns, u.* FROM fence f, unnest({arrays}) u
ON CONFLICT (ns, worker_id) DO UPDATE SET record = excluded.record

-- name: put_requests
-- What request ids were answered.
INSERT INTO ls_requests (ns, {columns}) SELECT f.ns, u.* FROM fence f{first}, unnest({arrays}) u
ON CONFLICT (ns, method, request_id) DO UPDATE SET
    digest = excluded.digest, time_ns = excluded.time_ns, answer = excluded.answer

-- name: forget_requests
-- Request ids that are too old to be repeated. This and the next ones look their rows up first: what they delete is then
-- found by its address, and no plan can read a whole namespace for it.
DELETE FROM ls_requests WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM fence f CROSS JOIN LATERAL (
        SELECT ctid FROM ls_requests WHERE ns::bigint = f.ns AND time_ns < {value} ORDER BY time_ns LIMIT {limit}
    ) r
)) RETURNING 1

-- name: remove_rollouts
-- Rollouts that go.
DELETE FROM ls_rollouts WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_rollouts WHERE ns = f.ns AND key = u.key LIMIT 1) r
)) RETURNING 1

-- name: remove_groups
-- Groups that go.
DELETE FROM ls_groups WHERE ctid = ANY (ARRAY(
    SELECT g.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_groups WHERE ns = f.ns AND key = u.key LIMIT 1) g
)) RETURNING 1

-- name: remove_attempts
-- Their attempts.
DELETE FROM ls_attempts WHERE ctid = ANY (ARRAY(
    SELECT a.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (
        SELECT ctid FROM ls_attempts WHERE ns::bigint = f.ns AND rollout_key >= 0 AND rollout_key = u.key OFFSET 0
    ) a
))

-- name: remove_labels
-- Their labels.
DELETE FROM ls_labels WHERE ctid = ANY (ARRAY(
    SELECT l.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_labels WHERE ns = f.ns AND rollout_key = u.key OFFSET 0) l
))

-- name: remove_inputs
-- Their inputs.
DELETE FROM ls_inputs WHERE ctid = ANY (ARRAY(
    SELECT i.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_inputs WHERE ns = f.ns AND rollout_key = u.key LIMIT 1) i
)) RETURNING octet_length(input_json) AS size

-- name: put_leftovers
-- Those of them that leave batches of spans behind.
INSERT INTO ls_leftovers (ns, rollout_key) SELECT f.ns, u.key FROM fence f, unnest({keys}) u (key)
WHERE (SELECT TRUE FROM ls_spans WHERE ns::bigint = f.ns AND rollout_key >= 0 AND rollout_key = u.key LIMIT 1)
ON CONFLICT DO NOTHING

-- name: sweep
-- Batches of spans of rollouts that were removed.
DELETE FROM ls_spans WHERE ctid = ANY (ARRAY(
    SELECT s.ctid FROM fence f CROSS JOIN unnest({keys}) u (key)
    CROSS JOIN LATERAL (SELECT ctid FROM ls_spans WHERE ns = f.ns AND key = u.key LIMIT 1) s
)) RETURNING rollout_key, octet_length(data) + octet_length(span_ids) AS size

-- name: remove_leftovers
-- The removed rollouts of which no other batch is left.
DELETE FROM ls_leftovers WHERE ctid = ANY (ARRAY(
    SELECT l.ctid FROM fence f CROSS JOIN (SELECT DISTINCT rollout_key FROM sweep) u
    CROSS JOIN LATERAL (SELECT ctid FROM ls_leftovers WHERE ns = f.ns AND rollout_key = u.rollout_key LIMIT 1) l
    WHERE (
        SELECT TRUE FROM ls_spans
        WHERE ns::bigint = f.ns AND rollout_key >= 0 AND rollout_key = u.rollout_key AND key <> ALL ({keys}) LIMIT 1
    ) IS NULL
))

-- name: put_settings
-- The settings of the store.
INSERT INTO ls_settings (ns, data) SELECT ns, {value}::bytea FROM fence
ON CONFLICT (ns) DO UPDATE SET data = excluded.data

-- name: remove_commits
-- Commits whose outcome is not asked for any more.
DELETE FROM ls_commits WHERE ns = (SELECT ns FROM fence) AND seq < $3::bigint - {kept}

-- name: find_commit
-- The outcome of a commit.
SELECT epoch, bytes FROM ls_commits WHERE ns = $1 AND seq = $2

-- name: last_commit
-- The last commit.
SELECT seq, epoch, counters, bytes FROM ls_commits WHERE ns = $1 ORDER BY seq DESC LIMIT 1

-- name: put_probe
-- Bytes that show whether the disk takes any.
INSERT INTO ls_probes (ns, data) VALUES ($1, $2) ON CONFLICT (ns) DO UPDATE SET data = excluded.data

-- name: remove_probe
-- Those bytes; a crash may leave them behind.
DELETE FROM ls_probes WHERE ns = $1
