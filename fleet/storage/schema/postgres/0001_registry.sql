-- The registry. Times are bigint microseconds since 1970-01-01 UTC; lists and maps are JSON text, kept as it was
-- written. Names sort by their bytes, on every server alike.

CREATE TABLE model (
    name        text COLLATE "C" PRIMARY KEY,
    lifetime    bigint NOT NULL CHECK (lifetime > 0), -- of a certificate, microseconds
    key_types   text NOT NULL,
    publish     text NOT NULL,
    subscribe   text NOT NULL,
    retain      smallint NOT NULL CHECK (retain IN (0, 1))
);

CREATE TABLE device (
    id              text COLLATE "C" PRIMARY KEY,
    model           text COLLATE "C" NOT NULL REFERENCES model (name),
    state           text NOT NULL CHECK (state IN ('registered', 'active', 'suspended', 'revoked', 'retired')),
    created_at      bigint NOT NULL,
    hardware_serial text NOT NULL
);

CREATE INDEX device_by_model ON device (model, id);
-- Nearly all devices are active: finding those needs no index, and an enrollment is spared two random pages of one.
CREATE INDEX device_by_state ON device (state, id) WHERE state <> 'active';

-- seq is the order of issue to one holder: it stands in for issued_at wherever two were issued in one microsecond.
CREATE TABLE credential (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    serial      text COLLATE "C" NOT NULL UNIQUE,
    kind        text NOT NULL CHECK (kind IN ('device', 'station')),
    holder      text COLLATE "C" NOT NULL,
    key_sha256  bytea NOT NULL CHECK (length(key_sha256) = 32),
    not_before  bigint NOT NULL,
    not_after   bigint NOT NULL,
    state       text NOT NULL CHECK (state IN ('issued', 'active', 'superseded', 'revoked')),
    issued_at   bigint NOT NULL,
    der         bytea NOT NULL,
    earned_by   text NOT NULL -- the grant, in the audit's words
);

-- With the state in it, ending a holder's usable certificates never walks through the ones that ended long ago.
CREATE INDEX credential_by_holder ON credential (holder, kind, state, seq);
-- Whose a key is, or was, is answered from this index alone.
CREATE INDEX credential_by_key ON credential (key_sha256, kind, holder, state);

CREATE TABLE token (
    seq           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            text COLLATE "C" NOT NULL UNIQUE,
    secret_sha256 bytea NOT NULL CHECK (length(secret_sha256) = 32),
    device_id     text COLLATE "C",
    model         text COLLATE "C" REFERENCES model (name),
    uses_max      bigint NOT NULL CHECK (uses_max >= 1),
    uses          bigint NOT NULL CHECK (uses BETWEEN 0 AND uses_max),
    created_at    bigint NOT NULL,
    expires_at    bigint NOT NULL,
    revoked_at    bigint,
    CHECK ((device_id IS NULL) <> (model IS NULL))
);

CREATE TABLE station (
    name       text COLLATE "C" PRIMARY KEY,
    models     text NOT NULL,
    created_at bigint NOT NULL
);

-- Each row's hash covers its own columns, its seq and the hash before it: fleet.domain.audit_chain.
CREATE TABLE audit (
    seq      bigint PRIMARY KEY,
    at       bigint NOT NULL,
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  text NOT NULL,
    outcome  text NOT NULL,
    address  text NOT NULL,
    detail   text NOT NULL,
    previous bytea NOT NULL,
    hash     bytea NOT NULL
);

-- The change feed. Sequence order is commit order, without gaps: whoever numbers rows holds one lock until its COMMIT.
CREATE TABLE event (
    seq     bigint PRIMARY KEY,
    kind    text NOT NULL,
    subject text NOT NULL,
    detail  text NOT NULL
);

-- The last batch that each writer has committed: how one that lost the answer to its COMMIT finds out.
CREATE TABLE writer (
    id    bytea PRIMARY KEY,
    batch bytea NOT NULL,
    seen  timestamptz NOT NULL DEFAULT now()
);
