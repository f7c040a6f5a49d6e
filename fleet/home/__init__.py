"""A home: the folder with a fleet's settings, CAs, server certificate and registry."""
