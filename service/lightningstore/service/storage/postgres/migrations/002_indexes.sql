-- One index for each way to look something up, and no other that its query could use. PostgreSQL estimates the rows of a
-- namespace from statistics. If these say that namespaces are small, reading a whole one by an index on (ns, key) seems as
-- cheap as looking up a row, whatever the query looks for. So only the primary keys begin with ns. The other indexes begin
-- with ns::bigint, and where a table has several, with a condition that holds for all rows that are looked up by it. A query
-- names both: `ns::bigint = … AND status >= 0 AND status = …`.

DROP INDEX ls_rollouts_by_id, ls_rollouts_live, ls_rollouts_by_status, ls_rollouts_by_start, ls_rollouts_by_group,
    ls_rollouts_by_completion, ls_attempts_by_rollout, ls_attempts_live, ls_spans_by_sequence, ls_resources_by_key,
    ls_requests_by_time;

CREATE UNIQUE INDEX ls_rollouts_by_id ON ls_rollouts ((ns::bigint), rollout_id) WHERE rollout_id >= '';
CREATE INDEX ls_rollouts_live ON ls_rollouts ((ns::bigint), key) WHERE live;
-- With ns, so that counting need not read the table.
CREATE INDEX ls_rollouts_by_status ON ls_rollouts ((ns::bigint), status, key) INCLUDE (ns) WHERE status >= 0;
CREATE INDEX ls_rollouts_by_start ON ls_rollouts ((ns::bigint), start_time, key) WHERE start_time >= 0;
CREATE INDEX ls_rollouts_by_group ON ls_rollouts ((ns::bigint), group_id, key) WHERE group_id <> '';
CREATE UNIQUE INDEX ls_rollouts_by_completion ON ls_rollouts ((ns::bigint), completion_number)
    WHERE completion_number > 0;

CREATE INDEX ls_attempts_by_rollout ON ls_attempts ((ns::bigint), rollout_key, key) WHERE rollout_key >= 0;
CREATE INDEX ls_attempts_live ON ls_attempts ((ns::bigint), rollout_key) WHERE live;

CREATE INDEX ls_spans_by_sequence ON ls_spans ((ns::bigint), rollout_key, first_sequence_id, key)
    WHERE rollout_key >= 0;
CREATE INDEX ls_resources_by_key ON ls_resources ((ns::bigint), key);
CREATE INDEX ls_requests_by_time ON ls_requests ((ns::bigint), time_ns);
