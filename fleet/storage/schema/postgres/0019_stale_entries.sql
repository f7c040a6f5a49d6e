-- An entry stays in CRLs, 1: stale, until the one with the new reason or time takes its place.
ALTER TABLE revoked ADD COLUMN stale bigint NOT NULL DEFAULT 0;
CREATE INDEX revoked_stale ON revoked (serial) WHERE stale = 1;
