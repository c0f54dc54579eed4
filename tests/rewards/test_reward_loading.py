"""`FILE.py:FUNCTION`, and one clear sentence for each way of getting it wrong."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.loading import load_reward
from rollout import Completion, Prompt

ROOT = Path(__file__).parents[2]
PROMPT = Prompt(id="digits-12", messages=[], answer="17")


def write(folder: Path, text: str, name: str = "my_reward.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_function_of_a_file_is_called(tmp_path: Path) -> None:
    reward = load_reward(f"{write(tmp_path, 'def score(p, c): return len(c.text) + float(p.answer)')}:score")
    assert reward(PROMPT, Completion(text="123")) == 20.0
    assert reward.__name__ == "score"


def test_a_relative_path_is_meant_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "def score(p, c): return 1.0")
    monkeypatch.chdir(tmp_path)
    assert load_reward("my_reward.py:score")(PROMPT, Completion(text="")) == 1.0


@pytest.mark.parametrize("name", ["rewards.py", "types.py", "math.py"])
def test_a_file_may_have_the_name_of_a_module(tmp_path: Path, name: str) -> None:
    path = write(
        tmp_path, "import math\nfrom rewards import exact\ndef score(p, c): return math.pi * exact(p, c)", name
    )
    assert load_reward(f"{path}:score")(PROMPT, Completion(text="17")) == pytest.approx(3.14159265)


def test_a_file_may_import_its_neighbours_and_define_dataclasses(tmp_path: Path) -> None:
    write(tmp_path, "BONUS = 2.0", "neighbour_of_a_reward.py")
    text = """
from __future__ import annotations
from dataclasses import dataclass
from neighbour_of_a_reward import BONUS

@dataclass
class Verdict:
    value: float

def score(p, c):
    return Verdict(BONUS).value
"""
    assert load_reward(f"{write(tmp_path, text)}:score")(PROMPT, Completion(text="")) == 2.0


def test_the_file_runs_again_where_the_reward_is_unpickled(tmp_path: Path) -> None:
    text = """
import functools, threading
lock = threading.Lock()  # cannot be pickled

@functools.lru_cache  # pickled as a name in a module that no other process has
def length(text):
    return len(text)

def score(p, c):
    with lock:
        return length(c.text)
"""
    pickled = pickle.dumps(load_reward(f"{write(tmp_path, text)}:score"))
    call = "import pickle, sys; from rollout import *; f = pickle.loads(sys.stdin.buffer.read())"
    call += "; print(f.__name__, f(Prompt(id='1', messages=[]), Completion(text='123')))"
    child = subprocess.run([sys.executable, "-c", call], input=pickled, cwd=ROOT, capture_output=True, check=True)
    assert child.stdout == b"score 3\n"


@pytest.mark.parametrize("spec", ["my_reward.py", "score", ":score", "my_reward.py:", ""])
def test_a_text_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(ValueError) as refusal:
        load_reward(spec)
    assert str(refusal.value) == f"a reward is given as FILE.py:FUNCTION, for example my_reward.py:score, got {spec!r}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        load_reward(f"{tmp_path}/none.py:score")
    told = f"reward '{tmp_path}/none.py:score': there is no file {tmp_path}/none.py; give the path of a Python file"
    assert str(refusal.value) == told


def test_a_missing_function_is_named_with_what_the_file_defines(tmp_path: Path) -> None:
    path = write(tmp_path, "from os.path import join\ndef first(p, c): ...\ndef second(p, c): ...")
    with pytest.raises(ValueError) as refusal:
        load_reward(f"{path}:score")
    assert str(refusal.value) == f"reward '{path}:score': {path} defines no 'score'; it defines first, second"


def test_what_is_no_function_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "score = 1.0")
    with pytest.raises(ValueError) as refusal:
        load_reward(f"{path}:score")
    assert str(refusal.value) == f"reward '{path}:score': 'score' is a float; name a function of {path}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nimport no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module' (line 2)"),
        ("\n\ndef score(:", "raised SyntaxError: invalid syntax (my_reward.py, line 3) (line 3)"),
        ("1 / 0", "raised ZeroDivisionError: division by zero (line 1)"),
        ("import sys\nsys.exit('no')", "raised SystemExit: no (line 2)"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_with_line_and_error(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as refusal:
        load_reward(f"{path}:score")
    assert str(refusal.value) == f"reward file {path} {told}"


def test_a_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be run as Python; name a file that ends in \.py"):
        load_reward(f"{write(tmp_path, '', 'my_reward.txt')}:score")
