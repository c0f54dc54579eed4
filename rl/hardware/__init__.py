"""GPU placement, memory plans, and presets for the published sizes."""
