"""A user tries a reward function in milliseconds, without torch."""

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "ray", "vllm", "transformers", "math_verify", "sympy", "PIL", "datasets")


def output_of(code: str) -> str:
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout


def test_importing_rewards_imports_nothing_heavy() -> None:
    code = "import rewards, rewards.workers.runner, rewards.loading, sys"
    assert output_of(f"{code}; print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_importing_the_verifiers_does_not_even_import_numpy() -> None:
    assert output_of("import rewards, sys; print('numpy' in sys.modules)") == "False\n"


def test_the_verifiers_are_functions_however_they_are_imported() -> None:
    code = "import rewards.verifiers.exact, rewards.verifiers.math_answer, rewards.verifiers.multiple_choice; from rewards import *"
    assert output_of(f"{code}; print(*map(callable, (exact, math_answer, multiple_choice)))") == "True True True\n"
