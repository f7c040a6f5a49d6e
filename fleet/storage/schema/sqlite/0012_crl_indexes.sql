-- A CRL is read from an index alone, in order; the newest entry of a CA and what is in no CRL yet are found at once.
DROP INDEX revoked_by_bucket;
DROP INDEX revoked_by_number;
CREATE INDEX revoked_by_bucket ON revoked (issuer, bucket, not_after, reason, entry);
CREATE INDEX revoked_by_number ON revoked (issuer, number);
CREATE INDEX revoked_unpublished ON revoked (serial) WHERE number IS NULL;
