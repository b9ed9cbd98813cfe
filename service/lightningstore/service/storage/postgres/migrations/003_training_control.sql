-- Versions of resources: one row for each that is kept, where there was one for each id. updated: counts all updates of the
-- namespace, so it is the publish number of the version.

DROP INDEX ls_resources_by_key;
ALTER TABLE ls_resources DROP CONSTRAINT ls_resources_pkey, ADD PRIMARY KEY (ns, updated);
CREATE INDEX ls_resources_by_key ON ls_resources ((ns::bigint), key, updated);

-- Task queues and labels. The record of a rollout contains both: here they are for filters only. The index on queue leaves out
-- the default queue, whose name is ''.

ALTER TABLE ls_rollouts ADD COLUMN queue bytea NOT NULL DEFAULT '';
CREATE INDEX ls_rollouts_by_queue ON ls_rollouts ((ns::bigint), queue, key) WHERE queue <> '';

CREATE TABLE ls_labels (
    ns integer NOT NULL,
    rollout_key bigint NOT NULL,
    name bytea NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (ns, rollout_key, name)
);
CREATE INDEX ls_labels_by_value ON ls_labels ((ns::bigint), name, value, rollout_key);
