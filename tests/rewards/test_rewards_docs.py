"""docs/rewards.md names every verifier, and what it shows works."""

import doctest
import re
from pathlib import Path

import pytest

import rewards
from rewards.loading import load_reward
from rewards.workers.call import is_group_reward, score_completions
from rollout import Completion, Prompt

DOCS = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)


def test_the_judge_can_be_made_as_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text(BLOCKS[2])
    assert is_group_reward(load_reward("my_reward.py:score")) and (tmp_path / "verdicts.db").is_file()


def test_every_public_name_is_explained() -> None:
    assert not [name for name in rewards.__all__ if f"`{name}" not in DOCS and name not in DOCS]


def test_the_first_example_gives_what_it_says() -> None:
    example = doctest.DocTestParser().get_doctest(BLOCKS[0], {}, "docs/rewards.md", None, 0)
    assert doctest.DocTestRunner().run(example) == (0, 3)


def test_the_composition_scores_as_it_reads() -> None:
    names = {name: getattr(rewards, name) for name in rewards.__all__}
    exec(compile(BLOCKS[1], "docs/rewards.md", "exec"), names)
    question = [{"role": "user", "content": "What is the sum of five and twelve, and why is that so?"}]
    prompt = Prompt(id="1", messages=question, answer="17", task="math")
    told = "<think>The sum of five and twelve is the same as ten and seven.</think>"
    right, wrong, bare = score_completions(
        names["reward"], prompt, [Completion(text=f"{told}17"), Completion(text=f"{told}18"), Completion(text="17")]
    )
    assert (right.reward, wrong.reward, bare.reward) == (1.1, 0.1, 0.0)
    assert right.parts == {
        "gate": 1.0, "accuracy": 1.0, "language": 1.0, "loop": 0.0, "length": 0.0
    }  # fmt: skip
    assert bare.parts == {"gate": 0.0}
