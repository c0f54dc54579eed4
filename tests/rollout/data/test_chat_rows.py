"""Rows as other toolkits' documentation prints them, and the prompts that the policy reads."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rl.sft.demonstrations import demonstrated
from rollout import Prompt
from rollout.data.chat_rows import chat_rows
from rollout.data.media import UnreadablePrompt
from rollout.data.prompts import column_mapping, prompts_from
from rollout.rendering import prompt_length, rendered_text

PROCESSOR = small_processor()
WIDE, TALL = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (32, 96), "blue")
PICTURE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>"
to_demonstration = demonstrated(partial(chat_rows, demonstrated=True))


def drawn(row: dict[str, Any], to_prompt: Any = chat_rows) -> Prompt:
    [prompt] = prompts_from([row], to_prompt)
    assert prompt_length(PROCESSOR, prompt) > 0  # as many media as places
    return prompt


def read(prompt: Prompt) -> str:
    """The prompt as the policy reads it, with `|` in place of the marks of turns."""
    text = rendered_text(PROCESSOR, prompt).replace("<|im_end|>", "")
    return text.replace("<|im_start|>", "|").replace(PICTURE, "[picture]").replace(VIDEO, "[video]")


def asked(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def said(text: str) -> dict[str, Any]:
    return asked(text, "assistant")


VERL = {
    "data_source": "my/angles",
    "prompt": [asked("You are exact.", "system"), asked("<image>How wide is <image>the angle?")],
    "images": [WIDE, TALL],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "35"},
    "extra_info": {"split": "train", "index": 4, "answer": "it is 35", "question": "How wide is the angle?"},
}
TOOL = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object", "properties": {}}}}
CALL = '{"name": "weigh", "arguments": {"what": "a stone"}}'
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Weigh the stone."},
        {"from": "function_call", "value": CALL},
        {"from": "observation", "value": "7 kg"},
        {"from": "gpt", "value": "It weighs 7 kg."},
    ],
    "system": "Use the scales.",
    "tools": json.dumps([TOOL["function"]]),
}
LLAVA = {
    "id": "b-17",
    "image": WIDE,
    "conversations": [
        {"from": "human", "value": "<image>\nWhich colour?"},
        {"from": "gpt", "value": "Red."},
        {"from": "human", "value": "And its shape?"},
        {"from": "gpt", "value": "<think>\nwide\n</think>\n\nA rectangle."},
    ],
}


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        pytest.param({"prompt": "Is grass green?"}, "|uIs grass green?|a", None, id="TRL, prompt only"),
        pytest.param(
            {"prompt": [asked("Is grass green?")], "completion": [said("It is.")]},
            "|uIs grass green?|a",
            "It is.",
            id="TRL, completion",
        ),
        pytest.param(
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}],
                "images": [WIDE],
                "solution": "red",
            },
            "|u[picture]Which colour?|a",
            "red",
            id="TRL, images",
        ),
        pytest.param(VERL, "|sYou are exact.|u[picture]How wide is [picture]the angle?|a", "35", id="verl"),
        pytest.param(
            {"problem": "<image>Find y. <image>", "images": [WIDE, TALL], "answer": "12"},
            "|u[picture]Find y. [picture]|a",
            "12",
            id="EasyR1",
        ),
        pytest.param(
            {"messages": [asked("How many cups are there?")], "images": [WIDE], "solution": "<answer> 5 </answer>"},
            "|u[picture]How many cups are there?|a",
            "<answer> 5 </answer>",
            id="ms-swift, GRPO",
        ),
        pytest.param(
            {"system": "Be short.", "query": "And the sum?", "history": [["One?", "1"]], "response": "3"},
            "|sBe short.|uOne?|a1|uAnd the sum?|a",
            "3",
            id="ms-swift, query and response",
        ),
        pytest.param(
            {"instruction": "Add the numbers.", "input": "4 and 5", "output": "9"},
            "|uAdd the numbers.\n4 and 5|a",
            "9",
            id="LLaMA-Factory, alpaca",
        ),
        pytest.param(
            {"messages": [asked("<image>Who?"), said("A cat."), asked("Where?<image>")], "images": [WIDE, TALL]},
            "|u[picture]Who?|aA cat.|uWhere?[picture]|a",
            None,
            id="LLaMA-Factory, several turns",
        ),
    ],
)
def test_a_row_of_another_toolkit_is_a_prompt(row: dict[str, Any], text: str, answer: Any) -> None:
    prompt = drawn(row)
    assert (read(prompt), prompt.answer) == (text, answer)
    assert [image.size for image in prompt.images] == [(64, 32), (32, 96)][: text.count("[picture]")]


def test_rows_of_pandas_are_read(tmp_path: Path) -> None:
    row = {name: value for name, value in VERL.items() if name != "images"} | {"prompt": [asked("How wide?")]}
    pd.DataFrame([row, row]).to_parquet(tmp_path / "rows.parquet")
    rows = pd.read_parquet(tmp_path / "rows.parquet").to_dict("records")
    assert type(rows[0]["prompt"]).__name__ == "ndarray"
    prompt = drawn(rows[0])
    assert (read(prompt), prompt.answer) == ("|uHow wide?|a", "35")


def test_the_system_message_may_stand_beside_the_conversation() -> None:
    row = {"system": "Be short.", "problem": "One?", "messages": [asked("Be long.", "system"), asked("One? Think.")]}
    assert read(drawn(row)) == "|sBe long.|uOne? Think.|a"


def test_a_row_of_verl_keeps_its_other_columns_and_has_its_source_as_task() -> None:
    prompt = drawn(VERL)
    assert prompt.task == "my/angles"
    assert prompt.columns == {name: VERL[name] for name in ("data_source", "ability", "reward_model", "extra_info")}


@pytest.mark.parametrize("write", [lambda row: row, lambda row: {**row, "prompt": json.dumps(row["prompt"])}])
def test_names_with_dots_lead_into_columns(write: Any) -> None:
    mapping = column_mapping(
        messages="prompt", image="images", answer="reward_model.ground_truth", id="extra_info.index"
    )
    prompt = drawn(write(VERL), mapping)
    assert (read(prompt), prompt.answer, prompt.id) == (read(drawn(VERL)), "35", "4")
    assert (
        drawn({"question": "?", "a.b": "1", "list": [{"x": "2"}]}, column_mapping(image=None, answer="a.b")).answer
        == "1"
    )
    assert drawn({"question": "?", "list": [{"x": "2"}]}, column_mapping(image=None, answer="list.0.x")).answer == "2"


def test_calls_and_tools_of_a_conversation_reach_the_template_and_the_last_answer_is_learned() -> None:
    prompt = drawn(SHAREGPT, to_demonstration)
    assert prompt.answer == "It weighs 7 kg."
    assert prompt.template == {"tools": [TOOL]}
    assert read(prompt) == f"|s{json.dumps([TOOL])}|sUse the scales.|uWeigh the stone.|a{CALL}|t7 kg|a"


def test_calls_join_the_text_of_the_assistant_before_them() -> None:
    messages = [
        asked("<image>What time is it?"),
        said("<think>\nI open the clock.\n</think>\n"),
        asked(CALL, "tool_call"),
        asked(CALL, "tool_call"),
        asked('{"screen": "<image>"}', "tool_response"),
    ]
    prompt = drawn({"messages": messages, "tools": json.dumps([TOOL]), "images": [WIDE, TALL]})
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool"]
    assert read(prompt).endswith(
        f'time is it?|a<think>\nI open the clock.\n</think>\n{CALL}{CALL}|t{{"screen": "[picture]"}}|a'
    )


@pytest.mark.parametrize("to_prompt", [chat_rows, column_mapping(messages="conversations", answer=None)])
def test_a_conversation_that_ends_with_the_assistant_is_refused_for_rl_and_learned_in_a_cold_start(
    to_prompt: Any,
) -> None:
    with pytest.raises(UnreadablePrompt, match="the messages end with the assistant's answer.*recipes.cold_start"):
        drawn(LLAVA, to_prompt)
    prompt = drawn(LLAVA, demonstrated(to_prompt))
    assert read(prompt) == "|u[picture]\nWhich colour?|aRed.|uAnd its shape?|a"
    assert prompt.answer == "<think>\nwide\n</think>\n\nA rectangle."


def test_a_row_of_llava_is_named_by_its_id() -> None:
    assert drawn(LLAVA, to_demonstration).id == "b-17"


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"prompt": "Two?", "completion": "2"}, "|uTwo?|a", "2"),
        ({"instruction": "Say two.", "input": "", "output": "two", "answer": "2"}, "|uSay two.|a", "two"),
        ({"conversation": [{"human": "Two?", "assistant": "2"}], "system": "Count."}, "|sCount.|uTwo?|a", "2"),
        (
            {"messages": [asked("Two?"), {**said("2"), "reasoning_content": "1+1"}]},
            "|uTwo?|a",
            "<think>\n1+1\n</think>\n\n2",
        ),
        (
            {"messages": [asked("Two?"), said("<think>\n1+1\n</think>\n"), said("2")]},
            "|uTwo?|a",
            "<think>\n1+1\n</think>\n2",
        ),
        ({"problem": "Two?", "answer": "2"}, "|uTwo?|a", "2"),
    ],
)
def test_a_cold_start_learns_the_whole_response(row: dict[str, Any], text: str, answer: str) -> None:
    prompt = drawn(row, to_demonstration)
    assert (read(prompt), prompt.answer) == (text, answer)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Two?", "completion": "3", "label": False}, "its label is false"),
        ({"messages": [asked("Two?"), said("3")], "kto_tag": False}, "its kto_tag is false"),
        ({"messages": [asked("Two?"), {**said("3"), "loss": False}]}, "its loss is false"),
        ({"messages": [asked("Draw it."), said("<image>")], "images": [WIDE]}, "has a picture at <image>"),
        ({"messages": [said("Once upon a time")]}, "there is no question"),
        ({"messages": [asked("Two?"), said(" ")]}, "there is nothing to learn"),
        ({"messages": [asked("Two?"), asked(CALL, "function_call")]}, "its last message calls a tool"),
    ],
)
def test_a_response_that_is_not_to_be_learned_is_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadablePrompt, match=reason):
        drawn(row, to_demonstration)


def test_a_disliked_completion_is_no_reference_answer() -> None:
    with pytest.raises(UnreadablePrompt, match="its label is false: its response is no example to follow"):
        drawn({"prompt": "Two?", "completion": "3", "label": False})


def test_columns_of_the_same_meaning_may_agree() -> None:
    row = {"problem": "Add 1 and 2.", "messages": [asked("Add 1 and 2. Think first.")], "answer": 3}
    prompt = drawn({**row, "solution": r"1 + 2 is \boxed{3}."})
    assert (read(prompt), prompt.answer) == ("|uAdd 1 and 2. Think first.|a", 3)
    assert prompt.columns["solution"].startswith("1 + 2")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": "One?", "question": "Two?"}, "the row asks differently in problem and question"),
        ({"prompt": "One?", "messages": [asked("Two?")]}, "the row asks differently in messages and prompt"),
        ({"problem": "One?", "answer": "5", "solution": "15"}, "different answers in answer and solution"),
        ({"problem": "One?", "answer": "1", "solution": "it is -1"}, "different answers in answer and solution"),
        ({"problem": "One?", "image": [WIDE], "images": [TALL]}, "the row has both images and image"),
        ({"text": "One"}, "finds no question in the columns 'text': it looks for messages in messages, conversations"),
    ],
)
def test_columns_that_differ_are_refused_with_the_options_that_choose(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*column_mapping\(messages=.*--columns\.messages"):
        drawn(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "One?", "audios": ["a.wav"]}, "it has audio: the policy reads text, image and video"),
        ({"prompt": "<image>One?"}, "the text has 1 placeholders <image>, but the row has 0 images"),
        (
            {"prompt": [asked("<image>?"), said("a"), asked("?")], "images": [WIDE, TALL]},
            "the text has 1 placeholders",
        ),
        ({"prompt": [asked("a"), said("<image>"), asked("<image>?")], "images": [WIDE]}, "the text has 2 placeholders"),
        ({"prompt": [asked("a"), asked("b", "narrator")]}, "the role 'narrator'"),
        ({"prompt": "One?", "tools": "weigh the stone"}, "its tools are 'weigh the stone'"),
        ({"prompt": "One?", "chat_template_kwargs": "fast"}, "its template variables are 'fast'"),
        ({"messages": [asked("a"), asked("no JSON", "tool_call")]}, "a call of a tool is no JSON"),
        ({"messages": "Hello"}, "its messages are a str"),
        ({"query": "a", "history": ["b"]}, "its history is no list of pairs"),
    ],
)
def test_a_row_that_cannot_be_read_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadablePrompt, match=f"row 0: .*{reason}"):
        drawn(row)


def test_a_missing_column_is_named_with_the_option_of_the_command_line() -> None:
    mapping = column_mapping(messages="prompt", image="pictures", named="--columns.{}".format)
    with pytest.raises(
        ValueError, match=r"column 'pictures', but the dataset has 'data_source', .*by --columns\.image"
    ):
        drawn(VERL, mapping)
    with pytest.raises(
        ValueError, match=r"column 'reward_model\.truth', .* and 'reward_model' \{'style'.*column_mapping\(answer="
    ):
        drawn(VERL, column_mapping(messages="prompt", image="images", answer="reward_model.truth"))
    with pytest.raises(
        ValueError, match=r"column 'prompt' holds messages, no text: name it by column_mapping\(messages="
    ):
        drawn(VERL, column_mapping(question="prompt", image="images", answer=None))
