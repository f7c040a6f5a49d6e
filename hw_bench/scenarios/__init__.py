"""What is measured: each module describes one run and carries it out."""
