-- The first schema. Times are nanoseconds since the Unix epoch; records are serialised messages of the
-- contract, beside the few columns that queries and indexes need. Missing values are 0 or ''.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- key: the order of enqueueing. position: place in the queue, 0 if in none.
CREATE TABLE rollouts (
    key INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL,
    status INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    group_id TEXT NOT NULL,
    resources_id TEXT NOT NULL,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    attempt_count INTEGER NOT NULL,
    latest_attempt_id TEXT NOT NULL,
    completion_number INTEGER NOT NULL,
    position INTEGER NOT NULL,
    available_ns INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE UNIQUE INDEX rollouts_by_id ON rollouts (rollout_id);
CREATE INDEX rollouts_by_status ON rollouts (status, key);
CREATE INDEX rollouts_by_start ON rollouts (start_time, key);
CREATE INDEX rollouts_by_group ON rollouts (group_id, key) WHERE group_id <> '';
CREATE UNIQUE INDEX rollouts_by_completion ON rollouts (completion_number) WHERE completion_number > 0;

-- Inputs are written once and may be large: beside the rollouts, so that a change of status is small.
CREATE TABLE inputs (
    rollout_key INTEGER PRIMARY KEY,
    input_json BLOB NOT NULL
);

CREATE TABLE attempts (
    key INTEGER PRIMARY KEY,
    rollout_key INTEGER NOT NULL,
    status INTEGER NOT NULL,
    last_sequence_id INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX attempts_by_rollout ON attempts (rollout_key, key);
CREATE INDEX attempts_live ON attempts (rollout_key) WHERE status IN (1, 2);

-- One row a batch, as it came in (a serialised IngestSpansRequest): a row a span costs three times as much. encoding: 0 plain, 1 zlib.
CREATE TABLE spans (
    key INTEGER PRIMARY KEY,
    rollout_key INTEGER NOT NULL,
    attempt_key INTEGER NOT NULL,
    first_sequence_id INTEGER NOT NULL,
    last_sequence_id INTEGER NOT NULL,
    span_count INTEGER NOT NULL,
    contiguous INTEGER NOT NULL,
    encoding INTEGER NOT NULL,
    span_ids BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX spans_by_sequence ON spans (rollout_key, first_sequence_id, key);

-- key: the order of adding. updated: counts all updates of the store, the highest is the latest.
CREATE TABLE resources (
    key INTEGER PRIMARY KEY,
    resources_id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    record BLOB NOT NULL
);

CREATE TABLE workers (
    worker_id TEXT PRIMARY KEY,
    record BLOB NOT NULL
);

CREATE TABLE requests (
    method TEXT NOT NULL,
    request_id TEXT NOT NULL,
    digest INTEGER NOT NULL,
    time_ns INTEGER NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (method, request_id)
);
CREATE INDEX requests_by_time ON requests (time_ns);
