"""What `make bench` runs: every speed claim of this project, against a peer."""
