"""Jobs of a served home: audit sealing, retention, server certificate, trust anchors, revocation journal."""
