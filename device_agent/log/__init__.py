"""The log: events on standard error, or in the journal."""
