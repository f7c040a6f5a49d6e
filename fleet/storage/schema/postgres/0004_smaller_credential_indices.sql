-- Hashes and serials are only ever looked up whole. A hash index holds four octets of each; a B-tree holds all of
-- it, on pages that random keys leave a third empty. An exclusion by equality is what UNIQUE is, kept by such an index.
-- Filled to 90 %, few of its buckets overflow their page.
ALTER TABLE credential
    DROP CONSTRAINT credential_fingerprint_key,
    DROP CONSTRAINT credential_serial_key,
    ADD CONSTRAINT credential_fingerprint_key EXCLUDE USING hash (fingerprint WITH =) WITH (fillfactor = 90),
    ADD CONSTRAINT credential_serial_key EXCLUDE USING hash (serial WITH =) WITH (fillfactor = 90);

DROP INDEX credential_by_key;
CREATE INDEX credential_by_key ON credential USING hash (key_sha256) WITH (fillfactor = 90);

-- A certificate is never looked up by its seq alone: one index by holder, kind and state, each in order of seq, does.
ALTER TABLE credential DROP CONSTRAINT credential_pkey, ADD PRIMARY KEY (holder, kind, state, seq);
DROP INDEX credential_by_holder;

-- A device's tags stand in its own row: those of device_tag are found by them.
DROP INDEX device_tag_by_device;
