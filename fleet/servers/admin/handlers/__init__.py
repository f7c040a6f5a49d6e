"""The routes of the API by subject: each handler beside its method, path and permission."""
