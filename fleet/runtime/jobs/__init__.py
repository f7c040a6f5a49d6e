"""Jobs of a served home, one a file: what runs beside the listeners, at intervals or after events."""
