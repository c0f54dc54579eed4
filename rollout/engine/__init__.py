"""One vLLM engine, in its own process."""
