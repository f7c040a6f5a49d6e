-- The last report of each device's agent, signed with its key (fleet.domain.device_report).
CREATE TABLE device_report (
    device_id   text COLLATE "C" PRIMARY KEY,
    received_at bigint NOT NULL,
    serial      text NOT NULL,
    text        text NOT NULL,
    signature   bytea NOT NULL
);
