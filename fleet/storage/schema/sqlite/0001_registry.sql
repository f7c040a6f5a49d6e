-- The registry. Times are integer microseconds since 1970-01-01 UTC; lists and maps are JSON text.

CREATE TABLE model (
    name        TEXT PRIMARY KEY,
    lifetime    INTEGER NOT NULL CHECK (lifetime > 0), -- of a certificate, microseconds
    key_types   TEXT NOT NULL,
    publish     TEXT NOT NULL,
    subscribe   TEXT NOT NULL,
    retain      INTEGER NOT NULL CHECK (retain IN (0, 1))
) STRICT, WITHOUT ROWID;

CREATE TABLE device (
    id              TEXT PRIMARY KEY,
    model           TEXT NOT NULL REFERENCES model (name),
    state           TEXT NOT NULL CHECK (state IN ('registered', 'active', 'suspended', 'revoked', 'retired')),
    created_at      INTEGER NOT NULL,
    hardware_serial TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX device_by_model ON device (model, id);
-- Nearly all devices are active: finding those needs no index, and an enrollment is spared two random pages of one.
CREATE INDEX device_by_state ON device (state, id) WHERE state <> 'active';

-- seq is the order of issue: it stands in for issued_at wherever two certificates were issued in one microsecond.
CREATE TABLE credential (
    seq         INTEGER PRIMARY KEY,
    fingerprint BLOB NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    serial      TEXT NOT NULL UNIQUE,
    kind        TEXT NOT NULL CHECK (kind IN ('device', 'station')),
    holder      TEXT NOT NULL,
    key_sha256  BLOB NOT NULL CHECK (length(key_sha256) = 32),
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('issued', 'active', 'superseded', 'revoked')),
    issued_at   INTEGER NOT NULL,
    der         BLOB NOT NULL,
    earned_by   TEXT NOT NULL -- the grant, in the audit's words
) STRICT;

-- With the state in it, ending a holder's usable certificates never walks through the ones that ended long ago.
CREATE INDEX credential_by_holder ON credential (holder, kind, state);
-- Whose a key is, or was, is answered from this index alone.
CREATE INDEX credential_by_key ON credential (key_sha256, kind, holder, state);

CREATE TABLE token (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    secret_sha256 BLOB NOT NULL CHECK (length(secret_sha256) = 32),
    device_id     TEXT,
    model         TEXT REFERENCES model (name),
    uses_max      INTEGER NOT NULL CHECK (uses_max >= 1),
    uses          INTEGER NOT NULL CHECK (uses BETWEEN 0 AND uses_max),
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    revoked_at    INTEGER,
    CHECK ((device_id IS NULL) <> (model IS NULL))
) STRICT;

CREATE TABLE station (
    name       TEXT PRIMARY KEY,
    models     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Each row's hash covers its own columns, its seq and the hash before it: fleet.domain.audit_chain.
CREATE TABLE audit (
    seq      INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    outcome  TEXT NOT NULL,
    address  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash     BLOB NOT NULL
) STRICT;

-- The change feed. Sequence order is commit order, without gaps: there is one writer at a time.
CREATE TABLE event (
    seq     INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
