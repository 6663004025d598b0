-- 0004_job_seconds.sql - how long jobs ran, counted for ever: deleting a job does not change it.

CREATE TABLE job_seconds (
    kind   TEXT NOT NULL,
    method TEXT NOT NULL,
    bucket INTEGER NOT NULL, -- number of the limit the time is below, counted from 0; past the last limit: their count
    jobs   INTEGER NOT NULL,
    ms     INTEGER NOT NULL,
    PRIMARY KEY (kind, method, bucket)
) STRICT, WITHOUT ROWID;
