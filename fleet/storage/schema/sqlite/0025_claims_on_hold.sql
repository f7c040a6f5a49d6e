-- A claim's certificate is on hold in CRLs from its issue on: a whole batch has its key.
INSERT INTO revoked (serial, not_after, revoked_at, reason)
SELECT serial, not_after, not_before, 6 FROM credential WHERE kind = 'claim'
ON CONFLICT DO NOTHING;
