"""The agent as a service of its machine: log, systemd, deployment of a certificate, diagnosis, reset."""
