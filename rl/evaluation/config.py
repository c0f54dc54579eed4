"""The choices of a run that asks prompts several times and trains nothing: evaluation, pass rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rl.config import RewardOptions, check_lengths
from rl.data import DataConfig
from rl.options import check_bounds
from rollout.config import RolloutConfig
from rollout.types import Sampling

SamplingName = Literal["plain", "greedy", "thinking-dense", "thinking-moe", "instruct", "instruct-text"]
SAMPLING_PRESETS: Mapping[SamplingName, Mapping[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "thinking-dense": {"temperature": 1.0, "top_p": 0.95, "top_k": 20},
    "thinking-moe": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "instruct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
    "instruct-text": {"temperature": 1.0, "top_p": 1.0, "top_k": 40, "presence_penalty": 2.0},
}
"""As Qwen3-VL's report and model cards have them, each with at most 32,768 tokens of output (81,920 for AIME-25, HMMT-25 and
LiveCodeBench)."""


@dataclass(frozen=True, kw_only=True)
class CorrectConfig:
    """When a completion counts as correct."""

    at_least: float = 1.0
    """From this reward on."""
    part: str | None = None
    """The part of the score that decides instead of the reward, such as accuracy of a weighted reward."""


def long_answers() -> RolloutConfig:
    """Engines that let a policy think for as long as Qwen3-VL's report does."""
    return RolloutConfig(max_tokens=32_768, max_model_len=40_960, max_images=8)


@dataclass(frozen=True, kw_only=True)
class SamplingRunConfig(RewardOptions, DataConfig):
    """Asks each prompt several times and scores what comes."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A folder or hub name that from_pretrained loads."""
    reward: str
    """FILE.py:FUNCTION, or the name of a verifier of the package `rewards`: math_answer."""
    limit: int = 0
    """Prompts to ask, the first of them; 0: all. May be raised later: what is answered is kept."""
    samples: int = 16
    """Completions of each prompt."""
    sampling: SamplingName = "plain"
    """plain is as training samples: rollout.temperature and nothing else. thinking-dense: temperature 1, top-p .95, top-k 20;
    thinking-moe: the same at .6; instruct: .7, .8, 20, presence penalty 1.5; instruct-text: 1, 1, 40, 2 (text alone); greedy."""
    temperature: float | None = None
    """Instead of the preset's; 0 is greedy."""
    top_p: float | None = None
    """Instead of the preset's; 1: all tokens."""
    top_k: int | None = None
    """Instead of the preset's; 0: all tokens."""
    presence_penalty: float | None = None
    """Instead of the preset's."""
    blind: bool = False
    """Shows grey pictures of the same sizes: what is solved then, the text gives away. Prompts without pictures are left out."""
    environment: str | None = None
    """FILE.py:FUNCTION, what makes the environment of an episode; only where prompts are answered in several turns."""
    run_dir: Path | None = None
    """Where answers and results go; started again, the same command goes on there. Default: a folder in runs/ that is named
    after the checkpoint and these choices."""
    seed: int = 0
    """Seeds every sampled token, and the bootstrap."""
    pictures: bool = True
    """Keeps the pictures beside the answers, for people and for rewards that look at them."""
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    rollout: RolloutConfig = field(default_factory=long_answers)


def sampling_of(config: SamplingRunConfig) -> Sampling:
    """How completions are drawn: the preset, and what is said besides."""
    preset = {"temperature": config.rollout.temperature, **SAMPLING_PRESETS[config.sampling]}
    own = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "presence_penalty")}
    told = {name: value for name, value in own.items() if value is not None}
    return Sampling(max_tokens=config.rollout.max_tokens, **{**preset, **told})


def check_sampling_run(config: SamplingRunConfig) -> None:
    """Refuses choices that cannot work, before anything is loaded.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    check_bounds(config)
    check_lengths(config.rollout)
    sampling = sampling_of(config)
    for name, value, is_sound, bounds in (
        ("samples", config.samples, config.samples >= 1, ">= 1"),
        ("limit", config.limit, config.limit >= 0, ">= 0"),
        ("temperature", sampling.temperature, sampling.temperature >= 0, ">= 0"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "> 0 and at most 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, ">= 0"),
        ("presence_penalty", sampling.presence_penalty, abs(sampling.presence_penalty) <= 2, "from -2 to 2"),
    ):
        if not is_sound:
            raise ValueError(f"{name} must be {bounds}, got {value}")
    if sampling.temperature == 0 and config.samples > 1:
        raise ValueError(f"greedy decoding gives the same answer {config.samples} times: pass --samples 1")
