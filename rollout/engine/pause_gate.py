"""A gate that many requests enter at once, and that a pause closes until none is inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PauseGate:
    """Many requests may enter at once. A pause waits for them and holds back new ones. For one event loop."""

    def __init__(self) -> None:
        self._is_open, self._is_empty = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._is_empty.set()
        self._num_inside = 0

    @asynccontextmanager
    async def entering(self) -> AsyncIterator[None]:
        """Waits while the gate is closed. Several may be inside at the same time."""
        while not self._is_open.is_set():  # another pause may close it before this coroutine runs
            await self._is_open.wait()
        self._num_inside += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._is_empty.set()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Closes the gate and waits until nobody is inside. Only one pause at a time."""
        assert self._is_open.is_set(), "the gate is already closed"
        self._is_open.clear()
        try:
            await self._is_empty.wait()
            yield
        finally:
            self._is_open.set()
