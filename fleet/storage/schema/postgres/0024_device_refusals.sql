-- When and why each device was last refused (fleet.domain.device_refusal).
CREATE TABLE device_refusal (
    device_id  text COLLATE "C" PRIMARY KEY,
    refused_at bigint NOT NULL,
    action     text NOT NULL,
    code       text NOT NULL,
    address    text NOT NULL
);
