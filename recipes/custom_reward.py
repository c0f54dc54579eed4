"""A reward of your own: partial credit for sums of handwritten digits. Copy this file and write yours.

    python -m recipes.custom_reward                                                  the recipe below
    python -m recipes.digit_sums --reward recipes/custom_reward.py:my_reward         the function alone, in any recipe

Before any engine starts, the function is tried on one real prompt with two fake responses: the reference answer and an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards import Score
from rl.cli import main
from rl.config import EvalConfig, OptimizerConfig, RolloutConfig, SmallRecipe
from rollout import Completion, Prompt


def my_reward(prompt: Prompt, completion: Completion) -> Score:
    """Half a point for the digits read, half a point for the sum, a small penalty for each extra token.

    Inputs: `prompt.images` (PIL), `prompt.answer`, `prompt.messages`, `prompt.task`, every other column of
    the dataset row as `prompt.columns[...]`; `completion.text`, `.token_ids`, `.logprobs`, `.finish_reason`.

    Result: a number, or a `Score` whose `parts` become the metrics `reward/<part>`. If a response cannot be scored, return
    `Score(reward=0.0, error="why")`: it is then counted, left out of training, and not treated as wrong. An exception, NaN and a
    call longer than --reward-timeout have the same effect.

    The function may do anything. It runs in its own process, so a crash costs one score and not the run.
    """
    num_digits = prompt.images[0].width // 64  # uses the image: each digit is 64 pixels wide
    terms, _, total = completion.text.rpartition("=")
    read = zip(terms.split("+"), prompt.columns["digits"], strict=False)
    parts = {
        "digits": sum(term == str(digit) for term, digit in read) / num_digits,
        "sum": float(total == str(prompt.columns["sum"])),
        "tokens_too_many": max(
            0, len(completion.token_ids) - len(prompt.answer) - 1
        ),  # a token is a byte; 1 for the end token
    }
    return Score(reward=0.5 * parts["digits"] + 0.5 * parts["sum"] - 0.01 * parts["tokens_too_many"], parts=parts)


@dataclass(frozen=True, kw_only=True)
class CustomReward(SmallRecipe):
    """The options; those of TrainConfig are options, too."""

    run_dir: Path = Path("runs/custom_reward")
    """Folder for config, metrics, samples and checkpoints."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, decay_updates=200)
    rollout: RolloutConfig = RolloutConfig(dtype="float32", max_tokens=16, max_model_len=128)
    eval: EvalConfig = EvalConfig(num_prompts=400)


def run(config: CustomReward) -> None:
    """Data → Prompts, a model, a reward, and one call of train()."""
    # Late imports: `--help`, and a reward loaded from this file, do not wait for torch and Ray.
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
