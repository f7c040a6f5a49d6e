"""Programs on the device talk to the running agent over the Unix socket in its home. See README.md."""
