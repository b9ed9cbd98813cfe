-- name: survey
-- All namespaces but one: whether anything is live or an open group has a deadline, and when the oldest rollout began; 0 if there is
-- none.
SELECT n.name, n.store_id, coalesce(s.data, ''),
    EXISTS (SELECT 1 FROM ls_rollouts WHERE ns::bigint = n.ns AND live LIMIT 1 OFFSET 0)
        OR EXISTS (SELECT 1 FROM ls_attempts WHERE ns::bigint = n.ns AND live LIMIT 1 OFFSET 0)
        OR EXISTS (SELECT 1 FROM ls_groups WHERE ns::bigint = n.ns AND status = 1 AND status >= 0 AND deadline_ns > 0 LIMIT 1 OFFSET 0),
    coalesce((
        SELECT start_time FROM ls_rollouts WHERE ns::bigint = n.ns AND start_time >= 0 ORDER BY start_time, key LIMIT 1
    ), 0)
FROM ls_namespaces n LEFT JOIN ls_settings s ON s.ns = n.ns WHERE n.name <> $1 ORDER BY n.name

-- name: delete_namespace
-- A namespace, if this server still owns it. Its rows are deleted later, in parts.
WITH gone AS (DELETE FROM ls_namespaces WHERE ns = $1 AND epoch = $2 AND owner = $3 RETURNING ns)
INSERT INTO ls_deleted (ns) SELECT ns FROM gone RETURNING ns

-- name: deleted
-- Namespaces that were deleted, and whose rows may be left.
SELECT ns FROM ls_deleted

-- name: delete_rows
-- Some rows of such a namespace.
DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE ns = $1 LIMIT {limit})) RETURNING 1

-- name: forget_deleted
-- Such a namespace, of which nothing is left.
DELETE FROM ls_deleted WHERE ns = $1
