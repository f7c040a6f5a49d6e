-- Whose requests give way when there is no room: those of the address block that has most.
ALTER TABLE approval_request ADD COLUMN block TEXT NOT NULL DEFAULT ''; -- an IPv4 /24, an IPv6 /48
UPDATE approval_request SET block = network;
