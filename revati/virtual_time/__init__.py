"""Virtual time: what the host's work costs, and whose clock moves."""
