"""EST as a client (RFC 7030), for the device agent and the factory station."""
