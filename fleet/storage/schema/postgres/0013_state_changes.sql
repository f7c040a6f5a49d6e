-- The newest move of each device out of service: when, by whom and why.
CREATE TABLE state_change (
    device_id text COLLATE "C" PRIMARY KEY REFERENCES device (id),
    state     text NOT NULL CHECK (state IN ('suspended', 'revoked', 'retired')),
    at        bigint NOT NULL,
    actor     text NOT NULL,
    reason    text NOT NULL
);
