-- More ways in: a manifest of devices that are expected, makers' CAs with what their certificates were used for, claim
-- certificates; and how many devices a station may provision in a day.

ALTER TABLE credential DROP CONSTRAINT credential_kind_check;
ALTER TABLE credential
    ADD CONSTRAINT credential_kind_check CHECK (kind IN ('device', 'station', 'operator', 'claim'));

CREATE TABLE manifest (
    device_id       text COLLATE "C" PRIMARY KEY REFERENCES device (id),
    model           text COLLATE "C" NOT NULL,
    hardware_serial text COLLATE "C" NOT NULL, -- '' for none
    key_sha256      bytea CHECK (length(key_sha256) = 32), -- of the SPKI that may enroll with no other proof
    row_sha256      bytea NOT NULL CHECK (length(row_sha256) = 32) -- of the row as it was imported
);
CREATE UNIQUE INDEX manifest_by_serial ON manifest (hardware_serial, model) WHERE hardware_serial <> '';
CREATE UNIQUE INDEX manifest_by_key ON manifest (key_sha256) WHERE key_sha256 IS NOT NULL;

CREATE TABLE claim (
    name              text COLLATE "C" PRIMARY KEY,
    model             text COLLATE "C" NOT NULL REFERENCES model (name),
    quota             bigint NOT NULL CHECK (quota >= 1),
    uses              bigint NOT NULL CHECK (uses BETWEEN 0 AND quota),
    created_at        bigint NOT NULL,
    expires_at        bigint NOT NULL,
    takeovers         bigint NOT NULL, -- identities of others that were asked for since it was last released
    quarantined_at    bigint,
    quarantine_reason text NOT NULL,
    revoked_at        bigint
);

-- Makers' CAs: whose certificates (IEEE 802.1AR) may earn a first one of ours.
CREATE TABLE anchor (
    name        text COLLATE "C" PRIMARY KEY,
    models      text NOT NULL,
    fingerprint bytea NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    der         bytea NOT NULL,
    created_at  bigint NOT NULL
);

-- One maker's certificate is one device, whatever becomes of the anchor.
CREATE TABLE idevid (
    key_sha256  bytea PRIMARY KEY CHECK (length(key_sha256) = 32),
    device_id   text COLLATE "C" NOT NULL UNIQUE,
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    anchor      text NOT NULL,
    bound_at    bigint NOT NULL
);

ALTER TABLE station ADD COLUMN quota bigint NOT NULL DEFAULT 0; -- certificates a day; 0: as many as it likes
ALTER TABLE station ADD COLUMN day bigint NOT NULL DEFAULT 0; -- the last on which it was counted, since 1970 in UTC
ALTER TABLE station ADD COLUMN used bigint NOT NULL DEFAULT 0; -- on that day
