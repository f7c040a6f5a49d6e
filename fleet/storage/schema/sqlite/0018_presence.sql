-- Who is connected: the last session of each client id, and the processes that hold sessions (fleet.domain.presence).
CREATE TABLE mqtt_session (
    device_id    TEXT NOT NULL,
    client_id    TEXT NOT NULL,
    connected_at INTEGER NOT NULL,
    seen_at      INTEGER NOT NULL,
    ended_at     INTEGER,
    reason       TEXT NOT NULL,
    address      TEXT NOT NULL,
    node         TEXT NOT NULL,
    run          TEXT NOT NULL,
    mqtt         TEXT NOT NULL,
    tls          TEXT NOT NULL,
    tls_group    TEXT NOT NULL,
    PRIMARY KEY (device_id, client_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE gateway_run (
    run     TEXT PRIMARY KEY,
    node    TEXT NOT NULL,
    worker  INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
