-- When and why each device was last refused (fleet.domain.device_refusal).
CREATE TABLE device_refusal (
    device_id  TEXT PRIMARY KEY,
    refused_at INTEGER NOT NULL,
    action     TEXT NOT NULL,
    code       TEXT NOT NULL,
    address    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
