-- 0005_estimates.sql - what was expected of a job when it was submitted, kept beside what came out; '' = nothing.

ALTER TABLE jobs ADD COLUMN estimate TEXT NOT NULL DEFAULT '' CHECK (estimate = '' OR json_valid(estimate));
