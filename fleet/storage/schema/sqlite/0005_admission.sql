-- More ways in: a manifest of devices that are expected, makers' CAs with what their certificates were used for, claim
-- certificates; and how many devices a station may provision in a day.

-- A kind more is allowed, and nothing else of the table changes: its rows need not be copied for that. The statements
-- behind this one change the schema's cookie, by which every connection reads it anew.
PRAGMA writable_schema = ON;
UPDATE sqlite_master
    SET sql = replace(sql, '(''device'', ''station'', ''operator'')', '(''device'', ''station'', ''operator'', ''claim'')')
    WHERE type = 'table' AND name = 'credential';
PRAGMA writable_schema = RESET;

CREATE TABLE manifest (
    device_id       TEXT PRIMARY KEY REFERENCES device (id),
    model           TEXT NOT NULL,
    hardware_serial TEXT NOT NULL, -- '' for none
    key_sha256      BLOB CHECK (length(key_sha256) = 32), -- of the SPKI that may enroll with no other proof
    row_sha256      BLOB NOT NULL CHECK (length(row_sha256) = 32) -- of the row as it was imported
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX manifest_by_serial ON manifest (hardware_serial, model) WHERE hardware_serial <> '';
CREATE UNIQUE INDEX manifest_by_key ON manifest (key_sha256) WHERE key_sha256 IS NOT NULL;

CREATE TABLE claim (
    name              TEXT PRIMARY KEY,
    model             TEXT NOT NULL REFERENCES model (name),
    quota             INTEGER NOT NULL CHECK (quota >= 1),
    uses              INTEGER NOT NULL CHECK (uses BETWEEN 0 AND quota),
    created_at        INTEGER NOT NULL,
    expires_at        INTEGER NOT NULL,
    takeovers         INTEGER NOT NULL, -- identities of others that were asked for since it was last released
    quarantined_at    INTEGER,
    quarantine_reason TEXT NOT NULL,
    revoked_at        INTEGER
) STRICT, WITHOUT ROWID;

-- Makers' CAs: whose certificates (IEEE 802.1AR) may earn a first one of ours.
CREATE TABLE anchor (
    name        TEXT PRIMARY KEY,
    models      TEXT NOT NULL,
    fingerprint BLOB NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    der         BLOB NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One maker's certificate is one device, whatever becomes of the anchor.
CREATE TABLE idevid (
    key_sha256  BLOB PRIMARY KEY CHECK (length(key_sha256) = 32),
    device_id   TEXT NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
    anchor      TEXT NOT NULL,
    bound_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

ALTER TABLE station ADD COLUMN quota INTEGER NOT NULL DEFAULT 0; -- certificates a day; 0: as many as it likes
ALTER TABLE station ADD COLUMN day INTEGER NOT NULL DEFAULT 0; -- the last on which it was counted, since 1970 in UTC
ALTER TABLE station ADD COLUMN used INTEGER NOT NULL DEFAULT 0; -- on that day
