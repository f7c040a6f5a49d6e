-- The registry. Times are bigint microseconds since 1970-01-01 UTC; lists and maps are JSON text, kept as it was
-- written. Names sort by their octets, on every server alike.

CREATE TABLE model (
    name        text COLLATE "C" PRIMARY KEY,
    lifetime    bigint NOT NULL CHECK (lifetime > 0), -- of a certificate, microseconds
    key_types   text NOT NULL,
    publish     text NOT NULL,
    subscribe   text NOT NULL,
    retain      smallint NOT NULL CHECK (retain IN (0, 1)),
    revision    bigint NOT NULL
);

CREATE TABLE device (
    id              text COLLATE "C" PRIMARY KEY,
    model           text COLLATE "C" NOT NULL REFERENCES model (name),
    state           text NOT NULL CHECK (state IN ('registered', 'active', 'suspended', 'revoked', 'retired')),
    created_at      bigint NOT NULL,
    hardware_serial text NOT NULL,
    expires_at      bigint, -- of its newest certificate
    tags            text NOT NULL,
    groups          text NOT NULL,
    revision        bigint NOT NULL
);

CREATE INDEX device_by_model ON device (model, id);
-- Nearly all devices are active: finding those needs no index, and an enrollment is spared two random pages of one.
CREATE INDEX device_by_state ON device (state, id) WHERE state <> 'active';
-- What a forecast counts and what `expires_before` pages through: devices that can still connect.
CREATE INDEX device_by_expiry ON device (expires_at, id)
    WHERE expires_at IS NOT NULL AND state NOT IN ('revoked', 'retired');

-- Each tag and each group of a device once more, to be found by. A group stands under the key ''.
CREATE TABLE device_tag (
    key       text COLLATE "C" NOT NULL,
    value     text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL REFERENCES device (id),
    PRIMARY KEY (key, value, device_id)
);
CREATE INDEX device_tag_by_device ON device_tag (device_id);

-- seq is the order of issue to one holder: it stands in for issued_at wherever two were issued in one microsecond.
CREATE TABLE credential (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    serial      bytea NOT NULL UNIQUE CHECK (length(serial) BETWEEN 1 AND 20),
    kind        text NOT NULL CHECK (kind IN ('device', 'station', 'operator')),
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
-- A new key is in no row: the index alone says so.
CREATE INDEX credential_by_key ON credential (key_sha256);
-- What can be archived.
CREATE INDEX credential_by_expiry ON credential (not_after);

-- Keys of revoked certificates that have been archived: they never come back.
CREATE TABLE revoked_key (
    key_sha256 bytea PRIMARY KEY CHECK (length(key_sha256) = 32),
    kind       text NOT NULL,
    holder     text NOT NULL
);

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

CREATE TABLE operator (
    name       text COLLATE "C" PRIMARY KEY,
    role       text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin', 'factory')),
    models     text NOT NULL,
    created_at bigint NOT NULL
);

CREATE TABLE answer (
    actor          text NOT NULL,
    key            text NOT NULL,
    request_sha256 bytea NOT NULL CHECK (length(request_sha256) = 32),
    status         integer NOT NULL,
    body           text NOT NULL,
    at             bigint NOT NULL,
    PRIMARY KEY (actor, key)
);
CREATE INDEX answer_by_time ON answer (at);

-- A row's leaf covers its columns and its seq: fleet.domain.audit_log. Row 1 is the leaf of index 0.
CREATE TABLE audit (
    seq      bigint PRIMARY KEY,
    at       bigint NOT NULL,
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  text NOT NULL,
    outcome  text NOT NULL,
    address  text NOT NULL,
    detail   text NOT NULL,
    leaf     bytea NOT NULL
);

CREATE TABLE audit_head (
    size      bigint PRIMARY KEY,
    root      bytea NOT NULL CHECK (length(root) = 32),
    at        bigint NOT NULL,
    key_id    bytea NOT NULL CHECK (length(key_id) = 32),
    signature bytea NOT NULL
);

-- Hashes of perfect subtrees that are whole: fleet.domain.audit_log.NODE_LEVELS.
CREATE TABLE audit_node (
    level integer NOT NULL,
    idx   bigint NOT NULL,
    hash  bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
);

-- What it takes to go on from the largest head; one row.
CREATE TABLE audit_frontier (
    one    integer PRIMARY KEY CHECK (one = 1),
    size   bigint NOT NULL,
    hashes bytea NOT NULL
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
