"""Supervised learning before RL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl.sft.train import cold_start, supervise

__all__ = ["cold_start", "supervise"]


def __getattr__(name: str) -> Any:
    """Loads the loop, and with it torch, when it is first asked for: options do without."""
    if name in __all__:
        from rl.sft import train

        return getattr(train, name)
    raise AttributeError(f"module 'rl.sft' has no attribute {name!r}")
