"""A published Qwen3-VL with random weights: config, sharded safetensors, tokenizer and template as a folder of the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from policies.export import exported_metadata
from policies.model_sizes import published_config
from policies.sharding import empty_policy

MAX_SHARD_BYTES = 10**9
STD = 0.02
"""Standard deviation of matrices, the published initializer_range."""

# Rebuilt from the documentation of Qwen3-VL: turns in ChatML with newlines, media between their markers, tools in the system's
# turn, calls and results in tags.
CHAT_TEMPLATE = """\
{%- macro content_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set first = messages[0] -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if first.role == 'system' -%}
        {{- content_of(first.content) + '\\n\\n' -}}
    {%- endif -%}
    {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
    {%- for tool in tools -%}
        {{- '\\n' + tool | tojson -}}
    {%- endfor -%}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
    {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n' -}}
    {{- '</tool_call><|im_end|>\\n' -}}
{%- elif first.role == 'system' -%}
    {{- '<|im_start|>system\\n' + content_of(first.content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '<|im_start|>user\\n' + content_of(message.content) + '<|im_end|>\\n' -}}
    {%- elif message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\\n' + content_of(message.content) -}}
        {%- for call in message.tool_calls -%}
            {{- '\\n<tool_call>\\n' + (call.function or call) | tojson + '\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- elif message.role == 'tool' -%}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content_of(message.content) + '\\n</tool_response><|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def write_published(folder: Path, size: str, *, layers: int, tokenizer: Path) -> Path:
    """Writes a model with random weights, a layer at a time; does nothing if the folder is complete.

    Args:
        folder: The target folder; created if missing.
        size: A published size.
        layers: Layers of the language model; all other sizes are the published ones.
        tokenizer: Folder with the tokenizer.json of Qwen3.

    Returns:
        The folder.
    """
    if (folder / SAFETENSORS_INDEX_FILE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = published_config(size)
    config["text_config"]["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    GenerationConfig(eos_token_id=[151645, 151643], pad_token_id=151643, do_sample=True).save_pretrained(folder)
    published_processor(tokenizer).save_pretrained(folder)
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, _, shape in exported_metadata(empty_policy(folder))
    }
    split = split_torch_state_dict_into_shards(weights, max_shard_size=MAX_SHARD_BYTES)
    generator = torch.Generator().manual_seed(0)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: random_weight(name, weights[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2))  # last: it makes the folder complete
    return folder


def random_weight(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns ones for a norm's weight, zeros for a bias, normal numbers for a matrix."""
    if name.endswith("bias"):
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim == 1:
        return torch.ones(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).normal_(0, STD, generator=generator)


def published_processor(tokenizer: Path) -> Qwen3VLProcessor:
    """Returns the processor of a published model, with the tokenizer of a folder.

    Raises:
        ValueError: The tokenizer is not Qwen3's.
    """
    vision: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    normalization = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    words = AutoTokenizer.from_pretrained(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if (found := words.convert_tokens_to_ids("<|image_pad|>")) != 151655:
        raise ValueError(f"<|image_pad|> is token {found} in {tokenizer}, not 151655: take the tokenizer of Qwen3")
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 65536, "longest_edge": 16777216}, **vision, **normalization
        ),
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25165824}, **vision, **normalization
        ),
        tokenizer=words,
        chat_template=CHAT_TEMPLATE,
    )
