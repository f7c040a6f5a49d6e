-- Hardware serials are compared as X.520's caseIgnoreMatch does: fleet.wire.hardware_serial. No unique index, as before: a
-- fleet may hold some twice.
ALTER TABLE device ADD COLUMN serial_key text COLLATE "C" GENERATED ALWAYS AS
    (trim(lower(replace(replace(replace(hardware_serial COLLATE "C", ' ', '<>'), '><', ''), '<>', ' ')))) STORED;
ALTER TABLE manifest ADD COLUMN serial_key text COLLATE "C" GENERATED ALWAYS AS
    (trim(lower(replace(replace(replace(hardware_serial COLLATE "C", ' ', '<>'), '><', ''), '<>', ' ')))) STORED;
DROP INDEX manifest_by_serial;
DROP INDEX device_by_serial;
CREATE INDEX manifest_by_serial ON manifest (serial_key, model) WHERE serial_key <> '';
CREATE INDEX device_by_serial ON device (serial_key, model) WHERE serial_key <> '';
