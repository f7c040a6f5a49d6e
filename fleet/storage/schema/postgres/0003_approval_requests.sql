-- Requests for a first certificate that wait for an operator: fleet.domain.approval.
CREATE TABLE approval_request (
    id         text COLLATE "C" PRIMARY KEY,
    device_id  text COLLATE "C" NOT NULL,
    model      text COLLATE "C" NOT NULL REFERENCES model (name),
    key_sha256 bytea NOT NULL CHECK (length(key_sha256) = 32),
    key_type   text NOT NULL,
    facts      text NOT NULL,
    address    text NOT NULL,
    network    text NOT NULL,
    first_seen bigint NOT NULL,
    last_seen  bigint NOT NULL,
    expires_at bigint NOT NULL,
    asked      bigint NOT NULL,
    state      text NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'issued')),
    decided_by text NOT NULL,
    decided_at bigint,
    reason     text NOT NULL,
    revision   bigint NOT NULL
);

CREATE INDEX approval_request_by_device ON approval_request (device_id);
CREATE INDEX approval_request_by_state ON approval_request (state, model, network);
CREATE INDEX approval_request_by_expiry ON approval_request (expires_at);
