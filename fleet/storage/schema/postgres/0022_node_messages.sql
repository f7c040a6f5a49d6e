-- Messages of the fleet that wait for seconds at the node where the device is connected (fleet.domain.node_messages).
CREATE TABLE node_message (
    id         text COLLATE "C" PRIMARY KEY,
    node       text NOT NULL,
    topic      text NOT NULL,
    payload    bytea NOT NULL,
    expires_at bigint NOT NULL,
    answer     text NOT NULL
);
