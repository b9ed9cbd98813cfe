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
