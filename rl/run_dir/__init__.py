"""What a run leaves in its folder: metrics, samples, checkpoints, summary."""
