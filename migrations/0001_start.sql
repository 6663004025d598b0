-- 0001_start.sql - models, jobs, and everything a job leaves behind.
--
-- n counts arrivals and is never used twice: lists and cursors follow it, because a clock may step back and a client may choose
-- its own id. Times are milliseconds since the epoch, 0 = not yet. Text columns are never NULL; '' = nothing.

CREATE TABLE models (
    n          INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    path       TEXT NOT NULL,
    format     TEXT NOT NULL,
    role       TEXT NOT NULL,
    summary    TEXT NOT NULL CHECK (json_valid(summary)),
    job_id     TEXT NOT NULL,
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    created_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX models_by_blob ON models (sha256, name);
CREATE INDEX models_by_name ON models (name, n);

CREATE TABLE jobs (
    n                   INTEGER PRIMARY KEY AUTOINCREMENT,
    id                  TEXT NOT NULL UNIQUE,
    kind                TEXT NOT NULL,
    method              TEXT NOT NULL,
    status              TEXT NOT NULL CHECK (status IN ('scheduled', 'queued', 'running', 'paused', 'retry_wait', 'succeeded',
                                                        'failed', 'canceled', 'dead')),
    model_id            TEXT NOT NULL,
    body                TEXT NOT NULL CHECK (json_valid(body)),
    params              TEXT NOT NULL CHECK (json_valid(params)),
    metadata            TEXT NOT NULL CHECK (json_valid(metadata)),
    error               TEXT NOT NULL DEFAULT '' CHECK (error = '' OR json_valid(error)),
    result              TEXT NOT NULL DEFAULT '' CHECK (result = '' OR json_valid(result)),
    phase               TEXT NOT NULL DEFAULT '',
    item                TEXT NOT NULL DEFAULT '',
    done                INTEGER NOT NULL DEFAULT 0,
    total               INTEGER NOT NULL DEFAULT 0,
    priority            INTEGER NOT NULL,
    attempt             INTEGER NOT NULL DEFAULT 0, -- how often it was claimed
    tries               INTEGER NOT NULL DEFAULT 0, -- the claims that count: a daemon that stopped gives its own back
    max_attempts        INTEGER NOT NULL CHECK (max_attempts >= 1),
    created_ms          INTEGER NOT NULL,
    started_ms          INTEGER NOT NULL DEFAULT 0,
    finished_ms         INTEGER NOT NULL DEFAULT 0,
    run_at_ms           INTEGER NOT NULL DEFAULT 0, -- not before this time
    cancel_requested_ms INTEGER NOT NULL DEFAULT 0,
    time_limit_s        INTEGER NOT NULL,
    lease_until_ms      INTEGER NOT NULL DEFAULT 0,
    fence               INTEGER NOT NULL DEFAULT 0,
    last_seq            INTEGER NOT NULL DEFAULT 0
) STRICT;
-- The queue in the order it is served; the leases in the order they expire; the unfinished jobs of a model.
CREATE INDEX jobs_waiting ON jobs (priority, n) WHERE status IN ('queued', 'scheduled', 'retry_wait');
CREATE INDEX jobs_running ON jobs (lease_until_ms) WHERE status = 'running';
CREATE INDEX jobs_by_model ON jobs (model_id);
CREATE INDEX jobs_by_status ON jobs (kind, status);

CREATE TABLE attempts (
    job_id      TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt     INTEGER NOT NULL,
    started_ms  INTEGER NOT NULL,
    finished_ms INTEGER NOT NULL DEFAULT 0,
    worker      TEXT NOT NULL,
    outcome     TEXT NOT NULL DEFAULT '',
    error       TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    job_id  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL CHECK (seq >= 1),
    ts_ms   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    type    TEXT NOT NULL,
    data    TEXT NOT NULL CHECK (json_valid(data)),
    PRIMARY KEY (job_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE samples (
    job_id  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    n       INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    path    TEXT NOT NULL,
    mime    TEXT NOT NULL,
    step    INTEGER NOT NULL,
    idx     INTEGER NOT NULL,
    width   INTEGER NOT NULL,
    height  INTEGER NOT NULL,
    psnr_db REAL, -- NULL = none
    PRIMARY KEY (job_id, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    n          INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    job_id     TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    mime       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    path       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    created_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX artifacts_by_name ON artifacts (job_id, name);

CREATE TABLE idempotency (
    key        TEXT PRIMARY KEY,
    job_id     TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_job ON idempotency (job_id);
CREATE INDEX idempotency_by_age ON idempotency (created_ms);

-- What was here and was deleted: answers 410 instead of 404, and keeps cursors valid.
CREATE TABLE tombstones (
    id         TEXT PRIMARY KEY,
    n          INTEGER NOT NULL,
    deleted_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
