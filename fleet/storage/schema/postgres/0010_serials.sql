-- A hardware serial is unique among the devices of a model that are not revoked or retired, however they came in. No
-- unique index: before this, `device add` took any, and a fleet may hold some twice.
DROP INDEX manifest_by_serial;
CREATE INDEX manifest_by_serial ON manifest (hardware_serial, model) WHERE hardware_serial <> '';
CREATE INDEX device_by_serial ON device (hardware_serial, model) WHERE hardware_serial <> '';
