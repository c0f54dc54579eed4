"""Prompts and demonstrations in, samples with the loss on the answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rl.samples import Sample
from rollout.data.conversations import text_of
from rollout.data.media import UnreadablePrompt
from rollout.data.messages import PLACEHOLDER
from rollout.rendering import as_text, expand_media, expanded_prompt, observation_tokens
from rollout.types import Observation, Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from rollout.data.prompts import ToPrompt

Demonstrate: TypeAlias = Callable[[Prompt], Sequence[str | Observation]]
"""Makes a prompt's demonstration: texts are trained on, each as one turn; observations between them are input only."""

REASONING_COLUMNS = ("reasoning", "solution", "rationale")
THINK = "<think>"
TAIL = 16
"""Tokens at the end of a prompt in which a chat template may open the thinking block."""


def reference_answer(prompt: Prompt) -> Sequence[str | Observation]:
    """The prompt's reference answer, in one turn.

    Raises:
        ValueError: The prompt has none.
    """
    if prompt.answer is None:
        raise ValueError(f"prompt {prompt.id!r} has no answer to train on: a cold start needs prompts with answers")
    return [str(prompt.answer)]


def reasoned_answer(column: str | None = None, form: str = "<think>\n{reasoning}\n</think>\n\n{answer}") -> Demonstrate:
    """Demonstrates reference reasoning followed by the reference answer, in one turn.

    Args:
        column: The column with the reasoning. Default: the first of `REASONING_COLUMNS` that a prompt has.
        form: Format of a response. Default: that of Qwen3's thinking models.
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


def demonstrated(to_prompt: ToPrompt) -> ToPrompt:
    """Returns a mapping whose prompts end before the assistant's last message, which becomes the answer to learn.

    Earlier messages of the assistant are context and are not learned. `reasoning_content` of the last one stands in
    `<think>…</think>` before it. Prompts that end with another message stay as they are.
    """

    def to_demonstration(row: Any) -> Prompt:
        prompt = to_prompt(row)
        last = prompt.messages[-1] if prompt.messages else {}
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            return prompt
        if last.get("tool_calls"):
            raise UnreadablePrompt(
                "its last message calls a tool, which cannot be learned: end it with the assistant's answer"
            )
        text = text_of(last.get("content"))
        if thought := last.get("reasoning_content"):
            text = f"{THINK}\n{str(thought).strip()}\n</think>\n\n{text}"
        if (prompt.images or prompt.videos) and (mark := PLACEHOLDER.search(text)):
            raise UnreadablePrompt(f"the assistant's answer has a picture at {mark[0]}, which the policy cannot write")
        if not text.strip() or len(prompt.messages) == 1:
            missing = "no question" if text.strip() else "nothing to learn"
            raise UnreadablePrompt(f"there is {missing} before the end of the assistant's last message")
        return replace(prompt, messages=prompt.messages[:-1], answer=text)

    return to_demonstration


class DemonstrationEncoder:
    """Makes a prompt's sample when the stream checks the prompt, and keeps it until the batch is complete.

    Args:
        processor: The policy's processor.
        demonstrate: Makes a prompt's demonstration.
        max_tokens: Longest sample.
    """

    def __init__(self, processor: ProcessorMixin, demonstrate: Demonstrate, max_tokens: int) -> None:
        self._processor, self._demonstrate, self._max_tokens = processor, demonstrate, max_tokens
        self._samples: dict[int, Sample] = {}

    def accept(self, prompt: Prompt) -> str | None:
        """An `accept` for `PromptStream`: the reason why a prompt cannot be trained on."""
        demonstration = self._demonstrate(prompt)
        try:
            sample = encode_demonstration(self._processor, prompt, demonstration)
        except ValueError as error:  # its media do not fit its text, or the processor
            return str(error)
        if len(sample.token_ids) > self._max_tokens:
            length = len(sample.token_ids)
            return (
                f"{length} tokens with the demonstration exceed max_tokens = {self._max_tokens}: raise it, or shorten"
            )
        self._samples[id(prompt)] = sample
        return None

    def take(self, prompts: Sequence[Prompt]) -> list[Sample]:
        """Removes and returns the samples of accepted prompts."""
        return [self._samples.pop(id(prompt)) for prompt in prompts]


def encode_demonstration(
    processor: ProcessorMixin, prompt: Prompt, demonstration: Sequence[str | Observation]
) -> Sample:
    """Encodes a prompt with its demonstration; the loss is on the texts and their end tokens.

    Chat templates of thinking models open the thinking block already: it is not opened twice.
    """
    prompt_tokens = expanded_prompt(processor, prompt)
    tail = processor.tokenizer.decode(prompt_tokens[-TAIL:]).rstrip()
    if (
        demonstration
        and isinstance(demonstration[0], str)
        and demonstration[0].startswith(THINK)
        and tail.endswith(THINK)
    ):
        demonstration = [demonstration[0].removeprefix(THINK).lstrip("\n"), *demonstration[1:]]
    tokens, masks = [prompt_tokens], [np.zeros(len(prompt_tokens), bool)]
    for part in demonstration:
        tokens.append(_tokens(processor, part, prompt.template))
        masks.append(np.full(len(tokens[-1]), isinstance(part, str)))
    observed = [image for part in demonstration if isinstance(part, Observation) for image in part.images]
    return Sample(
        prompt_id=prompt.id,
        token_ids=np.concatenate(tokens),
        loss_mask=np.concatenate(masks),
        rollout_logprobs=np.zeros(sum(map(len, tokens)), np.float32),
        advantage=1.0,
        images=[*prompt.images, *observed],
        videos=prompt.videos,
    )


def _tokens(processor: ProcessorMixin, part: str | Observation, template: Mapping[str, Any]) -> np.ndarray:
    """int32 tokens of one turn of the policy, or of one observation. Special tokens in a turn's text are broken up."""
    if isinstance(part, Observation):
        return expand_media(processor, observation_tokens(processor, part, template), part.images, ())
    text = processor.tokenizer.encode(as_text(processor, part), add_special_tokens=False)
    return np.array([*text, processor.tokenizer.eos_token_id], np.int32)
