"""Scripts to run and to copy: `python -m recipes.digit_sums --help`."""

import rl  # noqa: F401  sets OpenMP's wait policy before a recipe imports torch
