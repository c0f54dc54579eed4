"""Scoring in processes that may hang or die: one completion is lost then, and never the run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
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
    """One group to score, and what is known of it; its scores come in order, for one worker at a time has it."""

    group: Group
    future: Future[list[Score]]
    scores: list[Score] = field(default_factory=list)

    @property
    def remaining(self) -> Sequence[Completion]:
        return self.group.completions[len(self.scores) :]

    def finish(self, error: Exception | None = None) -> None:
        if self.future.cancelled() or self.future.done():
            return
        with suppress(InvalidStateError):  # cancelled by its owner just now
            if error is None:
                self.future.set_result(self.scores)
            else:
                self.future.set_exception(error)


@dataclass(slots=True)
class _Seat:
    """A place for a worker, and what the worker is at: loading the reward, scoring a group, or nothing."""

    worker: WorkerProcess | None = None
    is_loaded: bool = False
    together: bool = False  # whether one call scores a whole group
    has_scored: bool = False
    task: _Task | None = None
    deadline: float = 0.0  # time.monotonic() at which it has been loading, or in one call, for too long

    def start(self, start_worker: Callable[[], WorkerProcess]) -> None:
        self.worker, self.is_loaded, self.has_scored = start_worker(), False, False
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

    A call that hangs, and a worker that dies, cost the score of one completion, which then says so in `Score.error`;
    the worker is replaced and the next completion is scored. Exceptions and values that are no score end up there too. A reward
    that is async or `of_group` is one call for a whole group.
    Use it as a context manager, or call `close`. Any thread may submit groups.
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
        """Starts the workers, and does not wait for them.

        Args:
            reward: The function. cloudpickle sends it to the workers, so a function of the main script, a closure or a
                lambda will do; one from a file of its own comes from `rewards.loading.load_reward`.
            num_workers: Processes; groups are spread over them, and the completions of a group stay together.
            timeout: Seconds that one call may take, `FIRST_CALL_EXTRA` more for the first call of a worker, and of each part of
                the reward in it.
            memory_gib: Memory, in GiB, that a worker may take once it has loaded the reward; 0: any. Beyond, Python raises a
                MemoryError, which costs one verdict.
            num_cached: Verdicts that each worker keeps, for completions that come twice.

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
            told = f"reward {self._name!r} cannot be sent to a worker process: {describe(error)}"
            raise ValueError(f"{told}; create what it holds inside the function, at its first call") from error
        if not memory_gib >= 0:
            raise ValueError(f"memory_gib must be >= 0, got {memory_gib}")
        memory = int(memory_gib * 2**30)
        self._start_worker = partial(WorkerProcess, pickled, memory=memory, num_cached=num_cached)
        self._seats = [_Seat() for _ in range(num_workers)]
        for seat in self._seats:
            seat.start(self._start_worker)
        self._todo: deque[_Task] = deque()
        self._is_open = True
        self._bell, self._doorbell = Pipe(duplex=False)
        self._thread = Thread(target=self._serve, name="rewards", daemon=True)
        self._thread.start()

    def submit(self, group: Group) -> Future[list[Score]]:
        """Has a group scored, in the order in which groups come.

        Returns:
            The scores of its completions, in their order, when there are all. The future raises ValueError if the reward cannot be
            loaded in a worker process, or if the runner is closed meanwhile. Cancelling it ends the call.

        Raises:
            ValueError: The runner is closed.
        """
        if not self._is_open:
            raise ValueError(CLOSED)
        task = _Task(group=group, future=Future())
        task.future.add_done_callback(lambda future: self._ring() if future.cancelled() else None)
        self._todo.append(task)
        self._ring()
        return task.future

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Scores every completion, and returns when all are done.

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
        finally:  # after an interrupt nobody waits for the rest
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Ends the workers and whatever they have started; may be called twice."""
        self._is_open = False
        self._ring()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ring(self) -> None:
        with suppress(OSError):  # the thread has ended
            self._doorbell.send_bytes(b"")

    def _serve(self) -> None:
        """The thread in which everything happens: it alone touches the seats."""
        try:
            while self._is_open:
                for seat in self._seats:
                    while self._todo and not seat.is_busy:
                        self._hand_out(seat)
                self._listen()
        finally:
            for task in [*self._todo, *(seat.task for seat in self._seats if seat.task)]:
                task.finish(ValueError(CLOSED))
            for seat in self._seats:
                seat.stop()
            self._bell.close()
            self._doorbell.close()

    def _hand_out(self, seat: _Seat) -> None:
        """Gives an idle worker the next group; a worker that has died in the meantime is replaced first."""
        if seat.worker is None or seat.worker.has_ended():
            seat.stop()
            seat.start(self._start_worker)
            return
        task = self._todo.popleft()
        if task.future.cancelled() or not task.remaining:
            task.finish()
            return
        prompt, completions = task.group.prompt, task.remaining
        try:
            seat.worker.send(prompt, completions)
        except Exception as error:
            told = f"prompt {prompt.id!r} cannot be sent to a reward worker: {describe(error)}"
            task.scores += [Score(reward=0.0, error=told) for _ in completions]
            task.finish()
            return
        seat.task = task
        seat.deadline = time.monotonic() + self._timeout + (0.0 if seat.has_scored else FIRST_CALL_EXTRA)

    def _listen(self) -> None:
        """Waits until the bell rings, a worker says something or dies, or the time of one is over."""
        busy = {seat.worker.connection: seat for seat in self._seats if seat.worker and seat.is_busy}
        first = min((seat.deadline for seat in busy.values()), default=None)
        ready = wait([self._bell, *busy], None if first is None else max(first - time.monotonic(), 0.0))
        while self._bell.poll():
            self._bell.recv_bytes()
        for connection, seat in busy.items():
            if seat.task is not None and seat.task.future.cancelled():
                seat.stop()  # what it still says must not be taken for the next group's scores
            elif connection in ready:
                self._hear(seat)
            elif time.monotonic() >= seat.deadline:
                limit = self._timeout if seat.is_loaded else LOADING_LIMIT
                self._lose(seat, f"took longer than {limit:g} s")

    def _hear(self, seat: _Seat) -> None:
        assert seat.worker is not None
        try:
            message = seat.worker.receive()
        except (OSError, EOFError):
            self._lose(seat, f"ended its process ({seat.worker.kill()})")
            return
        if isinstance(message, str):
            self._refuse(seat, f"reward {self._name!r} cannot be loaded in a worker process: {message}")
        elif isinstance(message, bool):
            seat.is_loaded, seat.together = True, message
        elif message is None:
            seat.deadline = time.monotonic() + self._timeout + FIRST_CALL_EXTRA
        else:
            task = seat.task
            assert task is not None
            task.scores += message
            seat.has_scored, seat.deadline = True, time.monotonic() + self._timeout
            if not task.remaining:
                seat.task = None
                task.finish()

    def _lose(self, seat: _Seat, what: str) -> None:
        """Empties the seat of a worker that hangs or has died: what the call was about bears it, the others go on."""
        task, told = seat.task, f"reward {self._name!r} {what}"
        if task is None:
            self._refuse(seat, f"{told} while it was being loaded in a worker process")
            return
        seat.stop()
        score = Score(reward=0.0, error=f"{told} for prompt {task.group.prompt.id!r}", failed=self._name)
        task.scores += [score] * (len(task.remaining) if seat.together else 1)
        self._todo.appendleft(task)  # to be finished there, if that was its last

    def _refuse(self, seat: _Seat, told: str) -> None:
        """Without a reward nothing can be scored: all that wait are told so, and whoever comes next has it tried again."""
        seat.stop()
        waiting, self._todo = list(self._todo), deque()
        for task in waiting:
            task.finish(ValueError(told))
