"""Tasks with data from PyPI or generated: each file has rows and their `to_prompt`."""
