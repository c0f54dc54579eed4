"""Tools and variables of a row reach the chat template, alike for engine and learner, and never as control tokens."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.small.qwen3_vl import CHAT_TEMPLATE, small_processor
from rewards import Score
from rewards.trial.recorded import read_groups
from rl.run_dir.transcripts import transcript
from rl.sft.demonstrations import encode_demonstration
from rollout.data.messages import checked_messages
from rollout.data.prompts import column_mapping, prompts_from
from rollout.rendering import (
    expanded_prompt,
    fits_context,
    observation_tokens,
    opens_thought,
    render,
    rendered_text,
    require_same_tokens,
)
from rollout.types import Completion, Group, Observation, Prompt

THINKING = CHAT_TEMPLATE + "{%- if enable_thinking is defined and not enable_thinking -%}<think></think>{%- endif -%}"
PROCESSOR = small_processor(chat_template=THINKING)
TOOL = {"type": "function", "function": {"name": "zoom", "description": "Shows a part.", "parameters": {}}}


def prompt(*, messages: Any = None, **template: Any) -> Prompt:
    return Prompt(id="p", messages=messages or [{"role": "user", "content": "Where?"}], template=template)


def text(prompt: Prompt) -> str:
    return rendered_text(PROCESSOR, prompt)


def test_tools_and_variables_are_rendered() -> None:
    assert text(prompt(tools=[TOOL])).startswith(f"<|im_start|>s{json.dumps([TOOL])}<|im_end|><|im_start|>uWhere?")
    assert text(prompt(enable_thinking=False)).endswith("<|im_start|>a<think></think>")
    assert text(prompt(enable_thinking=True)) == text(prompt())
    thinks = small_processor(chat_template=CHAT_TEMPLATE + "{%- if enable_thinking -%}<think>{%- endif -%}")
    assert opens_thought(thinks, render(thinks, prompt(enable_thinking=True)))
    assert not opens_thought(thinks, render(thinks, prompt()))


def test_engine_and_learner_read_the_same_tokens() -> None:
    sent = pickle.loads(pickle.dumps(prompt(tools=[TOOL], enable_thinking=False)))  # the engine is another process
    group = Group(prompt=sent, prompt_token_ids=np.array(render(PROCESSOR, sent), np.int32), completions=[])
    require_same_tokens(PROCESSOR, group)
    assert len(expanded_prompt(PROCESSOR, sent)) > len(expanded_prompt(PROCESSOR, prompt()))


def test_a_variable_that_the_template_does_not_read_is_refused() -> None:
    small = small_processor()
    accept = fits_context(small, max_model_len=999, max_tokens=9)
    assert accept(prompt(enable_thinking=False)).startswith(
        "the prompt has enable_thinking, which the model's chat template does not read: remove it from the row"
    )
    calls = [{"function": {"name": "zoom", "arguments": {}}}]
    asked = [*prompt().messages, {"role": "assistant", "content": "", "tool_calls": calls}, *prompt().messages]
    silent = small_processor(chat_template="{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(ValueError, match="the prompt has tool_calls, which the model's chat template does not read"):
        render(silent, prompt(messages=asked))
    with pytest.raises(ValueError, match="the prompt has tools, which"):
        render(silent, prompt(tools=[TOOL]))
    assert '{"name": "zoom", "arguments": {}}' in rendered_text(small, prompt(messages=asked))


@pytest.mark.parametrize("name", ["chat_template", "add_generation_prompt", "messages", "tokenize", "a b"])
def test_a_row_cannot_replace_the_template_or_its_messages(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is no variable that a row may set"):
        render(PROCESSOR, replace(prompt(), template={name: "{{ 1 }}"}))


def test_control_tokens_in_tools_and_calls_are_text() -> None:
    end = "<|im_end|>"
    tool = {"type": "function", "function": {"name": f"zoom{end}", "parameters": {f"{end}key": [end]}}}
    calls = [{"function": {"name": "zoom", "arguments": {"x": f"{end}<|image_pad|>"}}}]
    messages = [{"role": "assistant", "content": end, "tool_calls": calls}, *prompt().messages]
    assert text(prompt(messages=messages, tools=[tool])).count("<|im_end|>") == 3  # those of the template
    assert fits_context(PROCESSOR, max_model_len=999, max_tokens=9)(prompt(messages=messages)) is None


def test_an_observation_opens_the_next_turn_with_the_prompts_variables() -> None:
    def decoded(**template: Any) -> str:
        return PROCESSOR.tokenizer.decode(observation_tokens(PROCESSOR, Observation(text="ok"), template))

    assert decoded(enable_thinking=False, tools=[TOOL]) == "<|im_start|>uok<|im_end|><|im_start|>a<think></think>"
    assert decoded() == "<|im_start|>uok<|im_end|><|im_start|>a"


def test_control_tokens_in_a_demonstration_are_text() -> None:
    sample = encode_demonstration(PROCESSOR, prompt(tools=[TOOL]), ["a<|im_end|><|image_pad|>b"])
    learned = PROCESSOR.tokenizer.decode(sample.token_ids[sample.loss_mask])
    assert learned == "a< |im_end|>< |image_pad|>b<|im_end|>"


def test_recorded_samples_keep_the_variables(tmp_path: Path) -> None:
    group = Group(
        prompt=prompt(tools=[TOOL]), prompt_token_ids=np.zeros(1, np.int32), completions=[Completion(text="There.")]
    )
    row = transcript(tmp_path, "step_1", group, [Score(reward=1.0)])
    (tmp_path / "step_1.jsonl").write_text(json.dumps(row) + "\n")
    [recorded] = read_groups(tmp_path)
    assert recorded.prompt.template == {"tools": [TOOL]}


def test_columns_hold_tools_and_variables() -> None:
    row = {
        "question": "Where?",
        "functions": [{"name": "zoom", "parameters": None}],
        "options": '{"enable_thinking": false}',
    }
    mapping = column_mapping(image=None, answer=None, tools="functions", template="options")
    [made] = prompts_from([row], mapping)
    assert made.template == {"enable_thinking": False, "tools": [{"type": "function", "function": {"name": "zoom"}}]}
    assert made.columns == {}
    assert checked_messages(made).template == made.template
