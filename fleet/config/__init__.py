"""Settings of a home, read into frozen values, and the URL of its database."""
