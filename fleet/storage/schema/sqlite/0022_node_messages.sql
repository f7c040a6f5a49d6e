-- Messages of the fleet that wait for seconds at the node where the device is connected (fleet.domain.node_messages).
CREATE TABLE node_message (
    id         TEXT PRIMARY KEY,
    node       TEXT NOT NULL,
    topic      TEXT NOT NULL,
    payload    BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    answer     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
