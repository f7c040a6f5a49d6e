-- The table again, with columns of eight octets first, then the one with a header of four, then those that need no
-- alignment: nothing is lost to padding, and a page holds one more certificate.
LOCK TABLE credential IN ACCESS EXCLUSIVE MODE; -- a node of an older version may still be writing
ALTER TABLE credential RENAME TO credential_before;
ALTER SEQUENCE credential_seq_seq RENAME TO credential_before_seq_seq;

-- seq is the order of issue to one holder: it stands in for issued_at wherever two were issued in one microsecond.
CREATE TABLE credential (
    seq         bigint GENERATED ALWAYS AS IDENTITY,
    not_before  bigint NOT NULL,
    not_after   bigint NOT NULL,
    issued_at   bigint NOT NULL,
    der         bytea NOT NULL,
    fingerprint bytea NOT NULL,
    serial      bytea NOT NULL,
    kind        text NOT NULL,
    holder      text COLLATE "C" NOT NULL,
    key_sha256  bytea NOT NULL,
    state       text NOT NULL,
    earned_by   text NOT NULL -- the grant, in the audit's words
);

INSERT INTO credential (seq, not_before, not_after, issued_at, der, fingerprint, serial, kind, holder, key_sha256,
    state, earned_by) OVERRIDING SYSTEM VALUE
SELECT seq, not_before, not_after, issued_at, der, fingerprint, serial, kind, holder, key_sha256, state, earned_by
FROM credential_before ORDER BY seq;
SELECT setval('credential_seq_seq', last_value, is_called) FROM credential_before_seq_seq;
DROP TABLE credential_before;
ANALYZE credential; -- a hash index is laid out for as many rows as the table is thought to have

-- Hashes and serials are only ever looked up whole. A hash index holds four octets of each; a B-tree holds all of
-- it, on pages that random keys leave a third empty. An exclusion by equality is what UNIQUE is, kept by such an index.
-- Filled to 90 %, few of its buckets overflow their page.
ALTER TABLE credential
    ADD CONSTRAINT credential_fingerprint_check CHECK (length(fingerprint) = 32),
    ADD CONSTRAINT credential_serial_check CHECK (length(serial) BETWEEN 1 AND 20),
    ADD CONSTRAINT credential_kind_check CHECK (kind IN ('device', 'station', 'operator', 'claim')),
    ADD CONSTRAINT credential_key_sha256_check CHECK (length(key_sha256) = 32),
    ADD CONSTRAINT credential_state_check CHECK (state IN ('issued', 'active', 'superseded', 'revoked')),
    ADD CONSTRAINT credential_fingerprint_key EXCLUDE USING hash (fingerprint WITH =) WITH (fillfactor = 90),
    ADD CONSTRAINT credential_serial_key EXCLUDE USING hash (serial WITH =) WITH (fillfactor = 90),
    -- A certificate is never looked up by its seq alone: one index by holder and state, each in order of seq, does.
    -- With the state in it, ending a holder's usable certificates never walks through the ones that ended long ago.
    ADD PRIMARY KEY (holder, state, seq);
-- A new key is in no row: the index alone says so.
CREATE INDEX credential_by_key ON credential USING hash (key_sha256) WITH (fillfactor = 90);
-- What can be archived.
CREATE INDEX credential_by_expiry ON credential (not_after);

-- A device's tags stand in its own row: those of device_tag are found by them.
DROP INDEX device_tag_by_device;
