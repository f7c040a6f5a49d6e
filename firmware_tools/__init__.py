"""What the factory runs: provisioning over a serial line, and tools for who writes a board's firmware. See README.md."""
