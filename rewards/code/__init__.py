"""Programs, judged by running them in a sandbox."""
