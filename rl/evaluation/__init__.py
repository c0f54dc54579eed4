"""Several sampled answers to each prompt: avg@K, pass@k, majority@K."""
