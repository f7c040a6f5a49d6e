"""The admin API: read the registry, change it, and follow its changes; JSON over HTTPS."""
