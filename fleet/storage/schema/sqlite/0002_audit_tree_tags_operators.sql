-- The audit becomes a Merkle tree; devices get tags, groups, an expiry and revisions; operators and idempotency come in.
-- audit_leaf(…) and serial_octets(…) are functions of the program that applies this.

ALTER TABLE model ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;

ALTER TABLE device ADD COLUMN expires_at INTEGER; -- of its newest certificate
ALTER TABLE device ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE device ADD COLUMN groups TEXT NOT NULL DEFAULT '[]';
ALTER TABLE device ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;

UPDATE device SET expires_at =
    (SELECT max(not_after) FROM credential WHERE credential.holder = device.id AND credential.kind = 'device');

-- What a forecast counts and what `expires_before` pages through: devices that can still connect.
CREATE INDEX device_by_expiry ON device (expires_at, id)
    WHERE expires_at IS NOT NULL AND state NOT IN ('revoked', 'retired');

-- Each tag and each group of a device once more, to be found by. A group stands under the key ''.
CREATE TABLE device_tag (
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    device_id TEXT NOT NULL REFERENCES device (id),
    PRIMARY KEY (key, value, device_id)
) STRICT, WITHOUT ROWID;

-- Serial numbers take 20 octets instead of 40 digits, in the row and in its index.
CREATE TABLE credential_0002 (
    seq         INTEGER PRIMARY KEY,
    fingerprint BLOB NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    serial      BLOB NOT NULL UNIQUE CHECK (length(serial) BETWEEN 1 AND 20),
    kind        TEXT NOT NULL CHECK (kind IN ('device', 'station', 'operator')),
    holder      TEXT NOT NULL,
    key_sha256  BLOB NOT NULL CHECK (length(key_sha256) = 32),
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('issued', 'active', 'superseded', 'revoked')),
    issued_at   INTEGER NOT NULL,
    der         BLOB NOT NULL,
    earned_by   TEXT NOT NULL -- the grant, in the audit's words
) STRICT;

INSERT INTO credential_0002
    SELECT seq, fingerprint, serial_octets(serial), kind, holder, key_sha256, not_before, not_after, state, issued_at,
           der, earned_by
    FROM credential;
DROP TABLE credential;
ALTER TABLE credential_0002 RENAME TO credential;

-- With the state in it, ending a holder's usable certificates never walks through the ones that ended long ago.
CREATE INDEX credential_by_holder ON credential (holder, kind, state);
-- A new key is in no row: the index alone says so.
CREATE INDEX credential_by_key ON credential (key_sha256);
-- What can be archived.
CREATE INDEX credential_by_expiry ON credential (not_after);

-- Keys of revoked certificates that have been archived: they never come back.
CREATE TABLE revoked_key (
    key_sha256 BLOB PRIMARY KEY CHECK (length(key_sha256) = 32),
    kind       TEXT NOT NULL,
    holder     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE operator (
    name       TEXT PRIMARY KEY,
    role       TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin', 'factory')),
    models     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE answer (
    actor          TEXT NOT NULL,
    key            TEXT NOT NULL,
    request_sha256 BLOB NOT NULL CHECK (length(request_sha256) = 32),
    status         INTEGER NOT NULL,
    body           TEXT NOT NULL,
    at             INTEGER NOT NULL,
    PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX answer_by_time ON answer (at);

-- A row's leaf covers its columns and its seq: fleet.domain.audit_log. Row 1 is the leaf of index 0.
CREATE TABLE audit_0002 (
    seq      INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    outcome  TEXT NOT NULL,
    address  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    leaf     BLOB NOT NULL
) STRICT;

INSERT INTO audit_0002
    SELECT seq, at, actor, action, subject, outcome, address, detail,
           audit_leaf(seq, at, actor, action, subject, outcome, address, detail)
    FROM audit;
DROP TABLE audit;
ALTER TABLE audit_0002 RENAME TO audit;

CREATE TABLE audit_head (
    size      INTEGER PRIMARY KEY,
    root      BLOB NOT NULL CHECK (length(root) = 32),
    at        INTEGER NOT NULL,
    key_id    BLOB NOT NULL CHECK (length(key_id) = 32),
    signature BLOB NOT NULL
) STRICT;

-- Hashes of perfect subtrees that are whole: fleet.domain.audit_log.NODE_LEVELS.
CREATE TABLE audit_node (
    level INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    hash  BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

-- What it takes to go on from the largest head; one row.
CREATE TABLE audit_frontier (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    size   INTEGER NOT NULL,
    hashes BLOB NOT NULL
) STRICT;
