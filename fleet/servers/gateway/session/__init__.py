"""One device's connection: CONNECT, admission, the broker's connection, relaying, close."""
