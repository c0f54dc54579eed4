"""Transplants a language model's weights into the Qwen3-VL text architecture, and adds a new, small vision tower.

The result writes the same text as the source. Its vision tower is random, so it is not Qwen3-VL.

Qwen3 puts an RMSNorm on queries and keys; Llama and Qwen2 have none. All norms share one epsilon ε, which decides how linear a norm
is: x / √(mean(x²) + ε) is x / √ε, up to 1 part in 2ε / mean(x²). So ε is made huge, and the other norms are scaled to cancel it:

- The residual stream is scaled by c: the embeddings, and what every layer adds to it (o_proj, down_proj). With ε' = c²ε a norm of
  it gives c·h / √(c²·mean(h²) + c²ε) = h / √(mean(h²) + ε), the same as before.
- q_norm and k_norm get the weight √ε': √ε'·q / √(mean(q²) + ε') = q, up to 1 part in 2ε' / mean(q²).
- Logits: a tied output embedding is scaled too, so the last norm's weight is divided by c: (cE)·(w/c) = E·w. Untied, the output
  embedding and the last norm stay as they are.

c is a power of two with ε' ≥ 2³². Products with it are exact, and the norms' non-linearity is below float32's own rounding. Queries
and keys themselves are not scaled. Text positions of interleaved MRoPE are the same on all three axes: there it equals RoPE.

AdamW's steps are absolute. On a matrix that is 10⁷ times larger they do nothing. A weight as small as the last norm's they would
destroy, and its gradient, 10⁷ times larger, would dominate the clipped norm. So `config.frozen_parameters` of the checkpoint names
every parameter that c has rescaled, and the learner freezes them. All others learn as in any other model: q, k, v, gate, up, the
layers' norms, and the vision tower except its last matrices.

float16 cannot hold the activations. A Qwen3 text model has the norms already: c = 1, a plain copy, nothing is frozen.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
)

from policies.export import save_policy
from policies.small.qwen3_vl import small_processor, small_vision_config

FAMILIES = ("llama", "qwen2", "qwen3")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SMALLEST_EPS = 2.0**32
"""Least ε' of the rescaled norms: it changes queries of a mean square of 500 by less than float32's rounding."""
SCALE_FIELD = "carried_scale"
"""Field of the text config that holds c."""
ENLARGED = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight")
RESCALED = re.compile(
    r"\b(embed_tokens\.weight|(o_proj|down_proj)\.weight|language_model\.norm\.weight|[qk]_norm\.weight"
    r"|(merger|deepstack_merger_list\.\d+)\.linear_fc2\.(weight|bias)"  # the vision tower's features join the residual stream
    r"|o_proj\.bias)$"  # absent from Qwen2 and from vLLM's Qwen3, so it must stay 0
)
"""Matches names of parameters that c rescales, and `o_proj.bias`, which must not learn either."""
MARKER = "carried.json"
NOTE = (
    "Not Qwen3-VL weights: the language weights are the source's, rescaled by policies/small/transplant.py to give the same "
    "text in Qwen3-VL's architecture. The vision tower is random and must be trained."
)

# Writes Qwen's vision markers into the messages. The source's own template then renders them as plain text.
FLATTEN = """\
{%- set flat = namespace(messages=[], text='') -%}
{%- for message in messages -%}
    {%- set flat.text = '' -%}
    {%- if message.content is string -%}
        {%- set flat.text = message.content -%}
    {%- elif message.content -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}
                {%- set flat.text = flat.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}
            {%- elif part.type == 'video' -%}
                {%- set flat.text = flat.text + '<|vision_start|><|video_pad|><|vision_end|>' -%}
            {%- else -%}
                {%- set flat.text = flat.text + part.text -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def transplant(
    source: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    seed: int = 0,
    scale: float | None = None,
    origin: str | None = None,
) -> Path:
    """Writes a policy with a source's language weights and a new vision tower.

    `load_policy`, transformers and vLLM load the folder.

    Args:
        source: A causal language model of the Llama, Qwen2 or Qwen3 family, not quantised.
        tokenizer: The source's tokenizer, with a chat template; missing vision tokens are added to it.
        folder: The target folder; created if missing.
        seed: Seeds the vision tower.
        scale: Another c than the one derived from ε, for measurements.
        origin: The description of the source in the marker file; default: the source's name.

    Returns:
        The folder.

    Raises:
        ValueError: The source computes something that Qwen3-VL's text architecture does not.
    """
    refuse_unsound(source.config)
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of '{source.name_or_path}' has no chat template: set tokenizer.chat_template, or pass the source's "
            "instruction-tuned version"
        )
    scale = scale or text_scale(source.config)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in VISION_TOKENS], special_tokens=True
    )
    config = _config(source.config, tokenizer, scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        _fill(model, source, scale)
    model.config.frozen_parameters = rescaled_parameters(model)
    end_token_id = source.generation_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if end_token_id is None else end_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    save_policy(model, small_processor(tokenizer, FLATTEN + tokenizer.chat_template), folder)
    marker = {"source": origin or source.name_or_path, "scale": scale, "seed": seed, "note": NOTE}
    # Written last: a folder with this file is complete.
    (Path(folder) / MARKER).write_text(json.dumps(marker, indent=1))
    return Path(folder)


def rescaled_parameters(model: PreTrainedModel) -> list[str]:
    """Returns the names of the parameters that c has rescaled; none for a policy that was not transplanted."""
    if getattr(model.config.text_config, SCALE_FIELD, 1.0) == 1.0:
        return []
    return [name for name, _ in model.named_parameters() if RESCALED.search(name)]


def text_scale(config: PreTrainedConfig) -> float:
    """Returns c: the power of two that makes ε' = c²ε at least `SMALLEST_EPS`; 1 if queries and keys are normalised already."""
    if config.model_type == "qwen3":
        return 1.0
    return 2.0 ** math.ceil(math.log2(SMALLEST_EPS / config.rms_norm_eps) / 2)


def refuse_unsound(config: PreTrainedConfig) -> None:
    """Refuses a source that the Qwen3-VL text architecture, in transformers or in vLLM, cannot compute.

    Raises:
        ValueError: Names the field, the value and the remedy.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type = '{config.model_type}' cannot be transplanted into Qwen3-VL: pass a model of {', '.join(FAMILIES)}"
        )
    rope = config.rope_parameters
    head_dim = _head_dim(config)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    biased = config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    for is_wrong, problem in (
        (config.hidden_act != "silu", f"hidden_act = '{config.hidden_act}', but Qwen3-VL's is silu"),
        (
            rope["rope_type"] != "default",
            f"rope_type = '{rope['rope_type']}', which interleaved MRoPE does not support",
        ),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, f"partial_rotary_factor = {rope.get('partial_rotary_factor')}"),
        (layers != {"full_attention"}, f"layer_types with {', '.join(sorted(layers - {'full_attention'}))}"),
        (biased, "attention_bias = True, a bias on the attention's output, which vLLM's Qwen3 lacks"),
        (getattr(config, "mlp_bias", False), "mlp_bias = True, which Qwen3 lacks"),
        (
            head_dim % 2 or head_dim < 8,
            f"head_dim = {head_dim}, whose pairs cannot be divided among time, height and width: it must be even and >= 8",
        ),
    ):
        if is_wrong:
            raise ValueError(f"the source has {problem}: choose another source")


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def mrope_section(head_dim: int) -> list[int]:
    """Returns the rotated pairs of time, height and width, in the published proportion [24, 20, 20] of 64."""
    side = head_dim // 2 * 20 // 64
    return [head_dim // 2 - 2 * side, side, side]


def _config(source: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, scale: float) -> Qwen3VLConfig:
    ids = dict(zip(VISION_TOKENS, tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)), strict=True))
    head_dim = _head_dim(source)
    same = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads max_position_embeddings"
    text: dict[str, Any] = {name: getattr(source, name) for name in same.split()}
    text |= {
        "vocab_size": max(source.vocab_size, len(tokenizer)),
        "head_dim": head_dim,
        "rms_norm_eps": scale**2 * source.rms_norm_eps,
        "attention_bias": source.model_type == "qwen2",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(source.rope_parameters["rope_theta"]),
            "mrope_section": mrope_section(head_dim),
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": source.tie_word_embeddings,
        SCALE_FIELD: scale,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=small_vision_config(out_hidden_size=source.hidden_size),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=source.tie_word_embeddings,
    )


def _fill(model: PreTrainedModel, source: PreTrainedModel, scale: float) -> None:
    """Writes the source's rescaled weights into a new model, and scales the random vision features to the embeddings' size."""
    unfilled = {name: parameter for name, parameter in model.named_parameters() if ".visual." not in name}
    for name, tensor in _scaled(source, scale):
        if name not in unfilled:
            raise ValueError(f"the source's weight {name} has no counterpart in Qwen3-VL: choose another source")
        target = unfilled.pop(name)
        target[: len(tensor)] = tensor
        if len(target) > len(tensor):  # tokens of the new vocabulary alone get the mean of the others
            target[len(tensor) :] = tensor.mean(0)
    for name, target in unfilled.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            target.fill_(math.sqrt(model.config.text_config.rms_norm_eps))
        else:
            assert name.endswith("o_proj.bias"), name
            target.zero_()
    word_size = source.get_input_embeddings().weight.float().square().mean().sqrt() * scale
    for merger in (model.model.visual.merger, *model.model.visual.deepstack_merger_list):
        for parameter in merger.linear_fc2.parameters():
            parameter *= word_size


def _scaled(source: PreTrainedModel, scale: float) -> Iterator[tuple[str, Tensor]]:
    """Yields the source's parameters under Qwen3-VL's names; tied embeddings come once."""
    tied = source.config.tie_word_embeddings
    for name, parameter in source.named_parameters():
        tensor = parameter.detach().to(torch.float32)
        if name.endswith(ENLARGED):
            tensor = tensor * scale
        if name == "model.norm.weight" and tied:
            tensor = tensor / scale
        yield name.replace("model.", "model.language_model.", 1), tensor
