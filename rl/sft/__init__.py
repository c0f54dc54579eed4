"""Supervised learning before RL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.sft.small_policy import cold_start, with_start_policy
    from rl.sft.train import supervise

__all__ = ["cold_start", "supervise", "with_start_policy"]


def __getattr__(name: str) -> Any:
    """Imports the loop, and with it torch, on first use: options work without torch."""
    if name == "supervise":
        from rl.sft.train import supervise

        return supervise
    if name in __all__:
        from rl.sft import small_policy

        return getattr(small_policy, name)
    raise AttributeError(f"module 'rl.sft' has no attribute {name!r}")
