"""Scripts to run and to copy: `python -m recipes.digit_sums --help`."""

import os

# As in rl/: OpenMP reads this when torch loads, and a recipe may import torch before anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
