"""Broker authentication: RabbitMQ and EMQX, which end TLS with devices themselves, ask what each of them may do."""
