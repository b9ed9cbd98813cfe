-- The first schema. The namespace's number leads every key, so that a namespace is one range of each table. Times are
-- nanoseconds since the Unix epoch; records are serialised messages of the contract, beside the few columns that queries
-- and indexes need. Missing values are 0 or ''. Texts of callers are bytea: they sort by their bytes, as in SQLite.

-- One row. last_ns: the last number that a namespace was given.
CREATE TABLE ls_schema (
    id boolean PRIMARY KEY DEFAULT TRUE CHECK (id),
    version integer NOT NULL,
    last_ns integer NOT NULL
);
INSERT INTO ls_schema (version, last_ns) VALUES (1, 0);

-- One lease for each server. A server whose row is missing owns nothing, and never will again under this id.
CREATE TABLE ls_servers (
    id text PRIMARY KEY,
    address text NOT NULL,
    expires_at timestamptz NOT NULL,
    draining boolean NOT NULL DEFAULT FALSE
);

-- epoch: rises with each owner. Every commit of the owner names it. owner: '' for none. wanted: id of the server that an
-- operator has chosen, '' for none.
CREATE TABLE ls_namespaces (
    ns integer PRIMARY KEY,
    name text NOT NULL UNIQUE,
    store_id text NOT NULL,
    owner text NOT NULL DEFAULT '',
    epoch bigint NOT NULL DEFAULT 0,
    wanted text NOT NULL DEFAULT ''
) WITH (fillfactor = 20);

-- Namespaces that were deleted, and whose rows may be left.
CREATE TABLE ls_deleted (
    ns integer PRIMARY KEY
);

CREATE TABLE ls_settings (
    ns integer PRIMARY KEY,
    data bytea NOT NULL
);

-- The last commits. Each number is taken once. counters: those of the engine, as JSON. bytes: what spans and inputs hold.
CREATE TABLE ls_commits (
    ns integer NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    counters bytea NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (ns, seq)
);

-- key: the order of enqueueing. position: place in the queue, 0 if in none. live: the engine loads it at start.
CREATE TABLE ls_rollouts (
    ns integer NOT NULL,
    key bigint NOT NULL,
    rollout_id bytea NOT NULL,
    live boolean NOT NULL,
    status smallint NOT NULL,
    mode smallint NOT NULL,
    priority integer NOT NULL,
    group_id bytea NOT NULL,
    resources_id bytea NOT NULL,
    start_time bigint NOT NULL,
    end_time bigint NOT NULL,
    attempt_count integer NOT NULL,
    latest_attempt_id bytea NOT NULL,
    completion_number bigint NOT NULL,
    position bigint NOT NULL,
    available_ns bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, key)
) WITH (fillfactor = 85);
CREATE UNIQUE INDEX ls_rollouts_by_id ON ls_rollouts (ns, rollout_id);
CREATE INDEX ls_rollouts_live ON ls_rollouts (ns, key) WHERE live;
CREATE INDEX ls_rollouts_by_status ON ls_rollouts (ns, status, key);
CREATE INDEX ls_rollouts_by_start ON ls_rollouts (ns, start_time, key);
CREATE INDEX ls_rollouts_by_group ON ls_rollouts (ns, group_id, key) WHERE group_id <> '';
CREATE UNIQUE INDEX ls_rollouts_by_completion ON ls_rollouts (ns, completion_number) WHERE completion_number > 0;

-- Inputs are written once and may be large: beside the rollouts, so that a change of status is small.
CREATE TABLE ls_inputs (
    ns integer NOT NULL,
    rollout_key bigint NOT NULL,
    input_json bytea NOT NULL,
    PRIMARY KEY (ns, rollout_key)
);

CREATE TABLE ls_attempts (
    ns integer NOT NULL,
    key bigint NOT NULL,
    rollout_key bigint NOT NULL,
    live boolean NOT NULL,
    status smallint NOT NULL,
    last_sequence_id bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, key)
) WITH (fillfactor = 85);
CREATE INDEX ls_attempts_by_rollout ON ls_attempts (ns, rollout_key, key);
CREATE INDEX ls_attempts_live ON ls_attempts (ns, rollout_key) WHERE live;

-- One row a batch, as it came in (a serialised IngestSpansRequest). encoding: 0 plain, 2 zstd.
CREATE TABLE ls_spans (
    ns integer NOT NULL,
    key bigint NOT NULL,
    rollout_key bigint NOT NULL,
    attempt_key bigint NOT NULL,
    first_sequence_id bigint NOT NULL,
    last_sequence_id bigint NOT NULL,
    span_count integer NOT NULL,
    contiguous boolean NOT NULL,
    encoding smallint NOT NULL,
    span_ids bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (ns, key)
);
CREATE INDEX ls_spans_by_sequence ON ls_spans (ns, rollout_key, first_sequence_id, key);

-- Removed rollouts whose batches of spans are not all deleted.
CREATE TABLE ls_leftovers (
    ns integer NOT NULL,
    rollout_key bigint NOT NULL,
    PRIMARY KEY (ns, rollout_key)
);

-- key: the order of adding. updated: counts all updates of the namespace, the highest is the latest.
CREATE TABLE ls_resources (
    ns integer NOT NULL,
    key bigint NOT NULL,
    resources_id bytea NOT NULL,
    version integer NOT NULL,
    updated bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, resources_id)
);
CREATE INDEX ls_resources_by_key ON ls_resources (ns, key);

CREATE TABLE ls_workers (
    ns integer NOT NULL,
    worker_id bytea NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ns, worker_id)
) WITH (fillfactor = 70);

CREATE TABLE ls_requests (
    ns integer NOT NULL,
    method bytea NOT NULL,
    request_id bytea NOT NULL,
    digest bigint NOT NULL,
    time_ns bigint NOT NULL,
    answer bytea NOT NULL,
    PRIMARY KEY (ns, method, request_id)
);
CREATE INDEX ls_requests_by_time ON ls_requests (ns, time_ns);

-- What a probe of the disk writes and deletes.
CREATE TABLE ls_probes (
    ns integer PRIMARY KEY,
    data bytea NOT NULL
);

-- PostgreSQL's own compression costs four times what inserting a batch of spans does.
ALTER TABLE ls_spans ALTER COLUMN data SET STORAGE EXTERNAL, ALTER COLUMN span_ids SET STORAGE EXTERNAL;
ALTER TABLE ls_inputs ALTER COLUMN input_json SET STORAGE EXTERNAL;
ALTER TABLE ls_rollouts ALTER COLUMN record SET STORAGE EXTERNAL;
ALTER TABLE ls_attempts ALTER COLUMN record SET STORAGE EXTERNAL;
ALTER TABLE ls_requests ALTER COLUMN answer SET STORAGE EXTERNAL;
ALTER TABLE ls_resources ALTER COLUMN record SET STORAGE EXTERNAL;
ALTER TABLE ls_probes ALTER COLUMN data SET STORAGE EXTERNAL;
