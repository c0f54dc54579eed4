"""A prompt → the token ids that an engine is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rollout.types import Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def render(processor: ProcessorMixin, prompt: Prompt) -> list[int]:
    """Applies the chat template; each image is one placeholder, which the engine expands to as many as the image takes."""
    text = processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    return processor.tokenizer.encode(text, add_special_tokens=False)


def prompt_length(processor: ProcessorMixin, prompt: Prompt) -> int:
    """Tokens of the prompt with its images expanded, without touching a pixel."""
    length = len(render(processor, prompt))
    if prompt.images:
        sizes = [(image.height, image.width) for image in prompt.images]
        image_tokens = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        length += sum(image_tokens) - len(image_tokens)
    return length


def fits_context(
    processor: ProcessorMixin, *, max_model_len: int, max_tokens: int, max_images: int | None = None
) -> Callable[[Prompt], str | None]:
    """An `accept` for `PromptStream`: refuses prompts that leave no room for a whole response, or have too many images.

    Args:
        processor: The policy's processor.
        max_model_len: Longest prompt plus response, in tokens.
        max_tokens: Longest response, in tokens.
        max_images: Most images of a prompt that the engines take; None is no limit.
    """

    def accept(prompt: Prompt) -> str | None:
        if max_images is not None and len(prompt.images) > max_images:
            return f"{len(prompt.images)} images exceed rollout.max_images = {max_images}: raise max_images"
        length = prompt_length(processor, prompt)
        if length + max_tokens <= max_model_len:
            return None
        return (
            f"{length} prompt tokens and rollout.max_tokens = {max_tokens} exceed rollout.max_model_len = {max_model_len}: "
            "raise max_model_len, lower max_tokens, or shorten the prompt"
        )

    return accept
