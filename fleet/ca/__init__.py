"""Certification authority: keys, CA certificates, and the issuer that signs what was permitted."""
