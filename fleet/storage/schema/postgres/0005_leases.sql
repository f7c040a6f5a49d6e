-- Which node at a time does what only one may do: fleet.domain.lease.
CREATE TABLE lease (
    name       text COLLATE "C" PRIMARY KEY,
    owner      text NOT NULL,
    expires_at bigint NOT NULL
);
