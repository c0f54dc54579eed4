"""The two sides of `bench.step`, which compares a training step with TRL's."""
