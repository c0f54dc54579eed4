"""The files in a run's folder: metrics, samples, checkpoints, summary."""
