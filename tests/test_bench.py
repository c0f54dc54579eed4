"""What bench/device.sh runs works without Ray and vLLM; the rehearsal's arithmetic by hand."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from bench.against_trl.cases import end_ids, mean_length
from bench.against_trl.lengths import LengthStatistics, require_equal_lengths
from bench.published import CHAT_TEMPLATE
from bench.rehearsal import GIB, Phase, layers_with_room, memory_of, phases_of, role_of
from policies.loading import vision_token_ids
from policies.model_sizes import PUBLISHED
from policies.small.qwen3_vl import small_processor

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench" / "device.sh"

SMALL = {
    "bench.learner": "--prompts 2 --group-size 2 --response-tokens 8 --image-side 64 --steps 1 --learner.gradient-checkpointing",
    "bench.export": "--buffer-mib 1",
    "bench.logprobs": "--tokens 64 --vocabulary 512 --hidden 32 --repeats 1",
}
"""Module → options with which two cores run it in seconds."""


def commands() -> list[list[str]]:
    """The words after `python -m` of everything that the script runs; --output is appended as the script does."""
    learner = re.search(r'^gpu_learner="(.*)"$', SCRIPT.read_text(), re.MULTILINE)
    assert learner is not None
    found = []
    for line in re.findall(r"^ *(?:part|measure) \S+ \d+ (.*)$", SCRIPT.read_text(), re.MULTILINE):
        found.append(shlex.split(line.replace("$gpu_learner", learner[1])))
    return found


ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv[:] = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, words
"""
"""Runs modules in one process: each by itself would import for ten seconds."""


@pytest.fixture
def without_engines(tmp_path: Path) -> dict[str, str]:
    """An environment in whose processes neither Ray nor vLLM can be imported, and no garbage is collected during imports."""
    (tmp_path / "sitecustomize.py").write_text(
        "import gc, sys\nsys.modules['ray'] = sys.modules['vllm'] = None\ngc.disable()\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_script_runs_the_benches_that_are_tried_here_with_options_that_they_have():
    assert {words[0] for words in commands()} == {*SMALL, "pytest"}
    for module, *options in commands():
        if module != "pytest":
            tyro.cli(importlib.import_module(module).Options, args=[*options, "--output", "figures.json"])
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


@pytest.mark.slow
def test_all_that_the_script_runs_works_without_ray_and_vllm(without_engines: dict[str, str], tmp_path: Path):
    files = {module: tmp_path / f"{module}.json" for module in SMALL}
    benches = [[module, *options.split(), "--output", str(files[module])] for module, options in SMALL.items()]
    [tests] = [words for words in commands() if words[0] == "pytest"]
    done = run(without_engines, "-c", ONE_AFTER_THE_OTHER, json.dumps([*benches, [*tests, "--collect-only"]]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(json.loads(file.read_text()) for file in files.values()), done.stdout
    assert {name for name in tests if name.endswith(".py")} == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"mark\.gpu\b", path.read_text()) and path != Path(__file__)
    }
    assert "test_an_update_is_that_of_a_cpu" in done.stdout


@pytest.mark.parametrize("name", ["ray", "vllm"])
def test_an_import_of_either_would_be_noticed(name: str, without_engines: dict[str, str]):
    done = run(without_engines, "-c", f"import {name}")
    assert done.returncode == 1 and f"import of {name} halted" in done.stderr


def test_phases_are_found_from_the_ends_of_steps_by_hand():
    first = {"step": 1, "time/step": 40.0, "time/wait": 10.0, "time/learn": 25.0, "time/sync": 5.0}
    second = {"step": 2, "time/step": 9.0, "time/wait": 3.0, "time/learn": 4.0, "time/sync": 2.0}
    bounds = {
        "start": (100, 120),
        "generate 1": (120, 130),
        "learn 1": (130, 155),
        "sync 1": (155, 160),
        "generate 2": (161, 164),
        "learn 2": (164, 168),
        "sync 2": (168, 170),
        "checkpoint, end": (170, 180),
    }
    assert phases_of(100, 180, [(160, first), (170, second)]) == [
        Phase(name=name, begin=begin, end=end) for name, (begin, end) in bounds.items()
    ]


def test_as_many_layers_are_rehearsed_as_fit_the_memory_worked_by_hand():
    # Of 15 GiB, 6 are for processes: 9.66 GB are left. Beside its layers, 2B has .718G parameters, .302G of them in matrices; each
    # layer has .0503G. The learner takes 4 × .718 − 2 × .302 + 2 × .0503 x = 2.27 + .101 x, a copy .201 x.
    # merged: 2.87 + .201 x more, 5.14 + .503 x, so x = 8; adapter: 1.44 + .101 x more, 3.70 + .403 x, so x = 14
    shape = PUBLISHED["2B"]
    assert [layers_with_room(shape, sync, 15 * GIB) for sync in ("merged", "adapter")] == [8, 14]
    assert layers_with_room(shape, "merged", 1000 * GIB) == 28
    assert layers_with_room(PUBLISHED["30B-A3B"], "merged", 1 * GIB) == 1


def test_memory_is_that_of_a_process_and_its_children():
    code = "held = b'x' * 50_000_000; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        assert 50_000_000 < memory_of(child.pid)["others"] < 100_000_000
        assert memory_of(os.getpid())["others"] > memory_of(child.pid)["others"]
        child.communicate(b"\n")
    assert memory_of(child.pid) == {}
    titles = ("ray::_LearnerActor.step", "ray::_EngineActor", "VLLM::EngineCore", "ray::IDLE")
    assert [role_of(title) for title in titles] == ["learner", "engine", "engine", "others"]


def test_lengths_of_two_sides_are_compared_by_hand():
    # Two steps of two responses: 1, 3 and 5, 7. Mean 4, mean square 21, std √5, standard error √5 / 2 = 1.118.
    rows = [
        {"sequences": 2.0, "tokens": 4.0, "tokens_squared": 10.0},
        {"sequences": 2.0, "tokens": 12.0, "tokens_squared": 74.0},
    ]
    found = LengthStatistics.of(rows)
    assert (found.count, found.mean, found.std, found.error) == pytest.approx((4, 4, 5**0.5, 1.1180), rel=1e-4)
    # 4 errors of a difference are 4 · √2 · 1.118 = 6.32; of one mean 4.47
    require_equal_lengths("case", found, replace(found, mean=8.4), 8.4)
    with pytest.raises(RuntimeError, match="4.00 ± 1.12 tokens in ours and 10.40 ± 1.12 in TRL, 8.40 are expected"):
        require_equal_lengths("case", found, replace(found, mean=10.4), 8.4)
    with pytest.raises(RuntimeError, match="8.50 are expected"):
        require_equal_lengths("case", found, found, 8.5)
    fixed = LengthStatistics(count=64, mean=16, std=0)
    require_equal_lengths("case", fixed, fixed, 16)
    with pytest.raises(RuntimeError, match="cannot be compared"):
        require_equal_lengths("case", fixed, replace(fixed, mean=15.9), 16)


def test_flat_policies_end_as_often_as_expected_by_hand():
    # a half ends at 1, a half is cut at 2
    assert mean_length(0.5, 2) == 1.5
    processor = small_processor()
    ids = end_ids(processor, 263, 16)
    assert (
        ids[:2] == [processor.tokenizer.eos_token_id, 15] and len(ids) == len(set(ids)) == 17
    )  # of 259 that are sampled
    assert not set(ids) & set(vision_token_ids(processor))


def test_the_published_template_renders_turns_media_and_tools_as_it_is_documented():
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 1}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "content": "a cat"},
    ]
    processor = small_processor(chat_template=CHAT_TEMPLATE)
    turns = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        '<|im_start|>assistant\nI look.\n<tool_call>\n{"name": "zoom", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\na cat\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n" + turns
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, tools=[call])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call") and text.endswith(turns)
    assert "<tools>\n" + json.dumps(call) + "\n</tools>" in text
