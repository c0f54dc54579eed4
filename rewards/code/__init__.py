"""Programs, tested by running them in a sandbox."""
