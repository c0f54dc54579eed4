"""README and docs show what works: recipes, options, commands, links."""

from __future__ import annotations

import random
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewards
from policies.small.qwen3_vl import small_processor
from rewards import math_answer
from rewards.trial.dry_run import dry_run
from rewards.workers.runner import RewardRunner
from rl.config import check_config
from rollout import Completion, Done, Observation, Prompt
from rollout.data import layouts
from rollout.data.mixture import mixture, open_stream
from rollout.data.prompts import prompts_from
from rollout.environments.episodes import try_environment

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")

ROOT = Path(__file__).parents[2]
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README, DATA, ENVIRONMENTS = (PAGES[ROOT / name] for name in ("README.md", "docs/data.md", "docs/environments.md"))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z.-]*[a-z]")
OTHER_PROGRAMS = re.compile(
    r"(?:vllm serve|pip install|pip wheel|sha256sum|#SBATCH|sbatch|python -m bench|bench/)[^`]*"
)


def code_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


BLOCKS = code_blocks(README)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was given to train(), which only takes note; the cold start is not made either."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("rl.train", lambda config, **rest: given.update(rest, config=config), raising=False)
    monkeypatch.setattr("rl.sft.small_policy.cold_start", lambda config, prompts, *demonstrate: ROOT / "taught")
    return given


def test_recipe_is_short_and_hands_train_what_it_takes(trained: dict[str, Any]) -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 12
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    config, prompts, reward = trained["config"], trained["prompts"], trained["reward"]
    check_config(config)
    assert (config.model, config.run_dir) == (str(ROOT / "taught"), Path("runs/short"))
    with RewardRunner(reward) as runner:
        dry_run(runner, prompts[0])
    right, wrong = (Completion(text=text, token_ids=np.zeros(9, np.int32)) for text in (prompts[0].answer, "1+1=0"))
    assert [reward(prompts[0], completion) for completion in (right, wrong)] == pytest.approx([0.91, -0.09])


def test_the_environment_rolls_the_same_dice_for_the_same_prompt() -> None:
    names: dict[str, Any] = {"random": random, "Done": Done, "Observation": Observation}
    exec(compile(code_blocks(ENVIRONMENTS)[0], "docs/environments.md", "exec"), names)
    prompt = Prompt(id="a", messages=[])
    try_environment(names["Dice"], prompt, small_processor(), limit=1.0)
    rolled = []
    for _ in range(2):
        dice = names["Dice"]()
        dice.reset(prompt)
        rolled.append([dice.step(Completion(text="roll")).text for _ in range(5)])
    assert rolled[0] == rolled[1] and set(rolled[0]) <= set("123456")
    assert dice.step(Completion(text="enough")).outcome == {"answer": "enough"}


def test_recipe_for_a_published_model_hands_train_what_it_takes(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"images": [], "problem": "Find x.", "answer": "3"}]
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: rows)
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    check_config(trained["config"])
    assert trained["prompts"][0].answer == "3"
    assert trained["reward"] is math_answer


def test_the_mixture_hands_train_its_tasks_in_the_ratio_and_a_reward_that_knows_them(trained: dict[str, Any]) -> None:
    rows = {
        "hiyouga/geometry3k": {"images": [], "problem": "Find x.", "answer": "3"},
        "HuggingFaceM4/ChartQA": {"image": None, "query": "More?", "label": ["Yes"]},
        "openai/gsm8k": {"question": "How many?", "answer": "So many. #### 72"},
    }
    names: dict[str, Any] = {**vars(rewards), **vars(layouts), "mixture": mixture, "prompts_from": prompts_from}
    names |= {"read_rows": lambda name, split, subset: [rows[name]] * 9, "config": None}
    names["train"] = lambda config, **given: trained.update(given)
    exec(compile(code_blocks(DATA)[0], "docs/data.md", "exec"), names)
    batch = open_stream(trained["prompts"], batch_size=12, num_minibatches=2, seed=0).next_batch()
    ratio = {"geometry": 3, "charts": 2, "arithmetic": 1}
    assert [Counter(prompt.task for prompt in half) for half in (batch[:6], batch[6:])] == [ratio] * 2
    reward = trained["reward"]
    assert all(reward(prompt, Completion(text=f"\\boxed{{{prompt.answer}}}")) == 1.0 for prompt in batch)


def test_the_table_of_layouts_names_them_all_with_the_verifiers_that_they_name() -> None:
    table = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \|$", DATA, re.MULTILINE))
    mappings = {
        name: each for name, each in vars(layouts).items() if "Verifier:" in (getattr(each, "__doc__", None) or "")
    }
    assert set(mappings) == set(table)
    for name, verifiers in table.items():
        first = verifiers.split("`")[1].replace("same_text", "text_similarity(threshold=1.0)")
        assert f"`{first}`" in mappings[name].__doc__, name


def test_options_and_recipes_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    known = set()
    recipes = sorted(path.stem for path in (ROOT / "recipes").glob("[a-z]*.py"))
    assert all(f"`{recipe}`" in README for recipe in recipes)
    for module in (*(f"recipes.{recipe}" for recipe in recipes), "rewards.check"):
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        known |= set(OPTION.findall(capsys.readouterr().out))
    for path, page in PAGES.items():
        assert set(OPTION.findall(OTHER_PROGRAMS.sub("", page))) <= known, path


def test_commands_and_links_lead_somewhere() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test", "setup"} <= set(re.findall(r"`?make ([a-z]+)", README)) <= targets
    for page, text in {**PAGES, ROOT / "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}.items():
        links = [page.parent / link for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
        files = [ROOT / name for name in re.findall(r"\b(?:rl|rollout|rewards|policies|tests)/[\w/]+\.py", text)]
        assert [path for path in links + files if not path.exists()] == []
        for module in re.findall(r"python -m ([A-Za-z_.]+[A-Za-z])", text):
            path = ROOT / module.replace(".", "/")
            exists = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
            assert exists or module in ("recipes.NAME", "ruff", "mypy", "pytest"), (page, module)


def test_the_walks_through_the_code_name_what_is_there() -> None:
    walks = (ROOT / "CONTRIBUTING.md").read_text().split("## Five walks")[1].split("## ")[0]
    names = {name.split(".")[-1] for name in re.findall(r"`([A-Za-z_][\w.]*)`", walks)}
    folders = [ROOT / name for name in ("rl", "rollout", "rewards", "policies")]
    code = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    defined = set(re.findall(r"(?:def|class) (\w+)|^ *(\w+):", code, re.MULTILINE))
    assert len(names) > 70
    assert names - {name for pair in defined for name in pair} == {"get_image_features", "json"}


def test_every_page_of_docs_is_in_the_index_and_the_readme_is_short() -> None:
    index = PAGES[ROOT / "docs" / "README.md"]
    assert all(f"({path.name})" in index for path in PAGES if path.parent.name == "docs" and path.name != "README.md")
    assert len(README.splitlines()) <= 200


def test_the_tree_names_every_folder() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    for top in ("rl", "rollout", "rewards", "policies"):
        folders = {path.name for path in (ROOT / top).iterdir() if path.is_dir() and path.name != "__pycache__"}
        part = tree.split(f"\n{top}/")[1]
        assert folders <= set(re.findall(r"^  (\w+)/", part.split("\nr")[0].split("\np")[0], re.MULTILINE)), top


FIELD = """GRPO group-relative asynchronous off-policy PipelineRL in-flight~weight~updates dynamic~sampling TIS IcePop
masked~importance~sampling hybrid~engine disaggregated soft~overlong~punishment routing~replay R2 R3 DAPO RLOO FSDP2"""


@pytest.mark.parametrize("term", FIELD.split())
def test_the_readme_has_the_fields_word(term: str) -> None:
    assert term.replace("~", " ") in " ".join(README.split())
