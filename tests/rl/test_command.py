"""The command `sapo`: what it lists, what it runs, and a sentence for what there is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl import command
from rl.command import COMMANDS, COMPLETIONS, recipes

MINE = '''
"""A recipe of mine."""
from dataclasses import dataclass
from rl.cli import main

@dataclass(frozen=True, kw_only=True)
class Mine:
    """Options."""

    number: int = 1
    """A number."""

def run(config: Mine) -> None:
    print("number", config.number)

if __name__ == "__main__":
    main(run, Mine, __doc__)
'''


pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")


@pytest.fixture
def sapo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `sapo WORDS` in this process. Returns status, output and errors."""
    monkeypatch.setenv("SAPO_PROGRAM", "")  # as it was, after the test
    monkeypatch.setenv("COLUMNS", "150")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sapo", *map(str, words)])
        status: Any = 0
        try:
            command.main()
        except SystemExit as ended:
            status = ended.code
        return int(status or 0), *capsys.readouterr()

    return run


def test_help_lists_every_subcommand_with_the_first_sentence_of_its_module(sapo):
    status, out, _ = sapo("--help")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert status == 0 and list(lines) == ["train", *COMMANDS]
    assert all(len(line.split()) > 3 for line in lines.values())
    assert "Measures how often a checkpoint solves each query" in lines["measure"]
    assert sapo()[1] == out


def test_each_recipe_is_a_subcommand_or_in_the_list_of_train(sapo):
    folder = Path(__file__).parents[2] / "recipes"
    files = {file.stem for file in folder.glob("[a-z]*.py")}
    subcommands = {module.removeprefix("recipes.") for module in COMMANDS.values() if module.startswith("recipes.")}
    assert set(recipes()) | subcommands == files and not set(recipes()) & subcommands
    _, out, _ = sapo("train")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(recipes())
    assert all(recipes().values())


@pytest.mark.parametrize("words", ["--help", "train --help"])
def test_lists_wait_for_no_library(words: str):
    code = f"import sys; sys.argv = ['sapo', *{words.split()!r}]; import rl.command; rl.command.main()\n"
    code += "print('LOADED', *{'torch', 'ray', 'transformers', 'datasets', 'numpy', 'tyro'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize("name", [*COMMANDS, "train digit_sums", "train sapo_minimal"])
def test_each_shows_its_options_under_its_own_name(sapo, name: str):
    status, out, err = sapo(*name.split(), "--help")
    assert status == 0, err
    assert f"sapo {name}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian digit_sums", "there is no subcommand trian: did you mean train?"),
        ("xyz", "there is no subcommand xyz: choose train, evaluate, "),
        ("train digit_sum", "there is no recipe digit_sum: did you mean digit_sums?"),
        ("train no.toml", "no.toml: No such file or directory"),
        ("train mine.py", "there is no recipe mine.py"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(sapo, words: str, message: str):
    status, out, err = sapo(*words.split())
    assert (status, out) == (2, "") and err.startswith(f"error: {message}") and len(err.splitlines()) == 1


def test_a_recipe_of_ones_own_and_a_file_that_names_it_run(sapo, tmp_path: Path):
    recipe, file = tmp_path / "mine.py", tmp_path / "mine.toml"
    recipe.write_text(MINE)
    file.write_text(f'recipe = "{recipe}"\nnumber = 3\n')
    assert sapo("train", recipe) == (0, "number 1\n", "")
    assert sapo("train", file) == (0, "number 3\n", "")
    assert sapo("train", file, "--number", 5) == (0, "number 5\n", "")
    assert f"sapo train {recipe}" in sapo("train", recipe, "--help")[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["train", *COMMANDS, "completion"]),
        ("che", ["check-data", "check-reward", "checkpoints"]),
        ("train di", ["digit_sums", "distill"]),
        ("train m", ["mine.toml"]),
        ("train digit_sums --learner.off", ["--learner.offload"]),
        ("train digit_sums --steps 3 --learner.no-off", ["--learner.no-offload"]),
        ("train mine.toml --num-digits", ["--num-digits"]),
        ("evaluate --sam", ["--samples", "--sampling"]),
        ("evaluate --mod", []),  # a word without a name
        ("completion z", ["zsh"]),
        ("train no_recipe --", []),
        ("report --", []),
        ("xyz --", []),
        ("train digit_sums ", []),
    ],
)
def test_a_word_is_completed_by_what_there_is(
    sapo, words: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.toml").write_text('recipe = "digit_sums"')
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAPO_COMPLETE", "")  # as it was, after the test
    assert sapo("complete", *words.split(" ")) == (0, "\n".join(expected) + "\n", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_by_the_script(tmp_path: Path):
    script = tmp_path / "completion.bash"
    script.write_text(COMPLETIONS["bash"])
    lines = f"""
        PATH={Path(sys.executable).parent}:$PATH; source {script}
        COMP_WORDS=(sapo train easy); COMP_CWORD=2; _sapo
        echo "${{COMPREPLY[*]}}"
    """
    ran = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert ran.stdout == "easy_vqa\n"


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_each_shell_has_a_script(sapo, shell: str):
    status, out, _ = sapo("completion", shell)
    assert status == 0 and "sapo complete" in out
    assert sapo("completion", "tcsh")[2] == "error: sapo completion SHELL: choose bash, zsh, fish\n"


def test_the_installed_script_is_this_command():
    ran = subprocess.run([Path(sys.executable).with_name("sapo"), "--version"], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("sapo-rl ")
