-- name: join
-- A server, with its lease. One that is draining takes no namespaces that no call of its own needs.
INSERT INTO ls_servers (id, address, expires_at, draining)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3), $4)

-- name: renew
-- The lease once more. It may be over, if no server has deleted the row yet.
UPDATE ls_servers SET expires_at = clock_timestamp() + make_interval(secs => $2) WHERE id = $1 RETURNING 1

-- name: leave
-- A server that ends: its namespaces are free at once.
WITH gone AS (DELETE FROM ls_servers WHERE id = $1)
UPDATE ls_namespaces SET owner = '' WHERE owner = $1

-- name: bury
-- A server whose lease is over. A renewal under way is waited for, and counts.
DELETE FROM ls_servers WHERE id = $1 AND expires_at < clock_timestamp() RETURNING 1

-- name: bury_old
-- Servers that ended long ago.
DELETE FROM ls_servers WHERE expires_at < clock_timestamp() - make_interval(hours => 1)

-- name: free
-- Ownership under an epoch, for whoever wants it.
UPDATE ls_namespaces SET owner = '' WHERE name = $1 AND epoch = $2 AND owner = $3

-- name: drain
-- A server that takes no more namespaces.
UPDATE ls_servers SET draining = TRUE WHERE id = $1

-- name: accepting
-- All servers with a lease.
SELECT id, address, draining FROM ls_servers WHERE expires_at > clock_timestamp() ORDER BY id

-- name: placed
-- All namespaces and their owners. Whether anything is live in them matters only where there is no owner.
SELECT n.name, n.store_id, coalesce(d.data, '') AS settings, n.wanted, n.epoch, s.id AS owner, s.address,
    CASE WHEN s.id IS NULL THEN EXISTS (SELECT 1 FROM ls_rollouts WHERE ns::bigint = n.ns AND live LIMIT 1 OFFSET 0)
        OR EXISTS (SELECT 1 FROM ls_attempts WHERE ns::bigint = n.ns AND live LIMIT 1 OFFSET 0)
        OR EXISTS (SELECT 1 FROM ls_groups WHERE ns::bigint = n.ns AND status = 1 AND status >= 0 AND deadline_ns > 0 LIMIT 1 OFFSET 0)
    ELSE TRUE END AS live
FROM ls_namespaces n
LEFT JOIN ls_servers s ON s.id = n.owner AND s.expires_at > clock_timestamp()
LEFT JOIN ls_settings d ON d.ns = n.ns
ORDER BY n.name

-- name: move
-- The server that an operator has chosen for a namespace; '' for none.
UPDATE ls_namespaces SET wanted = $2 WHERE name = $1 RETURNING 1

-- name: is_member
-- Whether a server still has its row.
SELECT 1 FROM ls_servers WHERE id = $1

-- name: find_namespace
-- A namespace and its owner; address NULL: it has none.
SELECT n.ns, n.store_id, n.owner, n.epoch, s.address,
    extract(epoch FROM s.expires_at - clock_timestamp())::float8 AS remaining
FROM ls_namespaces n LEFT JOIN ls_servers s ON s.id = n.owner WHERE n.name = $1

-- name: put_namespace
-- A new namespace, with the commit before its first. Numbers are never used twice: a former owner of a namespace that was
-- deleted must not meet another one under its number.
WITH numbered AS (UPDATE ls_schema SET last_ns = last_ns + 1 RETURNING last_ns),
named AS (
    INSERT INTO ls_namespaces (ns, name, store_id) SELECT last_ns, $1, $2 FROM numbered
    ON CONFLICT (name) DO NOTHING RETURNING ns
),
settled AS (INSERT INTO ls_settings (ns, data) SELECT ns, $3 FROM named)
INSERT INTO ls_commits (ns, seq, epoch, counters, bytes) SELECT ns, 0, 0, '{}', 0 FROM named RETURNING ns

-- name: take
-- Ownership, if it is still as it was found, its owner has no row any more, and this server has one.
UPDATE ls_namespaces SET owner = $2, epoch = epoch + 1
WHERE ns = $1 AND owner = $3 AND epoch = $4
    AND ($3 = $2 OR NOT EXISTS (SELECT 1 FROM ls_servers WHERE id = $3))
    AND EXISTS (SELECT 1 FROM ls_servers WHERE id = $2)
RETURNING epoch

-- name: give_up
-- Ownership, for whoever wants it.
UPDATE ls_namespaces SET owner = '' WHERE ns = $1 AND epoch = $2 AND owner = $3

-- name: put_store_id
-- Another id of the store: what watchers of the former one know is not in this one.
UPDATE ls_namespaces SET store_id = $4 WHERE ns = $1 AND epoch = $2 AND owner = $3

-- name: answered
-- What there is of commits that were answered: the epoch of each, and the last commit of its namespace.
SELECT a.ns, n.name, a.seq, c.epoch, coalesce((SELECT max(seq) FROM ls_commits WHERE ns = a.ns), 0) AS last
FROM unnest($1::bigint[], $2::bigint[]) AS a (ns, seq)
JOIN ls_namespaces n ON n.ns = a.ns
LEFT JOIN ls_commits c ON c.ns = a.ns AND c.seq = a.seq

-- name: rename_store
-- Another id of a store whose loss was noticed by a server that does not own it.
UPDATE ls_namespaces SET store_id = $2 WHERE ns = $1
