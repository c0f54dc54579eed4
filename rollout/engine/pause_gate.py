"""A gate that many pass at a time, and that can be shut until nobody is on the way through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Those who pass and those who shut never meet. All of it happens in one event loop."""

    def __init__(self) -> None:
        self._is_open, self._is_empty = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._is_empty.set()
        self._num_passing = 0

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Waits while the gate is shut; others may pass at the same time."""
        while not self._is_open.is_set():  # it may be shut again before this wakes up
            await self._is_open.wait()
        self._num_passing += 1
        self._is_empty.clear()
        try:
            yield
        finally:
            self._num_passing -= 1
            if not self._num_passing:
                self._is_empty.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Lets nobody in, and waits for those who are on the way through; one may shut it at a time."""
        assert self._is_open.is_set(), "the gate is shut already"
        self._is_open.clear()
        try:
            await self._is_empty.wait()
            yield
        finally:
            self._is_open.set()
