"""The running service: start-up and shutdown, worker processes, listeners, background jobs."""
