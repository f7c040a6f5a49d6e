-- What gives way when there is no room for all requests is weighed by larger parts of the address space first.
ALTER TABLE approval_request ADD COLUMN region TEXT NOT NULL DEFAULT ''; -- an IPv4 /16, an IPv6 /32; '' as the block
