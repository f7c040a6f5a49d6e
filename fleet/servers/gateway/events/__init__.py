"""The registry's events: received, remembered, and what they do to the broker's sessions."""
