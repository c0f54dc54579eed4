"""A language model's weights carried into the Qwen3-VL text architecture, with a new, small vision tower in front.

The result speaks as the source does, sees nothing yet, and is not Qwen3-VL: its weights are the source's, its eyes are random.

Qwen3 puts an RMSNorm on queries and keys; Llama and Qwen2 have none. All norms share one epsilon ε, which decides how linear a norm
is: x / √(mean(x²) + ε) is x / √ε, but for 1 part in 2ε / mean(x²). So ε is made huge, and the other norms are made not to see it:

- The residual stream is scaled by c: the embeddings, and what every layer adds to it (o_proj, down_proj). With ε' = c²ε a norm of
  it gives c·h / √(c²·mean(h²) + c²ε) = h / √(mean(h²) + ε), what it gave before.
- q_norm and k_norm get the weight √ε': √ε'·q / √(mean(q²) + ε') = q, but for 1 part in 2ε' / mean(q²).
- Logits: a tied output embedding is scaled along, so the last norm's weight is divided by c: (cE)·(w/c) = E·w. Untied, the output
  embedding and the last norm stay as they are.

c is a power of two with ε' ≥ 2³²: products with it are exact, and the norms' non-linearity is below float32's own rounding. Queries
and keys themselves are not scaled. Text positions of interleaved MRoPE are the same on all three axes: there it equals RoPE.

What learns: AdamW's steps are absolute. On a matrix that is 10⁷ times larger they do nothing, on a weight as small as the last
norm's they would destroy it, and its gradient, 10⁷ times larger, would be all that clipping sees. `freeze_rescaled` therefore freezes
what c has touched; q, k, v, gate, up, the layers' norms and the vision tower but for its last matrices learn as in any other model.

Not for float16: activations exceed its range. A Qwen3 text model has the norms already: c = 1, a plain copy, nothing is frozen.
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
"""Of the scaled norms: queries of a mean square of 500 are then off by less than float32's rounding."""
SCALE_FIELD = "carried_scale"
"""Where the text config says what c is."""
ENLARGED = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight")
SCALED = re.compile(
    r"\b(embed_tokens\.weight|(o_proj|down_proj)\.weight|language_model\.norm\.weight|[qk]_norm\.weight"
    r"|(merger|deepstack_merger_list\.\d+)\.linear_fc2\.(weight|bias)"  # of the vision tower: its features join the stream
    r"|o_proj\.bias)$"  # Qwen2 has none, nor has vLLM's Qwen3: it stays 0
)
"""What names of parameters end in where c is, and of one more that must not learn."""
MARKER = "carried.json"
NOTE = (
    "Not Qwen3-VL weights: the language weights are the source's, changed as policies/small/transplant.py says to give the same "
    "text in Qwen3-VL's architecture; the vision tower is random and has to be taught."
)

# Qwen's vision markers within messages that the source's own template then renders as plain text.
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
    """Writes a policy with a source's language weights and a new vision tower: `load_policy`, transformers and vLLM load it.

    Args:
        source: A causal language model of the Llama, Qwen2 or Qwen3 family, not quantised.
        tokenizer: Its tokenizer, with a chat template; gets the vision tokens that it lacks.
        folder: Where to; made if missing.
        seed: Of the vision tower.
        scale: c, to measure others than the one that ε gives.
        origin: What the folder is to say the weights are; default: the source's name.

    Returns:
        The folder.

    Raises:
        ValueError: If the source computes something that Qwen3-VL's text architecture does not.
    """
    refuse_unsound(source.config)
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of '{source.name_or_path}' has no chat template: set tokenizer.chat_template, or carry the source's "
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
    told = source.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if told.eos_token_id is None else told.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    save_policy(model, small_processor(tokenizer, FLATTEN + tokenizer.chat_template), folder)
    told_of = {"source": origin or source.name_or_path, "scale": scale, "seed": seed, "note": NOTE}
    # Written last: its presence says that the folder is whole.
    (Path(folder) / MARKER).write_text(json.dumps(told_of, indent=1))
    return Path(folder)


def freeze_rescaled(model: torch.nn.Module) -> list[str]:
    """Freezes the parameters of a carried policy that AdamW's absolute steps cannot train; returns their names. See above.

    Of any other policy it freezes nothing.
    """
    if getattr(model.config.text_config, SCALE_FIELD, 1.0) == 1.0:
        return []
    scaled = [name for name, _ in model.named_parameters() if SCALED.search(name)]
    for name in scaled:
        model.get_parameter(name).requires_grad_(False)
    return scaled


def text_scale(config: PreTrainedConfig) -> float:
    """c: the power of two that makes ε' = c²ε at least `SMALLEST_EPS`; 1 where queries and keys are normalised already."""
    if config.model_type == "qwen3":
        return 1.0
    return 2.0 ** math.ceil(math.log2(SMALLEST_EPS / config.rms_norm_eps) / 2)


def refuse_unsound(config: PreTrainedConfig) -> None:
    """Raises for whatever the Qwen3-VL text architecture, in transformers or in vLLM, cannot compute.

    Raises:
        ValueError: Names the field, its value and the remedy.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type = '{config.model_type}' cannot be carried into Qwen3-VL: pass a model of {', '.join(FAMILIES)}"
        )
    rope = config.rope_parameters
    head_dim = _head_dim(config)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    biased = config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    for wrong, what in (
        (config.hidden_act != "silu", f"hidden_act = '{config.hidden_act}', and Qwen3-VL's is silu"),
        (rope["rope_type"] != "default", f"rope_type = '{rope['rope_type']}', which interleaved MRoPE does not have"),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, f"partial_rotary_factor = {rope.get('partial_rotary_factor')}"),
        (layers != {"full_attention"}, f"layer_types with {', '.join(sorted(layers - {'full_attention'}))}"),
        (biased, "attention_bias = True, a bias on the attention's output, which vLLM's Qwen3 has not"),
        (getattr(config, "mlp_bias", False), "mlp_bias = True, which Qwen3 has not"),
        (
            head_dim % 2 or head_dim < 8,
            f"head_dim = {head_dim}, whose pairs cannot be shared between time, height and width: it must be even and >= 8",
        ),
    ):
        if wrong:
            raise ValueError(f"the source has {what}: choose another source")


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def mrope_section(head_dim: int) -> list[int]:
    """Rotated pairs for time, height and width, in the published proportion [24, 20, 20] of 64."""
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
    """Writes the source's weights, scaled, into a fresh model; leaves the vision tower random, its features of words' size."""
    empty = {name: parameter for name, parameter in model.named_parameters() if ".visual." not in name}
    for name, tensor in _scaled(source, scale):
        if name not in empty:
            raise ValueError(f"the source's weight {name} has no place in Qwen3-VL: choose another source")
        place = empty.pop(name)
        place[: len(tensor)] = tensor
        if len(place) > len(tensor):  # words that only the new vocabulary has: the mean of the others
            place[len(tensor) :] = tensor.mean(0)
    for name, place in empty.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            place.fill_(math.sqrt(model.config.text_config.rms_norm_eps))
        else:
            assert name.endswith("o_proj.bias"), name
            place.zero_()
    word_size = source.get_input_embeddings().weight.float().square().mean().sqrt() * scale
    for merger in (model.model.visual.merger, *model.model.visual.deepstack_merger_list):
        for place in merger.linear_fc2.parameters():
            place *= word_size


def _scaled(source: PreTrainedModel, scale: float) -> Iterator[tuple[str, Tensor]]:
    """The source's parameters under Qwen3-VL's names; of tied embeddings there is one."""
    tied = source.config.tie_word_embeddings
    for name, parameter in source.named_parameters():
        tensor = parameter.detach().to(torch.float32)
        if name.endswith(ENLARGED):
            tensor = tensor * scale
        if name == "model.norm.weight" and tied:
            tensor = tensor / scale
        yield name.replace("model.", "model.language_model.", 1), tensor
