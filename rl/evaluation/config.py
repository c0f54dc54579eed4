"""Options of a run that samples each prompt several times and trains nothing: evaluation, pass rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rl.config import RewardOptions
from rl.config.checks import check_bounds, check_lengths
from rl.data import DataConfig
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
"""Sampling parameters of Qwen3-VL's report and model cards. The report allows 32,768 output tokens, and 81,920 for AIME-25, HMMT-25
and LiveCodeBench."""


@dataclass(frozen=True, kw_only=True)
class CorrectConfig:
    """Decides which completions count as correct."""

    at_least: float = 1.0
    """Smallest reward that counts as correct."""
    part: str | None = None
    """Part of the score that decides instead of the reward, such as accuracy of a weighted reward."""


def long_answers() -> RolloutConfig:
    """Returns engine options with the output length of Qwen3-VL's report."""
    return RolloutConfig(max_tokens=32_768, max_model_len=40_960, max_images=8)


@dataclass(frozen=True, kw_only=True)
class SamplingRunConfig(RewardOptions, DataConfig):
    """Samples each prompt several times and scores the completions."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder or hub name that from_pretrained loads."""
    reward: str
    """FILE.py:FUNCTION, or the name of a verifier in the package `rewards`, such as math_answer."""
    limit: int = 0
    """Samples the first so many prompts; 0: all. May be raised later: finished prompts are kept."""
    samples: int = 16
    """Completions per prompt."""
    sampling: SamplingName = "plain"
    """plain: rollout.temperature and nothing else, as in training. greedy: temperature 0. thinking-dense: temperature 1, top-p .95,
    top-k 20. thinking-moe: the same at temperature .6. instruct: .7, .8, 20, presence penalty 1.5. instruct-text
    (text-only prompts): 1, 1, 40, 2."""
    temperature: float | None = None
    """Replaces the preset's temperature; 0 is greedy."""
    top_p: float | None = None
    """Replaces the preset's top-p; 1: all tokens."""
    top_k: int | None = None
    """Replaces the preset's top-k; 0: all tokens."""
    presence_penalty: float | None = None
    """Replaces the preset's presence penalty."""
    blind: bool = False
    """Replaces pictures by grey ones of the same size, to measure how much the text alone gives away. Skips prompts without
    pictures."""
    environment: str | None = None
    """FILE.py:FUNCTION that makes the environment of an episode; only for multi-turn prompts."""
    run_dir: Path | None = None
    """Folder of answers and results. The same command, started again, continues there. Default: a folder in runs/ named after the
    checkpoint and these options."""
    seed: int = 0
    """Seeds every sampled token, and the bootstrap."""
    pictures: bool = True
    """Saves the pictures with the answers, for readers and for rewards that use them."""
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    rollout: RolloutConfig = field(default_factory=long_answers)


def sampling_of(config: SamplingRunConfig) -> Sampling:
    """Returns the sampling parameters: those of the preset, replaced by options that are set."""
    preset = {"temperature": config.rollout.temperature, **SAMPLING_PRESETS[config.sampling]}
    options = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "presence_penalty")}
    replaced = {name: value for name, value in options.items() if value is not None}
    return Sampling(max_tokens=config.rollout.max_tokens, **{**preset, **replaced})


def check_sampling_run(config: SamplingRunConfig) -> None:
    """Refuses options that cannot work, before anything is loaded.

    Raises:
        ValueError: Names the option, the value and the remedy.
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
