"""The certification authority: keys, the certificates it stands on, and the issuer that signs what was permitted."""
