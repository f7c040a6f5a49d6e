"""Forward authentication: a reverse proxy asks, for each HTTP request, whether the device that it saw may go on."""
