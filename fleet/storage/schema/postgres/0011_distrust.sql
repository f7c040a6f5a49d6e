-- Rules that refuse certificates by what they are: fleet.domain.distrust.
CREATE TABLE distrust (
    id            text COLLATE "C" PRIMARY KEY,
    issued_before bigint NOT NULL,
    created_at    bigint NOT NULL,
    model         text NOT NULL, -- '' for all
    authority     bytea NOT NULL, -- key identifier of the CA that signed; empty for any
    key_type      text NOT NULL, -- '' for any
    issued_from   bigint,
    refuses       smallint NOT NULL CHECK (refuses IN (0, 1)),
    may_renew     smallint NOT NULL CHECK (may_renew IN (0, 1)),
    spread        bigint NOT NULL,
    matched       bigint NOT NULL,
    created_by    text NOT NULL,
    reason        text NOT NULL
);
