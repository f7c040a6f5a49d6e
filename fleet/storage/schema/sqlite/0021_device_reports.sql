-- The last report of each device's agent, signed with its key (fleet.domain.device_report).
CREATE TABLE device_report (
    device_id   TEXT PRIMARY KEY,
    received_at INTEGER NOT NULL,
    serial      TEXT NOT NULL,
    text        TEXT NOT NULL,
    signature   BLOB NOT NULL
) STRICT, WITHOUT ROWID;
