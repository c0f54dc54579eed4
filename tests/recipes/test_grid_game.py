"""The recipe of the grid game: its limits fit its games, and limits that do not are refused with the values they need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policies.small.qwen3_vl import small_processor
from recipes.grid_game import GridGame, check_room, won
from rl.config import check_config
from rl.sft.demonstrations import encode_demonstration
from rollout import Completion, Prompt
from rollout.data.prompts import prompts_from
from rollout.tasks.grid_game import grid_game, mostly_informed, to_prompt


def test_the_choices_of_the_recipe_pass_their_own_checks() -> None:
    check_config(GridGame())
    check_room(GridGame())


def test_the_check_counts_a_games_tokens_as_they_are_encoded() -> None:
    config = GridGame(spare_turns=2)
    prompts = prompts_from(grid_game("train", config, num_prompts=200), to_prompt)
    shown = [(prompt, mostly_informed(prompt, config, skill=0.0)) for prompt in prompts]
    prompt, longest = max(shown, key=lambda pair: len(pair[1]))
    assert len(longest) == 6 + 5
    sample = encode_demonstration(small_processor(), prompt, longest)
    # A move and its end token are the turns of this game, so its limit is exact.
    rollout = replace(config.rollout, max_turn_tokens=2, max_turns=6, max_images=6)
    tokens = len(sample.token_ids) - int(np.argmax(sample.loss_mask))
    fits = replace(rollout, max_tokens=tokens, max_model_len=len(sample.token_ids))
    check_room(replace(config, rollout=fits))
    with pytest.raises(ValueError, match=rf"needs rollout.max_tokens >= {tokens}$"):
        check_room(replace(config, rollout=replace(fits, max_tokens=tokens - 1)))


def test_all_limits_that_are_too_low_are_named_at_once() -> None:
    # 5 turns of 4 tokens, and 4 answers of 16 + 7; the prompt has 16 + 8.
    with pytest.raises(ValueError) as refused:
        check_room(GridGame(size=4, spare_turns=1))
    assert str(refused.value) == (
        "a game with size = 4 and 5 turns needs rollout.max_turns >= 5, rollout.max_images >= 5, rollout.max_tokens >= 112, "
        "rollout.max_model_len >= 136"
    )


def test_a_won_game_has_the_reward_1_and_its_moves_are_logged() -> None:
    prompt = Prompt(id="a", messages=[])
    score = won(prompt, Completion(text="r", outcome={"won": True, "moves": 3}))
    assert (score.reward, score.parts) == (1.0, {"moves": 3.0})
    assert won(prompt, Completion(text="r", outcome={"won": False, "moves": 4})).reward == 0
    assert won(prompt, Completion(text="r")).reward == 0, "a game that was cut has no outcome"
