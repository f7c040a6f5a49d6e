-- What a token may do stands in it, and who made it: a right is judged when it is used.
ALTER TABLE token ADD COLUMN takes_over INTEGER NOT NULL DEFAULT 1 CHECK (takes_over IN (0, 1));
ALTER TABLE token ADD COLUMN made_by TEXT NOT NULL DEFAULT ''; -- in the audit's words; '' before this was kept
CREATE INDEX token_by_maker ON token (made_by) WHERE revoked_at IS NULL;
