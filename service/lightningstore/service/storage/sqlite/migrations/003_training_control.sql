-- Versions of resources: one row for each that is kept, where there was one for each id. updated: counts all updates of the
-- store, so it is the publish number of the version. It is not unique in files that were damaged and repaired.

CREATE TABLE resource_versions (
    key INTEGER NOT NULL,
    resources_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (key, version)
);
INSERT INTO resource_versions SELECT key, resources_id, version, updated, record FROM resources;
DROP TABLE resources;
ALTER TABLE resource_versions RENAME TO resources;
CREATE INDEX resources_by_update ON resources (updated);

-- Task queues and labels. The record of a rollout contains both: here they are for filters only. The index on queue leaves out
-- the default queue, whose name is ''.

ALTER TABLE rollouts ADD COLUMN queue TEXT NOT NULL DEFAULT '';
CREATE INDEX rollouts_by_queue ON rollouts (queue, key) WHERE queue <> '';

CREATE TABLE labels (
    rollout_key INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (rollout_key, name)
) WITHOUT ROWID;
CREATE INDEX labels_by_value ON labels (name, value, rollout_key);

-- What lists and series know of the latest attempt of a rollout. reward: a text that sorts as the numbers do, '' for none.
-- scores: each as a tab, its name, a line break and its value in the form of reward. duration, queue_time: nanoseconds of
-- finished rollouts, -1 where they are not known. publish_number: of the resources of the latest attempt, 0 for none. lag: how many
-- publications they were behind when the rollout finished, -1 where that is not known. Rollouts of earlier versions get none of this: their spans and attempts would
-- have to be parsed.

ALTER TABLE rollouts ADD COLUMN reward TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN scores TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN duration INTEGER NOT NULL DEFAULT -1;
ALTER TABLE rollouts ADD COLUMN queue_time INTEGER NOT NULL DEFAULT -1;
ALTER TABLE rollouts ADD COLUMN publish_number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN lag INTEGER NOT NULL DEFAULT -1;
CREATE INDEX rollouts_by_reward ON rollouts (reward, key);
CREATE INDEX rollouts_finished ON rollouts (
    end_time, key, completion_number, status, mode, reward, duration, queue_time, attempt_count, publish_number, lag
) WHERE completion_number > 0;

-- Groups of rollouts that complete together. key: the order of creation. deadline_ns: store time of the deadline, 0 while there is
-- none.

CREATE TABLE groups (
    key INTEGER PRIMARY KEY,
    group_id TEXT NOT NULL,
    status INTEGER NOT NULL,
    completion_number INTEGER NOT NULL,
    deadline_ns INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE UNIQUE INDEX groups_by_id ON groups (group_id);
CREATE INDEX groups_by_status ON groups (status, key);
CREATE UNIQUE INDEX groups_by_completion ON groups (completion_number) WHERE completion_number > 0;

-- Consumers, and the items that were delivered to them and are not acknowledged. created: distinguishes what consumers of the same
-- name are created with. deadline_ns: store time of the deadline of a delivery, 0 if it was released. end_ns: when the item
-- finished. gone: 1 if the item is not delivered again.

CREATE TABLE consumers (
    name TEXT PRIMARY KEY,
    key INTEGER NOT NULL,
    created INTEGER NOT NULL,
    record BLOB NOT NULL
);

CREATE TABLE deliveries (
    consumer INTEGER NOT NULL,
    number INTEGER NOT NULL,
    deadline_ns INTEGER NOT NULL,
    gone INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (consumer, number)
) WITHOUT ROWID;
