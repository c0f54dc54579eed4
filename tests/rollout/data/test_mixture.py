"""Several tasks in one stream: the ratio in every minibatch, small sources, refills, resuming, and what is refused."""

import io
import json
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rollout.data.mixture import MixedStream, mixture, open_stream, rounds
from rollout.data.prompts import UnreadablePrompt, column_mapping, prompts_from, readable
from rollout.data.stream import PromptStream
from rollout.types import Prompt


def prompts(count, name="p"):
    return [Prompt(id=f"{name}{i}", messages=[{"role": "user", "content": "?"}]) for i in range(count)]


def three_to_one(large=50, small=10):
    return mixture({"geometry": (prompts(large), 3), "charts": (prompts(small), 1)})


def stream_of(mixed, batch_size=16, num_minibatches=2, seed=0, **options):
    return MixedStream(mixed, batch_size=batch_size, num_minibatches=num_minibatches, seed=seed, **options)


def tasks(batch):
    return [prompt.task for prompt in batch]


def ids(batch):
    return [prompt.id for prompt in batch]


def png(size=(8, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


# --- the ratio


def test_three_to_one_is_six_and_two_of_every_minibatch_of_eight():
    stream = stream_of(three_to_one())
    for _ in range(20):
        batch = stream.next_batch()
        assert [Counter(tasks(batch[i : i + 8])) for i in (0, 8)] == [{"geometry": 6, "charts": 2}] * 2


def test_tasks_are_spread_over_a_minibatch():
    # The k-th of six is due at (k − 1/2) / 6: .08 .25 .42 .58 .75 .92; of two: .25 and .75. Of the same place, the first named.
    stream = stream_of(three_to_one(), batch_size=8, num_minibatches=1)
    g, c = "geometry", "charts"
    assert tasks(stream.next_batch()) == [g, g, c, g, g, g, c, g]


def test_where_the_ratio_is_no_whole_number_minibatches_take_turns():
    # A third of 4 is 1 1/3: after three minibatches of 4, each of three tasks has had 4.
    mixed = mixture({name: (prompts(9), 1) for name in "abc"})
    stream = stream_of(mixed, batch_size=4, num_minibatches=1)
    batches = [Counter(tasks(stream.next_batch())) for _ in range(6)]
    assert batches[0] == {"a": 2, "b": 1, "c": 1}
    assert batches[1] == {"a": 1, "b": 2, "c": 1}
    assert batches[2] == {"a": 1, "b": 1, "c": 2}
    assert batches[3:] == batches[:3]


def test_a_task_of_less_than_a_prompt_a_step_is_told_and_has_its_share_in_the_long_run(caplog):
    mixed = mixture({"large": (prompts(9), 39), "small": (prompts(9), 1)})
    stream = stream_of(mixed, batch_size=8, num_minibatches=2)
    assert caplog.messages == [
        "task 'small' gets a prompt in only one of 5 steps: raise its weight or the prompts of a step"
    ]
    counts = [tasks(stream.next_batch()).count("small") for _ in range(15)]
    assert sum(counts) == 3 and max(counts) == 1


weights = st.lists(st.one_of(st.integers(1, 9), st.floats(0.01, 10)), min_size=1, max_size=5)


@settings(deadline=None)
@given(weights=weights, batch_size=st.integers(1, 20), data=st.data())
def test_every_minibatch_has_the_ratio_rounded_down_or_up_and_totals_stay_within_two(weights, batch_size, data):
    num_minibatches = data.draw(st.integers(1, batch_size))
    mixed = mixture({str(i): (prompts(3), weight) for i, weight in enumerate(weights)})
    stream = stream_of(mixed, batch_size, num_minibatches)
    totals: Counter = Counter()
    for _ in range(12):
        batch = stream.next_batch()
        assert len(batch) == batch_size
        for size in stream._sizes:
            minibatch, batch = batch[:size], batch[size:]
            counts = Counter(tasks(minibatch))
            for name, share in mixed.shares.items():
                assert math.floor(share * size) <= counts[name] <= math.ceil(share * size)
            totals.update(counts)
    for name, share in mixed.shares.items():
        assert abs(totals[name] - share * totals.total()) < 2


def test_what_a_minibatch_holds_is_told_with_what_the_weights_became():
    assert stream_of(three_to_one()).plan() == (
        "mixture in minibatches of 8: geometry 0.75 (6 of a minibatch), charts 0.25 (2 of a minibatch); "
        "the weights, of sum 4, are normalised"
    )
    # 10 prompts in 4 minibatches are 2, 3, 3 and 2.
    halves = mixture({"a": (prompts(3), 0.5), "b": (prompts(3), 0.5)})
    assert stream_of(halves, 10, 4).plan() == (
        "mixture in minibatches of 2 or 3: a 0.5 (1 to 2 of a minibatch), b 0.5 (1 to 2 of a minibatch)"
    )


def test_weights_are_normalised_exactly():
    shares = mixture({"a": (prompts(1), 0.1), "b": (prompts(1), 0.3)}).shares
    assert shares == {"a": Fraction(1, 4), "b": Fraction(3, 4)}


# --- the prompts


def test_a_small_source_begins_again_while_a_large_one_is_at_its_first_epoch():
    stream = stream_of(three_to_one(large=60, small=4), batch_size=16, num_minibatches=2)
    drawn = [prompt for _ in range(5) for prompt in stream.next_batch()]
    times = Counter(ids(drawn))
    assert {times[f"charts/p{i}"] for i in range(4)} == {5}
    assert {times[f"geometry/p{i}"] for i in range(60)} == {1}


def test_no_prompt_comes_twice_in_a_batch_while_there_are_enough():
    stream = stream_of(three_to_one(large=13, small=5), batch_size=16, num_minibatches=4)
    for _ in range(30):
        assert len(set(ids(stream.next_batch()))) == 16


def test_task_and_id_are_the_mixtures_and_sources_may_use_the_same_ids():
    batch = stream_of(three_to_one(large=6, small=2), batch_size=8, num_minibatches=1).next_batch()
    assert sorted(ids(batch)) == ["charts/p0", "charts/p1", *(f"geometry/p{i}" for i in range(6))]
    assert all(prompt.id.startswith(f"{prompt.task}/") for prompt in batch)


def test_two_tasks_over_the_same_rows_are_in_orders_of_their_own():
    mixed = mixture({"a": (prompts(50), 1), "b": (prompts(50), 1)})
    batch = stream_of(mixed, batch_size=20, num_minibatches=1).next_batch()
    a, b = ([prompt.id[2:] for prompt in batch if prompt.task == task] for task in "ab")
    assert a != b


def test_tasks_need_not_have_the_same_columns_nor_all_of_them_images():
    charts = [{"query": "how many?", "image": png(), "label": "3", "level": 2}]
    sums = [{"question": "1+1?", "answer": 2}]
    mixed = mixture(
        {
            "charts": (prompts_from(charts, column_mapping(question="query", answer="label")), 1),
            "sums": (prompts_from(sums, column_mapping(image=None)), 1),
        }
    )
    chart, sum_ = sorted(stream_of(mixed, batch_size=2, num_minibatches=1).next_batch(), key=lambda p: p.task)
    assert (chart.answer, chart.columns, len(chart.images)) == ("3", {"level": 2}, 1)
    assert (sum_.answer, sum_.columns, sum_.images) == (2, {}, [])


def test_an_image_without_pixels_is_replaced_by_the_tasks_next_prompt_and_named_with_the_task(caplog):
    rows = [
        {"question": "?", "image": Image.new("RGB", (0, 0)), "answer": ""},
        {"question": "!", "image": png(), "answer": ""},
    ]
    mixed = mixture({"charts": (prompts_from(rows, column_mapping()), 1), "text": (prompts(9), 3)})
    stream = stream_of(mixed, batch_size=4, num_minibatches=1)
    for _ in range(4):
        assert Counter(tasks(stream.next_batch())) == {"charts": 1, "text": 3}
    told = "skipped row 0 of task 'charts': image 0 cannot be read: ValueError: it has 0 × 0 pixels"
    assert caplog.messages == [told] and stream.skipped >= 1


def test_a_task_of_which_no_prompt_can_be_used_ends_the_run_with_the_reason():
    accept = lambda prompt: "9 tokens, the context holds 8" if prompt.task == "charts" else None  # noqa: E731
    stream = stream_of(three_to_one(small=2), accept=accept)
    with pytest.raises(
        ValueError, match=r"none of the 2 prompts can be used; the last one: prompt 'charts/p\d': 9 tok"
    ):
        stream.next_batch()


def test_a_refill_is_of_the_task_that_is_asked_for():
    stream = stream_of(three_to_one())
    [geometry, chart] = [next(p for p in stream.next_batch() if p.task == task) for task in ("geometry", "charts")]
    assert stream.next_of(stream.source(chart)).task == "charts"
    assert stream.next_of(stream.source(geometry)).task == "geometry"
    batch = stream.next_batch()
    assert Counter(tasks(batch)) == {"geometry": 12, "charts": 4}, "refills do not change the ratio"


def test_a_mixture_read_in_order_has_every_prompt_once_and_the_ratio_as_long_as_there_are_any():
    mixed = three_to_one(large=6, small=4)
    order = ids(readable(mixed))
    assert len(mixed) == 10 and len(set(order)) == 10
    assert Counter(name.split("/")[0] for name in order[:8]) == {"geometry": 6, "charts": 2}
    assert order[8:] == ["charts/p2", "charts/p3"]


def test_the_first_rows_are_read_task_by_task_as_far_as_each_goes():
    mixed = three_to_one(large=3, small=1)
    assert [ids(each) for each in rounds(mixed, 2)] == [["geometry/p0", "charts/p0"], ["geometry/p1"]]
    assert [ids(each) for each in rounds(prompts(3), 2)] == [["p0"], ["p1"]]


def test_what_is_no_mixture_opens_a_plain_stream():
    assert isinstance(open_stream(prompts(4), batch_size=2, num_minibatches=2, seed=0), PromptStream)
    assert isinstance(open_stream(three_to_one(), batch_size=2, seed=0), MixedStream)


# --- resuming


@settings(deadline=None)
@given(
    seed=st.integers(0, 3),
    before=st.integers(0, 6),
    refills=st.lists(st.sampled_from(["a", "b", "c"]), max_size=4),
    num_minibatches=st.integers(1, 4),
)
def test_a_mixture_restored_at_any_point_goes_on_as_if_uninterrupted(seed, before, refills, num_minibatches):
    def to_prompt(number):
        if number == 3:
            raise UnreadablePrompt("torn page")
        return Prompt(id=str(number), messages=[])

    mixed = mixture({"a": (prompts_from(range(11), to_prompt), 5), "b": (prompts(2), 2), "c": (prompts(7), 0.7)})
    uninterrupted, resumed = (stream_of(mixed, 9, num_minibatches, seed) for _ in range(2))
    for _ in range(before):
        uninterrupted.next_batch()
        for task in refills:
            uninterrupted.next_of(task)
    resumed.next_batch()  # a stream that has been used restores as well as a new one
    resumed.restore(json.loads(json.dumps(uninterrupted.state())))
    for _ in range(5):
        assert ids(resumed.next_batch()) == ids(uninterrupted.next_batch())
    assert resumed.state() == uninterrupted.state()


@pytest.mark.parametrize(
    ("now", "seed", "told"),
    [
        ({"a": (8, 1), "b": (8, 2)}, 0, r"has shares a 1/2, b 1/2, this run has a 1/3, b 2/3: resume with the mixture"),
        ({"a": (8, 1), "c": (8, 1)}, 0, r"has shares a 1/2, b 1/2, this run has a 1/2, c 1/2: resume"),
        ({"a": (8, 1), "b": (9, 1)}, 0, r"task 'b': the saved prompt order has num_prompts 8, this run has 9: resume"),
        ({"a": (8, 1), "b": (8, 1)}, 1, r"has seed 0, this run has 1: resume with the mixture and seed"),
    ],
)
def test_a_state_of_another_mixture_is_refused(now, seed, told):
    state = stream_of(mixture({"a": (prompts(8), 1), "b": (prompts(8), 1)}), 4).state()
    other = mixture({name: (prompts(count), weight) for name, (count, weight) in now.items()})
    with pytest.raises(ValueError, match=told):
        stream_of(other, 4, seed=seed).restore(state)


def test_weights_of_the_same_ratio_resume():
    saved = stream_of(mixture({"a": (prompts(8), 1), "b": (prompts(8), 2)}), 4)
    saved.next_batch()
    resumed = stream_of(mixture({"a": (prompts(8), 0.5), "b": (prompts(8), 1.0)}), 4)
    resumed.restore(saved.state())
    assert [each.id for each in resumed.next_batch()] == [each.id for each in saved.next_batch()]


def test_a_mixture_and_a_plain_stream_do_not_resume_each_other():
    mixed, plain = stream_of(three_to_one()), PromptStream(prompts(8), batch_size=4, seed=0)
    with pytest.raises(ValueError, match="belongs to no mixture: resume with the prompts of the saved run"):
        mixed.restore(plain.state())
    with pytest.raises(
        ValueError, match="belongs to a mixture of 'geometry', 'charts', this run has one set of prompts"
    ):
        plain.restore(mixed.state())


# --- what is refused


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, "3", None, True])
def test_a_weight_that_is_none_is_refused_with_the_task_and_the_remedy(weight):
    with pytest.raises(ValueError, match=r"weight of task 'b' must be > 0 and finite, got .*: to leave a task out, do"):
        mixture({"a": (prompts(1), 1), "b": (prompts(1), weight)})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, r"mixture needs tasks, such as \{'geometry': \(prompts, 3\)"),
        ([(prompts(1), 1)], r"mixture needs tasks"),
        ({"a": prompts(1)}, r"task 'a' of a mixture must be a pair \(prompts, weight\), got a list"),
        ({"": (prompts(1), 1)}, r"must have a name, got ''"),
        ({"a": (prompts(1), 1), "b": ([], 1)}, r"task 'b' has 0 prompts: check its split and its filters"),
    ],
)
def test_what_is_no_mixture_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        mixture(given)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_minibatches": 5}, r"num_minibatches must be from 1 to batch_size = 4, got 5"),
        ({"seed": -1}, r"seed must be >= 0, got -1"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        stream_of(three_to_one(), **{"batch_size": 4, "num_minibatches": 1, **options})


def test_prompts_used_ahead_of_a_cursor_do_not_come_again_in_their_task():
    tasks = {name: ([Prompt(id=str(number), messages=[]) for number in range(6)], 1) for name in ("a", "b")}
    first = open_stream(mixture(tasks), batch_size=4, seed=0)
    start = first.state()
    used = first.next_of("b").id
    second = open_stream(mixture(tasks), batch_size=4, seed=0)
    second.restore(second.without(start, [("b", used)]))
    drawn = [prompt.id for _ in range(2) for prompt in second.next_batch()]
    assert used not in drawn and len([name for name in drawn if name.startswith("b/")]) == 4
