"""A reward of your own: partial credit for sums of handwritten digits. Copy this file and write yours.

    python -m recipes.custom_reward                                                  the recipe below
    python -m recipes.digit_sums --reward recipes/custom_reward.py:my_reward         the function alone, in any recipe

Before anything costly starts, the function is tried on one real prompt with two made-up responses: the reference answer
and an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards import Score
from rl.cli import main
from rl.config import EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rollout import Completion, Prompt


def my_reward(prompt: Prompt, completion: Completion) -> Score:
    """Half a point for the digits read, half a point for the sum, a little less for every token too many.

    What you may use: `prompt.images` (PIL), `prompt.answer`, `prompt.messages`, `prompt.task`, every other column of
    the dataset row as `prompt.columns[...]`; `completion.text`, `.token_ids`, `.logprobs`, `.finish_reason`.

    What to return: a number, or a `Score` whose `parts` become the metrics `reward/<part>`. If there is no verdict on a
    response, return `Score(reward=0.0, error="why")`: it is then left out of training and counted, not taken for wrong.
    An exception, NaN, and a call that takes longer than --reward-timeout are treated like that, too.

    What it may do: anything. It runs in a process of its own, so a crash costs one score and not the run.
    """
    num_digits = prompt.images[0].width // 64  # the picture itself: each digit is 64 pixels wide
    terms, _, total = completion.text.rpartition("=")
    read = zip(terms.split("+"), prompt.columns["digits"], strict=False)
    parts = {
        "digits": sum(term == str(digit) for term, digit in read) / num_digits,
        "sum": float(total == str(prompt.columns["sum"])),
        "tokens_too_many": max(0, len(completion.token_ids) - len(prompt.answer) - 1),  # a byte is a token here; 1 ends
    }
    return Score(reward=0.5 * parts["digits"] + 0.5 * parts["sum"] - 0.01 * parts["tokens_too_many"], parts=parts)


@dataclass(frozen=True, kw_only=True)
class CustomReward(SmallRecipe):
    """The choices; every one is an option, and so are all others of TrainConfig."""

    run_dir: Path = Path("runs/custom_reward")
    """Where config, metrics, samples and checkpoints go."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=200)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=400)


def run(config: CustomReward) -> None:
    """Data → Prompts, a model, a reward, and one call of train()."""
    # Imported late: `--help`, and a reward taken from this file, need not wait for torch and Ray.
    from rl import train
    from rl.run_dir.summary import print_result
    from rl.sft import with_start_policy
    from rollout.data.prompts import prompts_from
    from rollout.tasks.digit_sums import digit_sums, to_prompt

    prompts = prompts_from(digit_sums("train"), to_prompt)
    held_out = prompts_from(digit_sums("test", num_prompts=2000), to_prompt)
    config = with_start_policy(config, prompts)
    print_result(train(config, prompts=prompts, reward=my_reward, eval_prompts=held_out))


if __name__ == "__main__":
    main(run, CustomReward, __doc__)
