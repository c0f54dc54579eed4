"""Prompts and what is shown behind them → samples whose answers are learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rl.types import Sample
from rollout.rendering import expand_media, expanded_prompt, observation_tokens
from rollout.types import Observation, Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

Demonstrate: TypeAlias = Callable[[Prompt], Sequence[str | Observation]]
"""What to learn of a prompt: texts are learnt, each as a turn of its own; observations between them are read."""

REASONING_COLUMNS = ("reasoning", "solution", "rationale")
THINK = "<think>"
TAIL = 16
"""Tokens at the end of a prompt in which a chat template may have opened the thought."""


def reference_answer(prompt: Prompt) -> Sequence[str | Observation]:
    """The prompt's reference answer, in one turn.

    Raises:
        ValueError: The prompt has none.
    """
    if prompt.answer is None:
        raise ValueError(f"prompt {prompt.id!r} has no answer to learn from: a cold start needs prompts with answers")
    return [str(prompt.answer)]


def reasoned_answer(column: str | None = None, form: str = "<think>\n{reasoning}\n</think>\n\n{answer}") -> Demonstrate:
    """Makes a demonstration of reference reasoning and reference answer, in one turn.

    Args:
        column: The column with the reasoning; default: the first of `REASONING_COLUMNS` that a prompt has.
        form: How the two make a response; default: as Qwen3's thinking models respond.
    """

    def demonstrate(prompt: Prompt) -> Sequence[str | Observation]:
        [answer] = reference_answer(prompt)
        names = REASONING_COLUMNS if column is None else (column,)
        found = next((name for name in names if prompt.columns.get(name)), None)
        if found is None:
            raise ValueError(
                f"prompt {prompt.id!r} has no reasoning in {' or '.join(names)}; its columns: "
                f"{', '.join(prompt.columns) or 'none'}: name the one that has it"
            )
        return [form.format(reasoning=str(prompt.columns[found]).strip(), answer=answer)]

    return demonstrate


class Lessons:
    """Makes a prompt's sample when the stream asks whether to take it, and hands it out when the batch is there.

    Args:
        processor: The policy's.
        demonstrate: What is shown.
        max_tokens: Longest sample.
    """

    def __init__(self, processor: ProcessorMixin, demonstrate: Demonstrate, max_tokens: int) -> None:
        self._processor, self._demonstrate, self._max_tokens = processor, demonstrate, max_tokens
        self._made: dict[int, Sample] = {}

    def accept(self, prompt: Prompt) -> str | None:
        """An `accept` for `PromptStream`: why a prompt is not to be learnt from."""
        shown = self._demonstrate(prompt)
        try:
            sample = demonstration(self._processor, prompt, shown)
        except ValueError as error:  # its media do not fit its text, or the processor
            return str(error)
        if len(sample.token_ids) > self._max_tokens:
            return f"{len(sample.token_ids)} tokens with what is shown exceed max_tokens = {self._max_tokens}: raise it, or shorten"
        self._made[id(prompt)] = sample
        return None

    def take(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """The samples of accepted prompts, each once."""
        return [self._made.pop(id(prompt)) for prompt in prompts]


def demonstration(processor: ProcessorMixin, prompt: Prompt, shown: Sequence[str | Observation]) -> Sample:
    """One prompt with what is shown behind it, the texts and their end tokens marked for learning.

    Where the chat template has opened the thought already, as those of thinking models do, it is not opened twice.
    """
    asked = expanded_prompt(processor, prompt)
    tail = processor.tokenizer.decode(asked[-TAIL:]).rstrip()
    if shown and isinstance(shown[0], str) and shown[0].startswith(THINK) and tail.endswith(THINK):
        shown = [shown[0].removeprefix(THINK).lstrip("\n"), *shown[1:]]
    tokens = [asked, *(_tokens(processor, part) for part in shown)]
    learnt = [np.full(len(its), isinstance(part, str)) for part, its in zip([prompt, *shown], tokens, strict=True)]
    return Sample(
        prompt_id=prompt.id,
        token_ids=np.concatenate(tokens),
        loss_mask=np.concatenate(learnt),
        rollout_logprobs=np.zeros(sum(map(len, tokens)), np.float32),
        advantage=1.0,
        images=[*prompt.images, *(image for part in shown if not isinstance(part, str) for image in part.images)],
        videos=prompt.videos,
    )


def _tokens(processor: ProcessorMixin, part: str | Observation) -> np.ndarray:
    """What the policy is to say, or what it is shown then; int32."""
    if isinstance(part, Observation):
        return expand_media(processor, observation_tokens(processor, part), part.images, ())
    words = processor.tokenizer.encode(part, add_special_tokens=False)
    return np.array([*words, processor.tokenizer.eos_token_id], np.int32)
