"""Known faults of implementations of SAPO, found in any function with `sapo_loss`'s signature.

    python -m rl.objectives.faults my_loss.py:sapo

`find_faults(objective)` returns the same results in Python.
"""

from rl.objectives.faults.checks import CHECKS, Check
from rl.objectives.faults.find import Result, find_faults
from rl.objectives.faults.subject import Comparison

__all__ = ["CHECKS", "Check", "Comparison", "Result", "find_faults"]
