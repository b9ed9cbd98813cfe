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

-- What lists and series know of the latest attempt of a rollout. reward: a text that sorts as the numbers do, '' for none.
-- scores: each as a tab, its name, a line break and its value in the form of reward. duration, queue_time: nanoseconds of
-- finished rollouts, -1 where they are not known. publish_number: of the resources of the latest attempt, 0 for none. lag: how many
-- publications they were behind when the rollout finished, -1 where that is not known. Rollouts of earlier versions get none of this: their spans and attempts would
-- have to be parsed.

ALTER TABLE ls_rollouts
    ADD COLUMN reward bytea NOT NULL DEFAULT '',
    ADD COLUMN scores bytea NOT NULL DEFAULT '',
    ADD COLUMN duration bigint NOT NULL DEFAULT -1,
    ADD COLUMN queue_time bigint NOT NULL DEFAULT -1,
    ADD COLUMN publish_number bigint NOT NULL DEFAULT 0,
    ADD COLUMN lag bigint NOT NULL DEFAULT -1;
CREATE INDEX ls_rollouts_by_reward ON ls_rollouts ((ns::bigint), reward, key) WHERE reward >= '';
CREATE INDEX ls_rollouts_finished ON ls_rollouts ((ns::bigint), end_time)
    INCLUDE (ns, completion_number, status, mode, reward, duration, queue_time, attempt_count, publish_number, lag)
    WHERE end_time > 0;

-- Groups of rollouts that complete together. key: the order of creation. deadline_ns: store time of the deadline, 0 while there is
-- none.

CREATE TABLE ls_groups (
    ns integer NOT NULL,
    key bigint NOT NULL,
    group_id bytea NOT NULL,
    status smallint NOT NULL,
    completion_number bigint NOT NULL,
    deadline_ns bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, key)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX ls_groups_by_id ON ls_groups ((ns::bigint), group_id) WHERE group_id >= '';
CREATE INDEX ls_groups_by_status ON ls_groups ((ns::bigint), status, key) WHERE status >= 0;
CREATE UNIQUE INDEX ls_groups_by_completion ON ls_groups ((ns::bigint), completion_number) WHERE completion_number > 0;

-- Consumers, and the items that were delivered to them and are not acknowledged. created: distinguishes what consumers of the same
-- name are created with. deadline_ns: store time of the deadline of a delivery, 0 if it was released. end_ns: when the item
-- finished. gone: whether the item is not delivered again.

CREATE TABLE ls_consumers (
    ns integer NOT NULL,
    name bytea NOT NULL,
    key bigint NOT NULL,
    created bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, name)
) WITH (fillfactor = 50);

CREATE TABLE ls_deliveries (
    ns integer NOT NULL,
    consumer bigint NOT NULL,
    number bigint NOT NULL,
    deadline_ns bigint NOT NULL,
    gone boolean NOT NULL,
    end_ns bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, consumer, number)
);
