"""The factory's serial protocol: frames, messages and both sides of the dialogue. PROTOCOL.md is its specification."""
