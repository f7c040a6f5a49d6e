"""A new certificate: the child process that gets it, the proof that follows, and when."""
