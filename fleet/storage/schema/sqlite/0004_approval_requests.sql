-- Requests for a first certificate that wait for an operator: fleet.domain.approval.
CREATE TABLE approval_request (
    id         TEXT PRIMARY KEY,
    device_id  TEXT NOT NULL,
    model      TEXT NOT NULL REFERENCES model (name),
    key_sha256 BLOB NOT NULL CHECK (length(key_sha256) = 32),
    key_type   TEXT NOT NULL,
    facts      TEXT NOT NULL,
    address    TEXT NOT NULL,
    network    TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    asked      INTEGER NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'issued')),
    decided_by TEXT NOT NULL,
    decided_at INTEGER,
    reason     TEXT NOT NULL,
    revision   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX approval_request_by_device ON approval_request (device_id);
CREATE INDEX approval_request_by_state ON approval_request (state, model, network);
CREATE INDEX approval_request_by_expiry ON approval_request (expires_at);
