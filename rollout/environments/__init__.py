"""Episodes of several turns, and ready-made environments."""

from rollout.environments.tools import Calculator, GuessNumber, ZoomTool

__all__ = ["Calculator", "GuessNumber", "ZoomTool"]
