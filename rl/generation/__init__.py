"""Prompts in, scored batches out, as far ahead of the learner as `max_staleness` allows."""
