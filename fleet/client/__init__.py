"""The client of the admin API, over HTTPS or in process at a home."""
