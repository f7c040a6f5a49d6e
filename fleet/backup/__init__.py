"""Backup and restore of a home: one file, created while it is served; a restore keeps every revocation since."""
