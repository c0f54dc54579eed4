"""The stream of prompts is endless, shuffled, exact to resume, and survives unreadable rows."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rollout.data.media import FrameSampling
from rollout.data.prompts import Prompts, column_mapping, prompts_from
from rollout.data.stream import PromptStream
from rollout.types import Prompt
from tests.prompt_rows import TRUNCATED, drawn, image_row, png, prompts_with_bad_rows, text_prompt, text_prompts


def test_unreadable_prompts_are_replaced_by_the_next_counted_and_logged_once(caplog):
    rows = [
        image_row(image, id=name)
        for name, image in (("a", png()), ("b", TRUNCATED), ("c", "/missing.png"), ("d", png()))
    ]
    stream = PromptStream(prompts_from(rows, column_mapping(id="id")), batch_size=2, seed=0)
    # The epochs of seed 0 are c a b d | d a c b | c b a d.
    batches = [[prompt.id for prompt in stream.next_batch()] for _ in range(3)]
    assert batches == [["a", "d"], ["d", "a"], ["a", "d"]]
    assert stream.skipped == 6
    assert [record.getMessage()[:13] for record in caplog.records] == ["skipped row 2", "skipped row 1"]


def test_a_refused_prompt_is_replaced_and_named_with_the_reason(caplog):
    stream = PromptStream(
        text_prompts(3), batch_size=2, seed=0, accept=lambda prompt: "too long" if prompt.id == "1" else None
    )
    assert [sorted(batch) for batch in drawn(stream, 3)] == [[0, 2], [0, 2], [0, 2]]
    assert stream.skipped >= 2
    assert [record.getMessage() for record in caplog.records] == ["skipped prompt '1': too long"]


def test_a_dataset_without_a_single_usable_prompt_says_so_with_the_last_reason():
    stream = PromptStream(text_prompts(3), batch_size=2, seed=0, accept=lambda prompt: "9 tokens, the context holds 8")
    with pytest.raises(ValueError, match=r"none of the 3 prompts can be used; the last one: prompt '\d': 9 tokens"):
        stream.next_batch()


streams = st.fixed_dictionaries(
    {
        "count": st.integers(1, 20),
        "batch_size": st.integers(1, 12),
        "seed": st.integers(0, 3),
        "bad": st.sets(st.integers(1, 19)),
    }
)


def make_stream(count, batch_size, seed, bad):
    return PromptStream(prompts_with_bad_rows(count, bad), batch_size=batch_size, seed=seed)


@settings(deadline=None)
@given(options=streams, before=st.integers(0, 10), after=st.integers(1, 10))
def test_a_stream_restored_at_any_point_goes_on_as_if_uninterrupted(options, before, after):
    uninterrupted, resumed = make_stream(**options), make_stream(**options)
    drawn(uninterrupted, before)
    drawn(resumed, 2)  # a stream that has been used restores as well as a new one
    resumed.restore(json.loads(json.dumps(uninterrupted.state())))
    assert drawn(resumed, after) == drawn(uninterrupted, after)
    assert resumed.state() == uninterrupted.state()


@settings(deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_epoch_visits_each_prompt_once(count, seed):
    order = [index for [index] in drawn(make_stream(count, 1, seed, set()), 3 * count)]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(options=streams, batches=st.integers(1, 12))
def test_no_prompt_is_lost_or_drawn_too_often_across_epochs(options, batches):
    stream = make_stream(**options)
    times = Counter(index for batch in drawn(stream, batches) for index in batch)
    state = stream.state()
    times.update(state["postponed"])
    good = set(range(options["count"])) - options["bad"]
    assert {times[index] for index in good} <= {state["epoch"], state["epoch"] + 1}
    assert sum(times.values()) + state["skipped"] == state["epoch"] * options["count"] + state["position"]


@settings(deadline=None)
@given(options=streams)
def test_no_batch_has_a_prompt_twice_while_there_are_enough(options):
    enough = options["count"] - len(options["bad"] & set(range(options["count"]))) >= options["batch_size"]
    for batch in drawn(make_stream(**options), 12):
        assert len(set(batch)) == len(batch) or not enough


def test_the_next_batch_is_opened_while_this_one_is_at_work():
    opened: list[int] = []

    def to_prompt(row):
        opened.append(row)
        return text_prompt(row)

    prompts = prompts_from(range(12), to_prompt)  # opens the first row, to see that it can
    opened.clear()
    stream = PromptStream(prompts, batch_size=4, seed=0)
    first = [int(prompt.id) for prompt in stream.next_batch()]
    wait_until(lambda: len(opened) == 8)
    assert opened[:4] == first
    ahead = set(opened[4:])
    assert {int(prompt.id) for prompt in stream.next_batch()} == ahead
    wait_until(lambda: len(opened) == 12)
    stream.next_batch()
    assert sorted(opened[:12]) == list(range(12)), "each row is opened once"


def test_prompts_that_share_an_image_that_is_not_yet_decoded_may_be_opened_at_once(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shared.png")
    shared = Image.open(tmp_path / "shared.png")
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    rows = [Prompt(id=str(i), messages=[{"role": "user", "content": content}], images=[shared]) for i in range(32)]
    with ThreadPoolExecutor(8) as threads:
        for prompt in threads.map(Prompts(rows, lambda row: row, range(32), FrameSampling()).__getitem__, range(32)):
            assert np.array_equal(np.asarray(prompt.images[0]), pixels)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def test_the_order_is_the_same_on_every_machine():
    assert drawn(PromptStream(text_prompts(5), batch_size=5, seed=0), 2) == [[2, 4, 3, 0, 1], [1, 4, 3, 0, 2]]


def test_a_prompt_that_the_next_epoch_brings_too_early_waits_for_the_next_batch():
    # The epochs are 2 4 3 0 1 | 1 4 3 0 2 | 4 2 1 0 3. The second batch begins with the last 1; the next 1 waits.
    stream = PromptStream(text_prompts(5), batch_size=4, seed=0)
    assert drawn(stream, 2) == [[2, 4, 3, 0], [1, 4, 3, 0]]
    assert stream.state()["postponed"] == [1]
    assert drawn(stream, 1) == [[1, 2, 4, 0]]
    assert stream.state()["postponed"] == [2, 1]


def test_a_small_dataset_fills_a_large_batch_by_repeating():
    [batch] = drawn(PromptStream(text_prompts(2), batch_size=7, seed=0), 1)
    assert len(batch) == 7
    assert set(batch) == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": text_prompts(9)}, r"num_prompts 10, this run has 9: resume with the dataset and seed"),
        ({"seed": 1}, r"seed 0, this run has 1: resume with the dataset and seed"),
    ],
)
def test_a_state_of_another_dataset_or_seed_is_refused(change, message):
    options = {"prompts": text_prompts(10), "batch_size": 4, "seed": 0}
    state = PromptStream(**options).state()
    with pytest.raises(ValueError, match=message):
        PromptStream(**{**options, **change}).restore(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, r"0 prompts: check its split and its filters"),
        ({"batch_size": 0}, r"batch_size must be >= 1, got 0"),
        ({"seed": -1}, r"seed must be >= 0, got -1"),
    ],
)
def test_a_stream_of_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PromptStream(**{"prompts": text_prompts(10), "batch_size": 4, "seed": 0, **change})
