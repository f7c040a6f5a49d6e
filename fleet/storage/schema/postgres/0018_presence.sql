-- Who is connected: the last session of each client id, and the processes that hold sessions (fleet.domain.presence).
CREATE TABLE mqtt_session (
    device_id    text COLLATE "C" NOT NULL,
    client_id    text COLLATE "C" NOT NULL,
    connected_at bigint NOT NULL,
    seen_at      bigint NOT NULL,
    ended_at     bigint,
    reason       text NOT NULL,
    address      text NOT NULL,
    node         text NOT NULL,
    run          text COLLATE "C" NOT NULL,
    mqtt         text NOT NULL,
    tls          text NOT NULL,
    tls_group    text NOT NULL,
    PRIMARY KEY (device_id, client_id)
);

CREATE TABLE gateway_run (
    run     text COLLATE "C" PRIMARY KEY,
    node    text NOT NULL,
    worker  bigint NOT NULL,
    seen_at bigint NOT NULL
);
