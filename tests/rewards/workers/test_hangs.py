"""A response that makes its verifier hang earns no more than a wrong one, and costs its group little time."""

import time

import numpy as np

from rewards import Score
from rewards.workers.runner import RewardRunner
from rl.advantages import group_advantages
from rollout import Completion, Group, Prompt


def group(prompt_id: str, *texts: str) -> Group:
    return Group(
        prompt=Prompt(id=prompt_id, messages=[]),
        prompt_token_ids=np.zeros(3, np.int32),
        completions=[Completion(text=text) for text in texts],
    )


def hangs(prompt: Prompt, completion: Completion) -> float:
    """Takes the text for seconds, but for an empty one; then as a reward."""
    seconds, _, reward = completion.text.partition(":")
    time.sleep(float(seconds or 0))
    return float(reward or 0)


def test_a_response_that_hangs_earns_what_the_worst_of_its_siblings_earns() -> None:
    with RewardRunner(hangs, timeout=1.0) as rewards:
        [better, worse] = rewards.score([group("p-7", "0:1", "9:1", "0:.5"), group("p-8", "0:-2", "9:1", "0:1")])
    assert [score.reward for score in better] == [1.0, 0.0, 0.5]  # 0 is what a wrong response usually earns
    assert [score.reward for score in worse] == [-2.0, -2.0, 1.0]
    assert [score.timeout for score in (better[1], worse[1])] == [
        f"reward 'hangs' took longer than 1 s for prompt '{prompt}'" for prompt in ("p-7", "p-8")
    ]
    assert all(score.error is None for score in [*better, *worse])
    as_wrong = [better[0], Score(reward=0.0), better[2]]
    assert group_advantages(better, "group_std").tolist() == group_advantages(as_wrong, "group_std").tolist()


def test_eight_siblings_that_hang_cost_three_time_limits_and_a_right_one_is_still_paid() -> None:
    with RewardRunner(hangs, timeout=2.0) as rewards:
        rewards.score([group("p-6", "0:1")])
        begin = time.monotonic()
        [scores] = rewards.score([group("p-7", *["60:1"] * 8, "0:1")])
        seconds = time.monotonic() - begin
    assert [score.reward for score in scores] == [0.0] * 8 + [1.0]
    # 2 + 2 + 1 + 1/2 + … and the starts of nine workers, each half a second on busy cores; a limit and a first call each were 288.
    assert seconds < 3 * 2.0 + 18
