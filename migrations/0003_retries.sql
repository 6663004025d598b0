-- 0003_retries.sql - a job that is over is tried again as a new job; retry_of names the old one, '' = none.

ALTER TABLE jobs ADD COLUMN retry_of TEXT NOT NULL DEFAULT '';
CREATE INDEX jobs_by_retry ON jobs (retry_of) WHERE retry_of <> '';
