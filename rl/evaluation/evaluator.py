"""Evaluation of the policy on held-out prompts during training: greedy, sampled, and blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rewards.metrics import reward_metrics
from rewards.types import Score
from rewards.workers.runner import RewardRunner
from rl.config import EvalConfig
from rl.evaluation.results import CorrectnessRule, evaluation_metrics, prompt_result
from rl.run_dir.transcripts import transcript
from rollout.data.prompts import blind
from rollout.pool.engine_pool import EnginePool
from rollout.pool.seeds import request_seed
from rollout.types import Group, Prompt, Sampling

EVAL_STEP = -1
"""Step in the seeds of held-out prompts. It is the same at every evaluation, so that only the policy changes the score."""


@dataclass(frozen=True)
class Evaluator:
    """Scores the policy on a fixed set of held-out prompts."""

    options: EvalConfig
    """Number of samples, and the threshold of a correct completion."""
    prompts: Sequence[Prompt]
    """The held-out prompts."""
    pool: EnginePool
    runner: RewardRunner
    sampling: Sampling = field(kw_only=True)
    """Sampling parameters of training."""
    seed: int = field(kw_only=True)
    """Seeds every sampled token."""

    def run(self, policy_version: int, *, with_blind: bool) -> dict[str, float]:
        """Evaluates the weights of `policy_version`.

        Args:
            policy_version: The version that the engines hold.
            with_blind: Also evaluates with grey pictures; that score measures how much the text alone gives away.

        Returns:
            The mean rewards `eval/greedy`, `eval/sampled` and, for prompts with images or videos, `eval/blind` (greedy). The
            sampled completions also give `eval/<task>/avg`, the share that is correct. With several samples per prompt they give
            `eval/<task>/pass@<k>` and `eval/<task>/majority`, as in `recipes.evaluate`. Empty without prompts.
        """
        if not self.prompts:
            return {}
        num_samples, temperature = self.options.num_samples, self.sampling.temperature
        greedy = self._mean_reward(self.prompts, 1, 0.0, policy_version)
        groups, scores = self._generate_and_score(self.prompts, num_samples, temperature, policy_version)
        metrics = {
            "eval/greedy": greedy,
            "eval/sampled": reward_metrics(scores).get("reward/mean", 0.0),
            **{f"eval/{name}": value for name, value in self._by_task(groups, scores).items()},
        }
        with_media = [prompt for prompt in self.prompts if prompt.images or prompt.videos]
        if with_blind and with_media:
            metrics["eval/blind"] = self._mean_reward([blind(prompt) for prompt in with_media], 1, 0.0, policy_version)
        return metrics

    def _mean_reward(self, prompts: Sequence[Prompt], samples: int, temperature: float, policy_version: int) -> float:
        _, scores = self._generate_and_score(prompts, samples, temperature, policy_version)
        return reward_metrics(scores).get("reward/mean", 0.0)

    def _generate_and_score(
        self, prompts: Sequence[Prompt], samples: int, temperature: float, policy_version: int
    ) -> tuple[list[Group], list[list[Score]]]:
        sampling = replace(self.sampling, temperature=temperature)
        seeds = [[request_seed(self.seed, EVAL_STEP, p.id, i) for i in range(samples)] for p in prompts]
        groups = self.pool.generate(prompts, sampling, seeds, policy_version)
        return groups, self.runner.score(groups)

    def _by_task(self, groups: Sequence[Group], scores: Sequence[Sequence[Score]]) -> dict[str, float]:
        correct = CorrectnessRule(at_least=self.options.correct_at)
        recorded = (
            transcript(Path(), "", group, group_scores, with_pictures=False)
            for group, group_scores in zip(groups, scores, strict=True)
        )
        return evaluation_metrics([prompt_result(row, correct) for row in recorded], self.options.num_samples)
