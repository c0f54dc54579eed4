"""Batches ahead of the learner, with engines and a reward made up: which prompts, in which order, how far ahead."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from policies.small.qwen3_vl import small_processor
from rewards import Score
from rl.config import TrainConfig
from rl.generation.batches import BatchProducer, Stages
from rl.generation.dynamic_sampling import has_variance, refill_budget, select_groups
from rl.learner.microbatches import split_minibatches
from rl.samples import make_samples
from rollout.data.mixture import mixture, open_stream
from rollout.data.stream import PromptStream
from rollout.rendering import expanded_prompt
from rollout.types import Completion, Group, Prompt, Sampling

PROCESSOR = small_processor()
PROMPTS = [Prompt(id=f"p{i}", messages=[{"role": "user", "content": "?"}], answer=str(i)) for i in range(12)]


class FakePool:
    """Answers each prompt after `delay(prompt)` seconds, and notes what it was asked."""

    def __init__(self, delay: Callable[[Prompt], float] = lambda prompt: 0.0) -> None:
        self.delay = delay
        self.reads = partial(expanded_prompt, PROCESSOR)
        self.asked: list[tuple[int, str, int]] = []
        self.seeds: list[int] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def start(self, coroutine: Any) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def answer(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int, *, batch: int
    ) -> Group:
        self.asked.append((batch, prompt.id, policy_version))
        self.seeds += seeds
        await asyncio.sleep(self.delay(prompt))
        if prompt.id == "broken":
            raise RuntimeError("all engines are gone")
        completions = [Completion(text=str(seed), policy_version=policy_version) for seed in seeds]
        return Group(prompt=prompt, prompt_token_ids=self.reads(prompt), completions=completions)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class FakeRunner:
    """Prompts in `flat` are worth the same in every completion, others 0 and 1 in turn."""

    def __init__(self, flat: Sequence[str] = ()) -> None:
        self.flat = flat

    def submit(self, group: Group) -> Future[list[Score]]:
        future: Future[list[Score]] = Future()
        rewards = [0.0 if group.prompt.id in self.flat else float(i % 2) for i in range(len(group.completions))]
        future.set_result([Score(reward=reward) for reward in rewards])
        return future


class FakeTeacher:
    """Says of every token of prompt p7 that its log-probability is −7."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def submit(self, group: Group, *, batch: int = 0) -> Future[list[np.ndarray]]:
        self.asked.append((batch, group.prompt.id))
        future: Future[list[np.ndarray]] = Future()
        said = -float(group.prompt.id.removeprefix("p"))
        future.set_result([np.full(len(completion.token_ids), said) for completion in group.completions])
        return future


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[BatchProducer, FakePool, PromptStream]]]:
    """Builds rollouts of four prompts a step, two completions each, over twelve prompts."""
    pools = []

    def build(
        *,
        delay: Callable[[Prompt], float] = lambda prompt: 0.0,
        flat: Sequence[str] = (),
        prompts=PROMPTS,
        teacher: FakeTeacher | None = None,
        last_step: int = 9,
        **choices: int,
    ) -> tuple[BatchProducer, FakePool, PromptStream]:
        pool = FakePool(delay)
        pools.append(pool)
        config = TrainConfig(model="m", prompts_per_step=4, group_size=2, **choices)
        stream = open_stream(prompts, batch_size=4, num_minibatches=config.num_minibatches, seed=0)
        rollouts = BatchProducer(
            config,
            Sampling(max_tokens=4),
            Stages(stream=stream, pool=pool, runner=FakeRunner(flat), processor=PROCESSOR, teacher=teacher),
            seed=config.seed,
            steps=range(1, last_step + 1),
        )
        return rollouts, pool, stream

    yield build
    for pool in pools:
        pool.close()


def ids(groups: Sequence[Group]) -> list[str]:
    return [group.prompt.id for group in groups]


def in_order(seed: int = 0) -> list[str]:
    stream = PromptStream(PROMPTS, batch_size=12, seed=seed)
    return ids_of(stream.next_batch())


def ids_of(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def steps_asked(pool: FakePool) -> list[int]:
    for _ in range(3):  # what has been started may not have begun, nor what that starts
        pool.start(asyncio.sleep(0.01)).result()
    return sorted({step for step, _, _ in pool.asked})


def test_without_staleness_a_step_is_asked_of_the_weights_before_it_and_no_step_is_asked_early(make):
    rollouts, pool, _ = make(max_staleness=0)
    for version in (0, 1):
        rollouts.start(version)
        assert steps_asked(pool) == list(range(1, version + 2))
        rollouts.take(version + 1)
    assert {asked[2] for asked in pool.asked if asked[0] == 2} == {1}


def test_with_staleness_two_the_engines_are_two_steps_ahead_and_never_three(make):
    rollouts, pool, _ = make(max_staleness=2)
    rollouts.start(0)
    assert steps_asked(pool) == [1, 2, 3]
    rollouts.take(1)
    rollouts.start(1)  # the learner has version 1: step 4 learns from version 3, two ahead of it
    assert steps_asked(pool) == [1, 2, 3, 4]


def test_nothing_is_asked_beyond_the_last_step(make):
    rollouts, pool, _ = make(max_staleness=5, last_step=2)
    rollouts.start(0)
    assert steps_asked(pool) == [1, 2]


def test_batches_have_the_streams_prompts_in_order_whatever_was_done_first(make):
    rollouts, _, _ = make(max_staleness=1, delay=lambda prompt: 0.02 * (12 - int(prompt.answer)) / 12)
    rollouts.start(0)
    assert [ids(rollouts.take(step).groups) for step in (1, 2)] == [in_order()[:4], in_order()[4:8]]


def test_the_cursor_is_before_the_oldest_batch_that_nobody_has_taken(make):
    rollouts, _, _ = make(max_staleness=1)
    rollouts.start(0)
    rollouts.take(1)
    stream = PromptStream(PROMPTS, batch_size=4, seed=0)
    stream.restore(rollouts.cursor())
    assert ids_of(stream.next_batch()) == in_order()[4:8] == ids(rollouts.take(2).groups)
    stream.restore(rollouts.cursor())  # all are taken: where the stream itself is
    assert ids_of(stream.next_batch()) == in_order()[8:]


def test_a_refill_drawn_behind_a_batch_that_is_not_taken_does_not_come_again_after_a_resume(make):
    order = in_order()
    rollouts, _, _ = make(max_staleness=1, refill_prompts=1, flat=order[1:2], delay=lambda prompt: 0.02)
    rollouts.start(0)  # draws steps 1 and 2, then the refill of step 1
    assert ids(rollouts.take(1).groups) == [order[0], order[2], order[3], order[8]]
    cursor = json.loads(json.dumps(rollouts.cursor()))
    stream = PromptStream(PROMPTS, batch_size=4, seed=0)
    stream.restore(cursor)
    assert ids_of(stream.next_batch()) == order[4:8]
    assert stream.state()["used"] == [order[8]]  # not come by so far
    rest = PromptStream(PROMPTS, batch_size=4, seed=0)
    rest.restore(stream.state())
    assert ids_of(rest.next_batch(3)) == order[9:] and "used" not in rest.state()
    rollouts.start(1)
    rollouts.take(2)
    assert "used" not in rollouts.cursor()  # step 3 was drawn behind the refill


@pytest.mark.parametrize("after", [0, 1], ids=["from the start", "from a cursor"])
def test_a_restart_cancels_what_is_in_progress_and_draws_the_same_prompts_again(make, after):
    order = in_order()
    rollouts, pool, stream = make(refill_prompts=4, flat=order[4:5], delay=lambda prompt: 0.02)
    cursor: dict[str, Any] = {}
    for version in range(after):
        rollouts.start(version)
        rollouts.take(version + 1)
        cursor = rollouts.cursor()
    rollouts.start(after)
    assert steps_asked(pool)[-1] == after + 1
    pool.asked.clear()
    rollouts.restart(after + 1, cursor)
    drawn = stream.state()
    time.sleep(0.1)  # cancelled batches would refill now
    assert pool.asked == [] and stream.state() == drawn
    rollouts.start(after)
    assert ids(rollouts.take(after + 1).groups) == (order[:4] if after == 0 else [*order[5:8], order[8]])


@pytest.mark.parametrize("reverse", [False, True], ids=["the first are done first", "the last are done first"])
def test_a_group_without_variance_is_refilled_and_the_order_of_arrival_changes_nothing(make, reverse):
    # Of the first four the second and the third are flat. Two more are drawn; the first of them is flat too, and a third is drawn.
    order = in_order()
    flat = [order[1], order[2], order[4]]
    place = {name: i for i, name in enumerate(order)}
    delay = lambda prompt: 0.01 * (12 - place[prompt.id] if reverse else place[prompt.id])  # noqa: E731
    rollouts, pool, _ = make(refill_prompts=8, flat=flat, delay=delay)
    rollouts.start(0)
    batch = rollouts.take(1)
    assert ids(batch.groups) == [order[0], order[3], order[5], order[6]]
    assert batch.num_refills == 3 and len(pool.asked) == 7
    assert all(has_variance(scores) for scores in batch.scores)


@pytest.mark.parametrize("reverse", [False, True], ids=["the first are done first", "the last are done first"])
def test_of_a_mixture_a_refill_is_of_the_same_task_and_every_minibatch_keeps_its_ratio(make, reverse):
    # Every other prompt of both tasks is flat, and some of their refills are, too.
    mixed = mixture({"a": (PROMPTS, 1), "b": (PROMPTS[:8], 1)})
    flat = [f"{task}/p{i}" for task in "ab" for i in range(0, 12, 2)]
    delay = lambda prompt: 0.002 * (12 - int(prompt.answer) if reverse else int(prompt.answer))  # noqa: E731
    rollouts, _, _ = make(prompts=mixed, refill_prompts=12, flat=flat, delay=delay)
    learnt = []
    for step in (1, 2, 3):
        rollouts.start(step - 1)
        batch = rollouts.take(step)
        assert all(has_variance(scores) for scores in batch.scores)
        learnt += ids(batch.groups)
        for minibatch in split_minibatches(make_samples(batch.groups, batch.scores), 2):
            assert sorted({sample.prompt_id[0] for sample in minibatch}) == ["a", "b"]
    expected = {task: [name for name in ids_of(of_task(mixed, task)) if name not in flat][:6] for task in mixed.sources}
    assert {task: [name for name in learnt if name.startswith(task)] for task in expected} == expected


def of_task(mixed, task: str) -> list[Prompt]:
    """Twelve prompts of a task in the order in which a stream of the mixture has them."""
    stream = open_stream(mixed, batch_size=4, num_minibatches=2, seed=0)
    return [stream.next_of(task) for _ in range(12)]


def test_a_mixture_resumed_in_the_middle_has_the_same_prompts_as_without_in_every_place(make):
    mixed = mixture({"a": (PROMPTS, 2), "b": (PROMPTS[:5], 1)})
    choices = {"prompts": mixed, "refill_prompts": 6, "flat": ["a/p1", "a/p7", "b/p0"]}

    def learnt(rollouts: BatchProducer, steps: range) -> list[list[str]]:
        batches = []
        for step in steps:
            rollouts.start(step - 1)
            batches.append(ids(rollouts.take(step).groups))
        return batches

    (whole, *_), (first, *_), (second, _, stream) = (make(**choices) for _ in range(3))
    expected = learnt(whole, range(1, 7))
    assert learnt(first, range(1, 4)) == expected[:3]
    stream.restore(json.loads(json.dumps(first.cursor())))
    second._next_step = 4
    assert learnt(second, range(4, 7)) == expected[3:]


def test_each_task_has_its_share_of_the_refills_so_that_none_takes_them_all(make):
    mixed = mixture({"a": (PROMPTS, 3), "b": (PROMPTS, 1)})
    flat = [f"{task}/p{i}" for task in "ab" for i in range(12)]
    rollouts, pool, _ = make(prompts=mixed, refill_prompts=8, flat=flat, num_minibatches=1)
    rollouts.start(0)
    batch = rollouts.take(1)
    assert batch.num_refills == 8
    assert sorted(prompt_id[0] for _, prompt_id, _ in pool.asked) == ["a"] * 9 + ["b"] * 3
    assert sorted(group.prompt.task for group in batch.groups) == ["a", "a", "a", "b"]


def test_refills_that_do_not_divide_go_to_the_largest_remainders():
    # 3 · 5/8 is 1.875, 3 · 2/8 is .75 and 3 · 1/8 is .375.
    assert refill_budget(3, [*"aaaaabbc"]) == {"a": 2, "b": 1, "c": 0}
    assert refill_budget(7, [""] * 4) == {"": 7}


def test_each_group_that_is_kept_has_its_own_word_of_the_teacher(make):
    order, teacher = in_order(), FakeTeacher()
    rollouts, _, _ = make(refill_prompts=8, flat=order[1:2], teacher=teacher)
    rollouts.start(0)
    batch = rollouts.take(1)
    assert ids(batch.groups) == [order[0], order[2], order[3], order[4]]
    assert sorted(teacher.asked) == sorted((1, name) for name in order[:5])
    for group, told in zip(batch.groups, batch.teacher_logprobs, strict=True):
        assert [len(its) for its in told] == [len(completion.token_ids) for completion in group.completions]
        assert {float(value) for its in told for value in its} <= {-float(group.prompt.id.removeprefix("p"))}


def test_without_a_teacher_a_batch_has_no_word_of_one(make):
    rollouts, _, _ = make()
    rollouts.start(0)
    assert rollouts.take(1).teacher_logprobs is None


def test_when_the_bound_is_reached_the_step_learns_from_what_there_is(make):
    order = in_order()
    rollouts, pool, _ = make(refill_prompts=2, flat=[name for name in order if name != order[3]])
    rollouts.start(0)
    batch = rollouts.take(1)
    # The one that can teach something, and the first three of the five others.
    assert ids(batch.groups) == [order[0], order[1], order[2], order[3]]
    assert batch.num_refills == 2 and len(pool.asked) == 6


def test_prompts_that_were_refilled_are_not_drawn_again_by_the_next_step(make):
    order = in_order()
    rollouts, _, _ = make(refill_prompts=8, flat=[order[0]])
    rollouts.start(0)
    assert ids(rollouts.take(1).groups) == order[1:5]
    rollouts.start(1)
    assert ids(rollouts.take(2).groups) == order[5:9]


def test_a_prompt_that_is_drawn_twice_in_a_step_gets_other_seeds_the_second_time(make):
    rollouts, pool, _ = make(prompts=PROMPTS[:2])
    rollouts.start(0)
    assert sorted(ids(rollouts.take(1).groups)) == ["p0", "p0", "p1", "p1"]
    assert len(set(pool.seeds)) == 8


def test_a_failure_of_the_engines_reaches_the_step_that_waits_for_them(make):
    rollouts, _, _ = make(prompts=[Prompt(id="broken", messages=[]), *PROMPTS[:3]])
    rollouts.start(0)
    with pytest.raises(RuntimeError, match="all engines are gone"):
        rollouts.take(1)


def test_a_batch_whose_prompt_the_engine_read_differently_is_refused_with_the_prompt_and_the_place(make):
    rollouts, pool, stream = make(prompts=[Prompt(id="p-3", messages=[{"role": "user", "content": "Hi"}])] * 4)
    right = expanded_prompt(PROCESSOR, stream.next_batch()[0])
    pool.reads = lambda prompt: np.concatenate([right[:2], np.array([*b"Ho"], np.int32), right[4:]])
    rollouts.start(0)
    with pytest.raises(RuntimeError, match="prompt 'p-3': from token 3 on the engine read 'o.* and the learner 'i"):
        rollouts.take(1)


def test_what_nobody_has_taken_is_let_go_at_the_end(make):
    rollouts, pool, _ = make(max_staleness=1, delay=lambda prompt: 60.0)
    rollouts.start(0)
    steps_asked(pool)
    rollouts.close()
    steps_asked(pool)
    assert not asyncio.all_tasks(pool.loop)


def test_groups_that_teach_are_kept_first_and_all_stay_in_order():
    scored = [
        (PROMPTS[i].id, [Score(reward=0.0), Score(reward=reward)]) for i, reward in enumerate((0.0, 1.0, 0.0, 1.0))
    ]
    kept = [name for name, _ in select_groups(scored, [""] * 4, 3)]
    assert kept == ["p0", "p1", "p3"]


def test_verdicts_that_failed_make_no_variance():
    assert not has_variance([Score(reward=1.0), Score(reward=0.0, error="no verdict")])
