"""What the factory runs: provisioning over a serial line, and tools for firmware authors. See README.md."""
