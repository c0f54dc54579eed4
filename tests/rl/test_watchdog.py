"""The watchdog: signs worked by hand, alarms that come once, and a resume that goes on watching."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from rl.watchdog import NOTICES, SIGNS, Alarm, Notices, Sign, Watchdog, gap_notice

RISE = Sign(metric="a", kind="rise", bound=1.5, text="a is {value:.2f} times its smallest")
FALL = Sign(metric="b", kind="fall", bound=0.5, text="b is {value:.2f} of its largest")
ABOVE = Sign(metric="c", kind="above", bound=0.2, text="c is {value:.2f}")


def watch(dog: Watchdog, first: int, rows: list[dict[str, float]]) -> list[Alarm | None]:
    return [dog.watch(first + index, row) for index, row in enumerate(rows)]


def test_a_rise_is_compared_with_the_smallest_mean_before():
    # Five steps of 2, five of 1, then 4: the last five have 1, 1, 1, 1, 4 = 1.6 on average, then 1, 1, 1, 4, 4 = 2.2.
    dog = Watchdog(signs=[RISE])
    assert watch(dog, 1, [{"a": 2.0}] * 5 + [{"a": 1.0}] * 10) == [None] * 15
    alarm = dog.watch(16, {"a": 4.0})
    assert alarm is not None and alarm.text.startswith(
        "step 16: a collapse may be ahead: a is 1.60 times its smallest: "
    )
    assert alarm.good_until == 6  # the last mean of 1 before is of steps 7 to 11: of the policies after steps 6 to 10


def test_a_fall_is_compared_with_the_largest_mean_before():
    dog = Watchdog(signs=[FALL])
    assert watch(dog, 1, [{"b": 1.0}] * 10 + [{"b": 0.0}] * 2) == [None] * 12  # 3/5 is left
    alarm = dog.watch(13, {"b": 0.0})
    assert alarm is not None and "b is 0.40 of its largest" in alarm.text
    assert alarm.good_until == 3  # the last mean of 1 that is compared with is of steps 4 to 8


def test_a_slow_fall_is_measured_from_where_it_began():
    # 1 for five steps, then .1 less each step: the mean of steps 1 to 5 is the largest, and half of it is left at step 13.
    dog = Watchdog(signs=[FALL])
    found = watch(dog, 1, [{"b": 1.0}] * 5 + [{"b": 1 - 0.1 * n} for n in range(1, 11)])
    (alarm,) = [alarm for alarm in found if alarm]
    assert (alarm.step, alarm.good_until) == (13, 0)


def test_a_fixed_bound_holds_from_the_first_whole_window_on():
    found = watch(Watchdog(signs=[ABOVE]), 1, [{"c": 1.0}] * 5)
    assert found[:4] == [None] * 4
    assert found[4] is not None and found[4].good_until == 0


def test_the_first_steps_have_nothing_to_compare_a_rise_or_a_fall_with():
    first = [{"a": 1.0, "b": 1.0}] * 5 + [{"a": 100.0, "b": 0.0}] * 4
    assert watch(Watchdog(signs=[RISE, FALL]), 1, first[:5]) == [None] * 5


def test_two_signs_at_once_are_one_alarm_with_both_and_the_earlier_beginning():
    dog = Watchdog(signs=[ABOVE, FALL])
    assert watch(dog, 1, [{"b": 1.0, "c": 0.0}] * 20 + [{"b": 0.0, "c": 0.0}] * 2) == [None] * 22
    alarm = dog.watch(23, {"b": 0.0, "c": 9.0})  # b: 2/5 is left, measured from steps 14 to 18; c: 9/5
    assert alarm is not None and (alarm.step, alarm.good_until) == (23, 13)
    assert "c is 1.80 and b is 0.40 of its largest: make fewer updates" in alarm.text


def test_a_sign_may_have_a_window_of_its_own():
    # Ten steps of 1, then 0: the means of ten steps fall by a tenth each, and .4 is left at step 26.
    slow = replace(FALL, window=10)
    found = [alarm for alarm in watch(Watchdog(signs=[slow]), 1, [{"b": 1.0}] * 20 + [{"b": 0.0}] * 10) if alarm]
    assert [(alarm.step, alarm.good_until) for alarm in found] == [(26, 6)]


def test_an_alarm_comes_once_until_its_signs_are_gone():
    dog = Watchdog(signs=[ABOVE])
    found = watch(dog, 1, [{"c": 0.0}] * 10 + [{"c": 1.0}] * 5 + [{"c": 0.0}] * 5 + [{"c": 1.0}] * 5)
    assert [alarm.step for alarm in found if alarm] == [12, 22]  # 2/5 is the first mean above 1/5


def test_a_resumed_run_watches_as_if_it_had_gone_on():
    rows = [{"step": step, "a": 1.0, "b": 1.0, "c": 0.0} for step in range(1, 21)]
    evaluation = {"step": 20, "eval/greedy": 0.5}
    one, other = Watchdog(signs=[RISE, FALL]), Watchdog([*rows, evaluation], signs=[RISE, FALL])
    watch(one, 1, rows)
    sick = [{"a": 9.0, "b": 0.0}] * 4
    assert watch(one, 21, sick) == watch(other, 21, sick)
    assert any(watch(Watchdog(rows, signs=[RISE, FALL]), 21, sick))


def test_an_objective_without_ratios_is_watched_by_the_other_signs():
    dog = Watchdog(signs=[RISE, ABOVE])
    assert any(watch(dog, 1, [{"c": 1.0}] * 10))


def test_a_reference_of_zero_is_no_sign():
    assert not any(watch(Watchdog(signs=[RISE, FALL]), 1, [{"a": 0.0, "b": 0.0}] * 20))


@pytest.mark.parametrize("sign", SIGNS, ids=[f"{sign.metric} {sign.window}" for sign in SIGNS])
def test_every_sign_can_be_put_into_words(sign: Sign):
    assert "{" not in sign.text.format(value=0.123)


def notices(metric: str, values: Iterable[float], signs: Sequence[Sign] = NOTICES) -> list[str]:
    """The sentences on one metric, step by step from 1."""
    watching = Notices(signs=signs)
    return [text for step, value in enumerate(values, start=1) for text in watching.watch(step, {metric: value})]


def test_a_spike_is_ten_times_the_largest_gradient_norm_of_twenty_steps_before():
    calm = [1.0, 2.0] * 10
    assert notices("policy/grad_norm", [*calm, 20.0]) == []
    (text,) = notices("policy/grad_norm", [*calm, 24.0, 1.0])
    assert text.startswith("step 21: the gradient norm is 12 times the largest of the 20 steps before: ")
    assert notices("policy/grad_norm", [*calm[:19], 1e9]) == []  # too few to compare with
    assert notices("policy/grad_norm", [*([0.0] * 20), 1.0]) == []


def test_a_notice_comes_once_and_again_after_it_has_gone():
    spikes = [*([1.0] * 20), 11.0, *([1.0] * 20), 11.0]
    assert [text[:8] for text in notices("policy/grad_norm", spikes)] == ["step 21:", "step 42:"]


def test_an_entropy_below_a_tenth_of_its_highest_is_noticed_and_the_fall_of_a_healthy_run_is_not():
    falling = [0.5] * 10 + [0.04] * 20
    (text,) = notices("policy/entropy", falling)
    assert text.startswith("step 20: the entropy is 0.08 of its highest")
    assert notices("policy/entropy", [0.5] * 10 + [0.05] * 20) == []


def test_responses_of_which_most_are_cut_are_noticed_with_their_share():
    (text,) = notices("rollout/truncated", [0.6] * 12)
    assert text.startswith("step 10: 60% of the responses end at rollout.max_tokens")


def test_a_gap_beyond_half_of_the_bound_is_noticed_before_the_run_stops():
    (text,) = notices("rollout/logprob_gap_mean", [6e-4] * 9, [gap_notice(1e-3)])
    expected = (
        "step 5: engine and learner differ by 0.0006 nats per token; at 0.001 (rollout.max_logprob_gap) the run stops"
    )
    assert text == expected
    assert notices("rollout/logprob_gap_mean", [4e-4] * 9, [gap_notice(1e-3)]) == []


def test_a_resumed_run_does_not_repeat_a_notice():
    rows = [{"step": step, "rollout/truncated": 0.6} for step in range(1, 12)]
    assert Notices(rows).watch(12, {"rollout/truncated": 0.6}) == []
