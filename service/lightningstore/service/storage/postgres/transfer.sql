-- name: next_ns
-- A number for a namespace that does not exist yet.
UPDATE ls_schema SET last_ns = last_ns + 1 RETURNING last_ns

-- name: find_target
-- A namespace of some name: who owns it, and whether anything is in it that its counters do not tell.
SELECT n.ns, n.epoch, s.address, c.counters,
    EXISTS (SELECT 1 FROM ls_workers WHERE ns = n.ns) OR EXISTS (SELECT 1 FROM ls_requests WHERE ns = n.ns) AS others
FROM ls_namespaces n
LEFT JOIN ls_servers s ON s.id = n.owner AND s.expires_at > clock_timestamp()
LEFT JOIN LATERAL (SELECT counters FROM ls_commits WHERE ns = n.ns ORDER BY seq DESC LIMIT 1) c ON TRUE
WHERE n.name = $1

-- name: replace_namespace
-- A namespace in which nothing is, if no server has taken it since it was looked at. Its rows are deleted later.
WITH gone AS (DELETE FROM ls_namespaces WHERE ns = $1 AND epoch = $2 RETURNING ns)
INSERT INTO ls_deleted (ns) SELECT ns FROM gone RETURNING ns

-- name: put_copy
-- The namespace, after all of its rows, with one commit.
WITH named AS (
    INSERT INTO ls_namespaces (ns, name, store_id) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING RETURNING ns
),
settled AS (INSERT INTO ls_settings (ns, data) SELECT ns, $4 FROM named)
INSERT INTO ls_commits (ns, seq, epoch, counters, bytes) SELECT ns, 0, 0, $5, $6 FROM named RETURNING ns

-- name: is_copied
-- Whether the namespace is there.
SELECT EXISTS (SELECT 1 FROM ls_namespaces WHERE ns = $1)

-- name: read_rows
-- Some rows of a table after a place, up to some bytes, and at least one.
SELECT {columns} FROM (
    SELECT *, sum({size}) OVER (ORDER BY {order}) - ({size}) AS before FROM (
        SELECT {columns} FROM {table} t WHERE {ns} = $1 AND ({order}) > ({place}) {where} ORDER BY {order} LIMIT {limit}
    ) few
) counted WHERE before < {most} ORDER BY {order}

-- name: is_kept
-- For spans: those of rollouts that were not removed.
AND (SELECT TRUE FROM ls_leftovers l WHERE l.ns = t.ns AND l.rollout_key = t.rollout_key) IS NULL

-- name: copied_settings
-- The settings of the store.
SELECT data FROM ls_settings WHERE ns = $1

-- name: copied_commit
-- The last counters, and the epoch of whoever may write the next ones.
SELECT c.counters, n.epoch FROM ls_namespaces n JOIN ls_commits c ON c.ns = n.ns
WHERE n.ns = $1 ORDER BY c.seq DESC LIMIT 1
