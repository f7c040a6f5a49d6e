-- Rules that refuse certificates by what they are: fleet.domain.distrust.
CREATE TABLE distrust (
    id            TEXT PRIMARY KEY,
    issued_before INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    model         TEXT NOT NULL, -- '' for all
    authority     BLOB NOT NULL, -- key identifier of the CA that signed; empty for any
    key_type      TEXT NOT NULL, -- '' for any
    issued_from   INTEGER,
    refuses       INTEGER NOT NULL CHECK (refuses IN (0, 1)),
    may_renew     INTEGER NOT NULL CHECK (may_renew IN (0, 1)),
    spread        INTEGER NOT NULL,
    matched       INTEGER NOT NULL,
    created_by    TEXT NOT NULL,
    reason        TEXT NOT NULL
) STRICT, WITHOUT ROWID;
