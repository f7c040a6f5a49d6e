-- The newest move of each device out of service: when, by whom and why.
CREATE TABLE state_change (
    device_id TEXT PRIMARY KEY REFERENCES device (id),
    state     TEXT NOT NULL CHECK (state IN ('suspended', 'revoked', 'retired')),
    at        INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    reason    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
