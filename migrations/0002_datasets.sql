-- 0002_datasets.sql - data sets, and the jobs that use them.

CREATE TABLE datasets (
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
CREATE UNIQUE INDEX datasets_by_blob ON datasets (sha256, name);
CREATE INDEX datasets_by_name ON datasets (name, n);

ALTER TABLE jobs ADD COLUMN dataset_id TEXT NOT NULL DEFAULT '';
CREATE INDEX jobs_by_dataset ON jobs (dataset_id) WHERE dataset_id <> '';
