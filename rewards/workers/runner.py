"""Scoring in worker processes: one that hangs or dies twice costs one completion its verdict, and never the run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import wait
from threading import Thread
from typing import Self

import cloudpickle

from rewards.types import Score, Verifier
from rewards.workers.call import describe, reward_name
from rewards.workers.process import WorkerProcess
from rollout.types import Completion, Group

LOADING_LIMIT = 120.0  # seconds for a worker to start and to import what the reward needs
CLOSED = "this RewardRunner is closed; make a new one"
FIRST_CALL_EXTRA = 30.0  # seconds more for a verifier's first call in a worker, in which it imports its libraries


@dataclass(slots=True, eq=False)
class _Task:
    """One group to score. One worker at a time has it, so its scores come in order."""

    group: Group
    future: Future[list[Score]]
    scores: list[Score] = field(default_factory=list)
    """Scores known so far, in the order of the completions."""
    num_timeouts: int = 0
    """Calls that took too long, without the one that was made again."""
    has_tried_again: bool = False
    """True after the first call that has hung or has lost its worker."""

    @property
    def remaining(self) -> Sequence[Completion]:
        return self.group.completions[len(self.scores) :]

    def finish(self, error: Exception | None = None) -> None:
        """Resolves the future with the scores, or with an error; does nothing if it is resolved or cancelled."""
        if self.future.cancelled() or self.future.done():
            return
        with suppress(InvalidStateError):  # cancelled by its owner just now
            if error is None:
                # No more than a wrong response earns, or a policy would learn to make verifiers hang.
                lowest = min((score.reward for score in self.scores if score.problem is None), default=0.0)
                as_wrong = min(0.0, lowest)
                self.future.set_result(
                    [score if score.timeout is None else replace(score, reward=as_wrong) for score in self.scores]
                )
            else:
                self.future.set_exception(error)


@dataclass(slots=True)
class WorkerSlot:
    """A slot for one worker, which is loading the reward, scoring a group, or idle."""

    worker: WorkerProcess | None = None
    is_loaded: bool = False
    is_group_reward: bool = False
    """One call scores a whole group."""
    has_scored: bool = False
    is_replacement: bool = False
    """The worker replaces one that hung or died. Its first call is one of an empty response, for the imports."""
    is_warming_up: bool = False
    task: _Task | None = None
    deadline: float = 0.0
    """`time.monotonic()` at which loading, or the current call, has taken too long."""

    def start(self, start_worker: Callable[[], WorkerProcess]) -> None:
        self.worker, self.is_loaded, self.has_scored, self.is_warming_up = start_worker(), False, False, False
        self.deadline = time.monotonic() + LOADING_LIMIT

    def stop(self) -> None:
        if self.worker:
            self.worker.kill()
        self.worker, self.task = None, None

    @property
    def is_busy(self) -> bool:
        return self.worker is not None and (not self.is_loaded or self.task is not None)


class RewardRunner:
    """Scores groups with a reward function, in worker processes of one thread each.

    The first call of a group that hangs, or loses its worker, is made again in a new worker: the machine may be the cause. Any
    other response whose call hangs counts as wrong, with the reason in `Score.timeout`. One whose worker dies gets no verdict, with
    the reason in `Score.error`. Then the next one is scored. Exceptions and bad values become errors of scores at once. A reward
    that is async or `of_group` is one call for a whole group. Use the runner as a context
    manager, or call `close`. Any thread may submit groups.
    """

    def __init__(
        self,
        reward: Verifier,
        *,
        num_workers: int = 1,
        timeout: float = 10.0,
        memory_gib: float = 0.0,
        num_cached: int = 0,
    ) -> None:
        """Starts the workers without waiting for them.

        Args:
            reward: The function. cloudpickle sends it to the workers, so it may be a closure, a lambda or defined in the main
                script. `rewards.loading.load_reward` loads one from a file.
            num_workers: Processes; groups are spread over them, and the completions of a group stay together.
            timeout: Seconds that one call may take; `FIRST_CALL_EXTRA` more for the first call of each part of the reward in
                each worker.
            memory_gib: GiB of memory that a worker may allocate after loading the reward; 0: any. Beyond, Python raises a
                MemoryError, which costs one score.
            num_cached: Scores that each worker caches, for completions that come twice.

        Raises:
            ValueError: An argument is out of range, or the reward cannot be pickled.
        """
        if not callable(reward):
            raise ValueError(f"a reward must be a function of (prompt, completion), got {reward!r}")
        if num_workers < 1:
            raise ValueError(f"num_workers must be >= 1, got {num_workers}")
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        self._name, self._timeout = reward_name(reward), timeout
        try:
            pickled = cloudpickle.dumps(reward)
        except Exception as error:
            message = f"reward {self._name!r} cannot be sent to a worker process: {describe(error)}"
            raise ValueError(
                f"{message}; create the objects that it holds inside the function, at its first call"
            ) from error
        if not memory_gib >= 0:
            raise ValueError(f"memory_gib must be >= 0, got {memory_gib}")
        memory = int(memory_gib * 2**30)
        self._start_worker = partial(WorkerProcess, pickled, memory=memory, num_cached=num_cached)
        self._slots = [WorkerSlot() for _ in range(num_workers)]
        for slot in self._slots:
            slot.start(self._start_worker)
        self._queue: deque[_Task] = deque()
        self._is_open = True
        self._wake_receiver, self._wake_sender = Pipe(duplex=False)
        self._thread = Thread(target=self._serve, name="rewards", daemon=True)
        self._thread.start()

    def submit(self, group: Group) -> Future[list[Score]]:
        """Queues a group; groups are scored first in, first out.

        Returns:
            A future of the scores of all completions, in their order. It raises ValueError if the reward cannot be loaded in a
            worker process, or if the runner is closed meanwhile. Cancelling it ends the call.

        Raises:
            ValueError: The runner is closed.
        """
        if not self._is_open:
            raise ValueError(CLOSED)
        task = _Task(group=group, future=Future())
        task.future.add_done_callback(lambda future: self._wake() if future.cancelled() else None)
        self._queue.append(task)
        self._wake()
        return task.future

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Scores every completion of some groups.

        Returns:
            [groups][completions], in their order.

        Raises:
            ValueError: The reward cannot be loaded in a worker process, or the runner is closed.
        """
        if not self._is_open:
            raise ValueError(CLOSED)
        futures = [self.submit(group) for group in groups]
        try:
            return [future.result() for future in futures]
        finally:  # after an interrupt, nobody waits for the rest
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Ends the workers and all that they have started; may be called twice."""
        self._is_open = False
        self._wake()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _wake(self) -> None:
        with suppress(OSError):  # the thread has ended
            self._wake_sender.send_bytes(b"")

    def _serve(self) -> None:
        """Runs in the runner's thread, which alone touches the slots."""
        try:
            while self._is_open:
                for slot in self._slots:
                    while self._queue and not slot.is_busy:
                        self._dispatch(slot)
                self._poll()
        finally:
            for task in [*self._queue, *(slot.task for slot in self._slots if slot.task)]:
                task.finish(ValueError(CLOSED))
            for slot in self._slots:
                slot.stop()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _dispatch(self, slot: WorkerSlot) -> None:
        """Sends the next group to an idle worker; replaces a worker that has died in the meantime."""
        if slot.worker is None or slot.worker.has_ended():
            slot.stop()
            slot.start(self._start_worker)
            return
        task = self._queue.popleft()
        if task.future.cancelled() or not task.remaining:
            task.finish()
            return
        slot.is_warming_up = slot.is_replacement and not slot.has_scored
        self._send(slot, task, [replace(task.remaining[0], text="")] if slot.is_warming_up else task.remaining)

    def _send(self, slot: WorkerSlot, task: _Task, completions: Sequence[Completion]) -> None:
        """Sends completions of a group to the slot's worker."""
        assert slot.worker is not None
        try:
            slot.worker.send(task.group.prompt, completions)
        except Exception as error:
            message = f"prompt {task.group.prompt.id!r} cannot be sent to a reward worker: {describe(error)}"
            task.scores += [Score(reward=0.0, error=message) for _ in task.remaining]
            task.finish()
            slot.task = None
            return
        slot.task = task
        slot.deadline = time.monotonic() + self._limit(slot) + (0.0 if slot.has_scored else _first_call_extra(slot))

    def _limit(self, slot: WorkerSlot) -> float:
        """Returns the seconds of a call. Each one of its group that counts as too long halves them: all cost three limits."""
        assert slot.task is not None
        return self._timeout / 2**slot.task.num_timeouts

    def _poll(self) -> None:
        """Waits for a wake-up, a message from a worker, the end of a worker, or a deadline, and handles it."""
        busy = {slot.worker.connection: slot for slot in self._slots if slot.worker and slot.is_busy}
        first = min((slot.deadline for slot in busy.values()), default=None)
        ready = wait([self._wake_receiver, *busy], None if first is None else max(first - time.monotonic(), 0.0))
        while self._wake_receiver.poll():
            self._wake_receiver.recv_bytes()
        for connection, slot in busy.items():
            if slot.task is not None and slot.task.future.cancelled():
                slot.stop()  # its scores must not be taken for those of the next group
            elif connection in ready:
                self._receive(slot)
            elif time.monotonic() >= slot.deadline:
                limit = self._limit(slot) if slot.task is not None else LOADING_LIMIT
                self._fail_call(slot, f"took longer than {limit:g} s", is_timeout=True)

    def _receive(self, slot: WorkerSlot) -> None:
        assert slot.worker is not None
        try:
            message = slot.worker.receive()
        except (OSError, EOFError):
            self._fail_call(slot, f"ended its process ({slot.worker.kill()})")
            return
        if isinstance(message, str):
            self._fail_all(slot, f"reward {self._name!r} cannot be loaded in a worker process: {message}")
        elif isinstance(message, bool):
            slot.is_loaded, slot.is_group_reward = True, message
        elif message is None:
            slot.deadline = time.monotonic() + self._limit(slot) + _first_call_extra(slot)
        elif slot.is_warming_up:
            assert slot.task is not None
            slot.has_scored, slot.is_warming_up = True, False
            self._send(slot, slot.task, slot.task.remaining)
        else:
            task = slot.task
            assert task is not None
            task.scores += message
            slot.has_scored, slot.deadline = True, time.monotonic() + self._limit(slot)
            if not task.remaining:
                slot.task = None
                task.finish()

    def _fail_call(self, slot: WorkerSlot, reason: str, *, is_timeout: bool = False) -> None:
        """Ends a worker that hangs or has died, and queues the rest of its group again.

        The group's first such call is made again. Later, a call of one response that took too long is the response's fault: it
        counts as wrong. Any other has an error.
        """
        task, message = slot.task, f"reward {self._name!r} {reason}"
        if task is None:
            self._fail_all(slot, f"{message} while it was being loaded in a worker process")
            return
        was_warming_up = slot.is_warming_up
        slot.stop()
        slot.is_replacement = not was_warming_up
        self._queue.appendleft(task)  # `_dispatch` finishes it if nothing remains
        if was_warming_up:
            return
        if not task.has_tried_again:
            task.has_tried_again = True
            return
        message = f"{message} for prompt {task.group.prompt.id!r}"
        if is_timeout and not slot.is_group_reward:
            score = Score(reward=0.0, timeout=message, failed=self._name)
            task.num_timeouts += 1
        else:
            score = Score(reward=0.0, error=message, failed=self._name)
        task.scores += [score] * (len(task.remaining) if slot.is_group_reward else 1)

    def _fail_all(self, slot: WorkerSlot, message: str) -> None:
        """Fails all queued groups, as the reward cannot be loaded; the next group starts a new attempt."""
        slot.stop()
        waiting, self._queue = list(self._queue), deque()
        for task in waiting:
            task.finish(ValueError(message))


def _first_call_extra(slot: WorkerSlot) -> float:
    """Returns the seconds for imports. A replacement gets fewer: a response that hangs would cost them again and again."""
    return FIRST_CALL_EXTRA / 6 if slot.is_replacement else FIRST_CALL_EXTRA
