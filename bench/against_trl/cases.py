"""The cases of `bench.step`: policies, prompts and the reward, the same for both sides.

Responses must be equally long on both sides. So every policy is flat: its last norm is scaled down until all tokens are about
equally likely. With `fixed` lengths the end token has an id outside the vocabulary and is never sampled. With `varying` lengths
every 16th token of the small policy is an end token, so lengths are geometric: P(length > n) = (1 - 1/16)ⁿ, cut at `max_tokens`.
The arithmetic of a step depends on none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rewards import Score

if TYPE_CHECKING:
    from rollout import Completion, Prompt

Size = Literal["small", "139M"]
Lengths = Literal["fixed", "varying"]
Pictures = Literal["small", "large"]

FLAT = 1e-3
"""Factor of the last norm: logits differ by less than a hundredth."""
NEVER = "<|never|>"
"""The end token outside the vocabulary."""
NUM_PROMPTS = 64
"""Prompts of a run; it draws them again when they are used up."""
LARGE_SIDE = 512
"""Pixels per side of a large picture: 256 tokens. A small one has 192 × 64 pixels: 12 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison."""

    size: Size
    """The small policy, 3.7M parameters; or SmolLM2-135M in Qwen3-VL's architecture, 139M with its vision tower."""
    lengths: Lengths
    """Responses of max_tokens each, or of geometric lengths."""
    pictures: Pictures
    """192 × 64 pixels, or 512 × 512."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        return f"{self.size}-{self.lengths}-{self.pictures}"

    @property
    def prompts_per_step(self) -> int:
        """Groups of a step."""
        return 8 if self.size == "small" else 4

    @property
    def group_size(self) -> int:
        """Completions of a prompt."""
        return 8

    @property
    def sequences(self) -> int:
        """Completions of a step."""
        return self.prompts_per_step * self.group_size

    @property
    def max_tokens(self) -> int:
        """Longest response."""
        if self.size == "139M":
            return 48
        return 16 if self.lengths == "fixed" else 64

    @property
    def end_every(self) -> int:
        """With varying lengths, one of so many tokens is an end token: a quarter of max_tokens."""
        return self.max_tokens // 4

    @property
    def max_model_len(self) -> int:
        """Room for prompt and response."""
        return 128 if self.pictures == "small" else 512

    @property
    def trl_microbatch(self) -> int:
        """Sequences of TRL's forward pass: all of a step, unless their activations would take tens of GiB."""
        return 8 if (self.size, self.pictures) == ("139M", "large") else self.sequences


CASES = {
    case.name: case
    for case in (
        Case(size=size, lengths=lengths, pictures=pictures)
        for size in get_args(Size)
        for pictures in get_args(Pictures)
        for lengths in get_args(Lengths)
    )
}


def share_of_letters(prompt: Prompt | None, completion: Completion) -> Score:
    """Rewards letters, of which random responses have different shares. The parts are for the check of lengths."""
    text, tokens = completion.text, len(completion.token_ids)
    letters = sum(character.isalpha() for character in text) / max(1, len(text))
    return Score(reward=letters, parts={"tokens": float(tokens), "tokens_squared": float(tokens**2)})


def case_prompts(case: Case) -> list[Prompt]:
    """Returns the prompts, with their pictures in memory."""
    from rollout.data.prompts import prompts_from
    from rollout.tasks.digit_sums import digit_sums, to_prompt

    return [*prompts_from(_with_pictures(digit_sums("train", num_prompts=NUM_PROMPTS), case), to_prompt)]


def _with_pictures(rows: Sequence[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    if case.pictures == "small":
        return list(rows)
    return [{**row, "image": row["image"].resize((LARGE_SIDE, LARGE_SIDE))} for row in rows]


def case_policy(case: Case, folder: Path) -> Path:
    """Returns the checkpoint that both sides load, inside `folder`; makes it unless it exists."""
    target = folder / f"{case.size}-{case.lengths}-{case.max_tokens}"
    if not (target / "model.safetensors").is_file():
        unfinished = target.with_name(f"{target.name}.unfinished")
        write_policy(case, folder, unfinished)
        unfinished.rename(target)
    return target


def write_policy(case: Case, folder: Path, target: Path) -> None:
    """Writes the flat policy of a case."""
    import torch

    from policies.export import save_policy
    from policies.loading import load_policy, load_processor
    from policies.small.language_models import smollm2_policy
    from policies.small.qwen3_vl import save_small_policy

    if case.size == "small":
        start = save_small_policy(folder / "small", kind="dense", seed=0)
    else:
        start = smollm2_policy(folder / "smollm2")
    model, processor = load_policy(start, dtype=torch.float32, device="cpu"), load_processor(start)
    with torch.no_grad():
        model.model.language_model.norm.weight *= FLAT
    vocabulary = model.get_input_embeddings().num_embeddings
    tokenizer = processor.tokenizer
    if case.lengths == "fixed":
        tokenizer.add_special_tokens({"eos_token": NEVER})
        assert tokenizer.eos_token_id >= vocabulary, f"{NEVER} could be sampled"
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    else:
        model.generation_config.eos_token_id = end_ids(processor, vocabulary, case.end_every)
    save_policy(model, processor, target)


def end_ids(processor: Any, vocabulary: int, every: int) -> list[int]:
    """Returns a set of end tokens: the tokenizer's own and others, one of `every` tokens that a policy may sample."""
    from policies.loading import vision_token_ids

    own = processor.tokenizer.eos_token_id
    banned = {own, *vision_token_ids(processor)}
    others = [token for token in range(vocabulary) if token not in banned]
    return [own, *others[every - 1 :: every]]


def expected_tokens(case: Case, model_folder: Path) -> float:
    """Returns the mean length that a flat policy's responses have."""
    if case.lengths == "fixed":
        return float(case.max_tokens)
    import json

    from policies.loading import load_processor, vision_token_ids

    config = json.loads((model_folder / "config.json").read_text())
    ends = json.loads((model_folder / "generation_config.json").read_text())["eos_token_id"]
    sampled = config["text_config"]["vocab_size"] - len(vision_token_ids(load_processor(model_folder)))
    return mean_length(len(ends) / sampled, case.max_tokens)


def mean_length(share: float, max_tokens: int) -> float:
    """Returns the mean of geometric lengths that are cut.

    Args:
        share: Probability of an end at each token.
        max_tokens: The cut.
    """
    return (1 - (1 - share) ** max_tokens) / share
