"""Scoring in processes that may hang or die: one completion is lost then, and never the run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Self

import cloudpickle
import numpy as np

from rewards.checking import describe, reward_name
from rewards.process import WorkerProcess
from rewards.types import Score, Verifier
from rollout.types import Completion, Group, Prompt

LOADING_LIMIT = 120.0  # seconds for a worker to start and to import what the reward needs
FIRST_CALL_EXTRA = 30.0  # seconds more for a worker's first call, in which verifiers import their libraries


@dataclass(slots=True)
class _Seat:
    """A place for a worker, and what the worker is at: loading the reward, scoring a group, or nothing."""

    worker: WorkerProcess | None = None
    is_loaded: bool = False
    has_scored: bool = False
    group: int | None = None
    deadline: float = 0.0  # time.monotonic() at which it has been loading, or in one call, for too long

    def start(self, reward: bytes) -> None:
        self.worker, self.is_loaded, self.has_scored = WorkerProcess(reward), False, False
        self.deadline = time.monotonic() + LOADING_LIMIT

    def stop(self) -> None:
        if self.worker:
            self.worker.kill()
        self.worker, self.group = None, None

    @property
    def is_busy(self) -> bool:
        return self.worker is not None and (not self.is_loaded or self.group is not None)


@dataclass(slots=True)
class _Work:
    """What one call of `score` has to do and has done; a group's scores come in order, for one worker has it."""

    groups: Sequence[Group]
    scores: list[list[Score]] = field(init=False)
    todo: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self.scores = [[] for _ in self.groups]
        self.todo = deque(index for index, group in enumerate(self.groups) if group.completions)

    def remaining(self, group: int) -> Sequence[Completion]:
        return self.groups[group].completions[len(self.scores[group]) :]


class RewardRunner:
    """Scores groups with a reward function, in worker processes of one thread each.

    A call that hangs, and a worker that dies, cost the score of one completion, which then says so in `Score.error`;
    the worker is replaced and the next completion is scored. Exceptions and values that are no score end up there too.
    Use it as a context manager, or call `close`; from one thread at a time.
    """

    def __init__(self, reward: Verifier, *, num_workers: int = 1, timeout: float = 10.0) -> None:
        """Starts the workers, and does not wait for them.

        Args:
            reward: The function. cloudpickle sends it to the workers, so a function of the main script, a closure or a
                lambda will do; one from a file of its own comes from `rewards.loading.load_reward`.
            num_workers: Processes; groups are spread over them, and the completions of a group stay together.
            timeout: Seconds that one call may take, `FIRST_CALL_EXTRA` more for the first call of a worker.

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
            self._reward = cloudpickle.dumps(reward)
        except Exception as error:
            told = f"reward {self._name!r} cannot be sent to a worker process: {describe(error)}"
            raise ValueError(f"{told}; create what it holds inside the function, at its first call") from error
        self._seats = [_Seat() for _ in range(num_workers)]
        for seat in self._seats:
            seat.start(self._reward)

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Scores every completion, and returns when all are done.

        Returns:
            [groups][completions], in their order.

        Raises:
            ValueError: The reward cannot be loaded in a worker process, or the runner is closed.
        """
        if not self._seats:
            raise ValueError("this RewardRunner is closed; make a new one")
        work = _Work(groups)
        try:
            while work.todo or any(seat.group is not None for seat in self._seats):
                for seat in self._seats:
                    if work.todo and not seat.is_busy:
                        self._hand_out(seat, work)
                self._listen(work)
        finally:  # after an interrupt, what a busy worker still says must not be taken for the next round's answers
            for seat in self._seats:
                if seat.group is not None:
                    seat.stop()
        return work.scores

    def close(self) -> None:
        """Ends the workers and whatever they have started; may be called twice."""
        for seat in self._seats:
            seat.stop()
        self._seats = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hand_out(self, seat: _Seat, work: _Work) -> None:
        """Gives an idle worker the next group; a worker that has died in the meantime is replaced first."""
        if seat.worker is None or seat.worker.has_ended():
            seat.stop()
            seat.start(self._reward)
            return
        group = work.todo.popleft()
        prompt, completions = work.groups[group].prompt, work.remaining(group)
        try:
            payload = cloudpickle.dumps((prompt, completions))
        except Exception as error:
            told = f"prompt {prompt.id!r} cannot be sent to a reward worker: {describe(error)}"
            work.scores[group] += [Score(reward=0.0, error=told) for _ in completions]
            return
        seat.group = group
        seat.deadline = time.monotonic() + self._timeout + (0.0 if seat.has_scored else FIRST_CALL_EXTRA)
        seat.worker.send(prompt.id, len(completions), payload)

    def _listen(self, work: _Work) -> None:
        """Waits until a worker says something or dies, or the time of one is over."""
        busy = {seat.worker.connection: seat for seat in self._seats if seat.worker and seat.is_busy}
        patience = min((seat.deadline for seat in busy.values()), default=0.0) - time.monotonic()
        ready = wait(list(busy), max(patience, 0.0))
        for connection, seat in busy.items():
            if connection in ready:
                self._hear(seat, work)
            elif time.monotonic() >= seat.deadline:
                limit = self._timeout if seat.is_loaded else LOADING_LIMIT
                self._lose(seat, work, f"took longer than {limit:g} s")

    def _hear(self, seat: _Seat, work: _Work) -> None:
        assert seat.worker is not None
        try:
            message = seat.worker.receive()
        except (OSError, EOFError):
            self._lose(seat, work, f"ended its process ({seat.worker.kill()})")
            return
        if isinstance(message, str):
            seat.stop()
            raise ValueError(f"reward {self._name!r} cannot be loaded in a worker process: {message}")
        if message is None:
            seat.is_loaded = True
            return
        assert seat.group is not None
        work.scores[seat.group].append(message)
        seat.has_scored, seat.deadline = True, time.monotonic() + self._timeout
        if not work.remaining(seat.group):
            seat.group = None

    def _lose(self, seat: _Seat, work: _Work, what: str) -> None:
        """Empties the seat of a worker that hangs or has died: the completion in hand bears it, the others go on."""
        group = seat.group
        seat.stop()
        told = f"reward {self._name!r} {what}"
        if group is None:
            raise ValueError(f"{told} while it was being loaded in a worker process")
        work.scores[group].append(Score(reward=0.0, error=f"{told} for prompt {work.groups[group].prompt.id!r}"))
        if work.remaining(group):
            work.todo.appendleft(group)


def dry_run(runner: RewardRunner, prompt: Prompt) -> None:
    """Tries a reward on two made-up responses, the reference answer and an empty text, before anything costly starts.

    Raises:
        ValueError: The reward has no verdict on one of them; the message names the reward, the prompt, what the reward
            raised or returned, and where.
    """
    texts = ("" if prompt.answer is None else str(prompt.answer), "")
    group = Group(prompt=prompt, prompt_token_ids=np.zeros(1, np.int32), completions=[_made_up(text) for text in texts])
    for text, score in zip(texts, runner.score([group])[0], strict=True):
        if score.error is not None:
            raise ValueError(f"{score.error}; this was a trial on the made-up response {text!r}, before the start")


def _made_up(text: str) -> Completion:
    """Returns a completion of as many tokens as the text has bytes, and an end token."""
    num_tokens = len(text.encode()) + 1
    return Completion(text=text, token_ids=np.zeros(num_tokens, np.int32), logprobs=np.zeros(num_tokens, np.float32))
