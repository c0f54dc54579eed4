"""Ray calls whose errors are readable and keep their meaning: what failed in the other process, without Ray's traceback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from rollout.types import EngineFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAddress:
    """An engine as other processes than the driver's call it."""

    name: str
    """Unique among all engines."""
    node: str
    """The Ray node's id."""
    actor: ActorHandle
    """The actor that owns the engine."""

    def call(self, method: str, *args: Any) -> ray.ObjectRef:
        """Starts a call of one of the engine's methods."""
        return self.actor.call.remote(method, *args)


def ray_get(calls: Any) -> Any:
    """Returns what `ray.get` does. Raises `readable_error` instead of Ray's errors."""
    try:
        return ray.get(calls)
    except ray.exceptions.RayError as error:
        raise readable_error(error) from error


async def ray_answer(call: ray.ObjectRef) -> Any:
    """Awaits a call. Raises `readable_error` instead of Ray's errors."""
    try:
        return await call
    except ray.exceptions.RayError as error:
        raise readable_error(error) from error


def readable_error(error: Exception) -> Exception:
    """Returns the error of the other process without Ray's traceback, or EngineFailed if that process has died."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return picklable_error(error.cause)
    if isinstance(error, ray.exceptions.RayError):
        return EngineFailed(
            f"a worker process died: {error}\nIts last output is in Ray's session logs; the usual reason is memory "
            "(lower rollout.kv_cache_gib, rollout.max_model_len or learner.microbatch_tokens)"
        )
    return error


def picklable_error(error: Exception) -> Exception:
    """Returns an error that can be sent to the driver. vLLM's own classes cannot be unpickled there, so only their text is kept."""
    for kind in (EngineFailed, ValueError):  # a ValueError is a user's mistake that shows only in the engine
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
