"""A reward that hangs, dies or misbehaves costs one score, and the next score is right."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewards import Score, Verifier, math_answer, weighted
from rewards.loading import load_reward
from rewards.trial.dry_run import dry_run
from rewards.workers import runner
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt

ROOT = Path(__file__).parents[3]


def group(prompt_id: str, *texts: str, **prompt: object) -> Group:
    return Group(
        prompt=Prompt(id=prompt_id, messages=[], **prompt),
        prompt_token_ids=np.zeros(3, np.int32),
        completions=[Completion(text=text) for text in texts],
    )


def misbehaving() -> Verifier:
    """Returns a reward that is as good as the completion asks; made here, so that it travels by value."""

    def my_reward(prompt: Prompt, completion: Completion) -> float:
        import ctypes

        match completion.text:
            case "raise":
                raise KeyError("answer")
            case "nan":
                return float("nan")
            case "string":
                return "yes"
            case "sleep":
                time.sleep(1000)
            case "hold the interpreter":
                re.match(r"(a+)+$", "a" * 60 + "b")
            case "sys.exit":
                sys.exit(3)
            case "os._exit":
                os._exit(3)
            case "segfault":
                ctypes.string_at(0)
            case "kill -9":
                os.kill(os.getpid(), signal.SIGKILL)
            case "spawn and sleep":
                child = subprocess.Popen(["sleep", "1000"])
                Path(prompt.answer).write_text(str(child.pid))
                time.sleep(1000)
            case "clock":
                return time.monotonic()
            case "pid":
                return os.getpid()
        return float(len(completion.text))

    return my_reward


@pytest.fixture(autouse=True)
def one_extra_second_for_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_CALL_EXTRA", 1.0)


def is_alive(pid: int) -> bool:
    """Says whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_true_soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_scores_come_in_the_order_of_groups_and_completions() -> None:
    groups = [group(str(n), *("x" * (n + k) for k in range(4))) for n in range(10)] + [group("empty")]
    with RewardRunner(misbehaving(), num_workers=2) as rewards:
        for _ in range(2):
            scores = rewards.score(groups)
            assert [[score.reward for score in row] for row in scores] == [
                [float(n + k) for k in range(4)] for n in range(10)
            ] + [[]]
    assert all(score.error is None for row in scores for score in row)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise", rf"reward 'my_reward' raised KeyError: 'answer' for prompt 'p-7' \({re.escape(__file__)}:\d+\)"),
        ("nan", r"reward 'my_reward' returned nan \(float\) for prompt 'p-7'; return a finite float or a Score"),
        ("string", r"reward 'my_reward' returned 'yes' \(str\) for prompt 'p-7'; return a finite float or a Score"),
        ("sys.exit", r"reward 'my_reward' raised SystemExit: 3 for prompt 'p-7' .*"),
        ("os._exit", r"reward 'my_reward' ended its process \(exit code 3\) for prompt 'p-7'"),
        ("segfault", r"reward 'my_reward' ended its process \(SIGSEGV\) for prompt 'p-7'"),
        ("kill -9", r"reward 'my_reward' ended its process \(SIGKILL\) for prompt 'p-7'"),
        ("sleep", r"reward 'my_reward' took longer than 1 s for prompt 'p-7'"),
        ("hold the interpreter", r"reward 'my_reward' took longer than 1 s for prompt 'p-7'"),
    ],
)
def test_a_fault_costs_one_score_and_says_why(fault: str, told: str) -> None:
    with RewardRunner(misbehaving(), timeout=1.0) as rewards:
        bad, good = rewards.score([group("p-7", "abc", fault, "abcd"), group("p-8", "ab")])
    assert [score.reward for score in bad + good] == [3.0, 0.0, 4.0, 2.0]
    assert re.fullmatch(told, str(bad[1].problem))
    assert (bad[1].error is None) == ("took longer" in told)
    assert [score.error for score in (bad[0], bad[2], good[0])] == [None] * 3


def test_the_time_limit_is_per_call_and_not_per_group() -> None:
    with RewardRunner(lambda prompt, completion: time.sleep(0.4) or 1.0, timeout=1.0) as rewards:
        scores = rewards.score([group("p-7", *"abcdef")])
    assert scores == [[Score(reward=1.0)] * 6]


def test_experts_do_not_go_to_the_workers() -> None:
    [completion] = group("1", "x").completions
    told = replace(group("1"), completions=[replace(completion, routed_experts=np.zeros((1, 2, 3), np.uint8))])
    with RewardRunner(lambda prompt, completion: float(completion.routed_experts is None)) as rewards:
        assert rewards.score([told]) == [[Score(reward=1.0)]]


def test_one_hanging_worker_does_not_hold_up_the_other() -> None:
    with RewardRunner(misbehaving(), num_workers=2, timeout=2.0) as rewards:
        start = time.monotonic()
        hung, *others = rewards.score([group("1", "sleep", "clock"), *(group(str(n), "clock") for n in range(20))])
    assert all(score.reward < start + 2.0 for [score] in others)
    assert hung[1].reward >= start + 2.0


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_worker_that_the_machine_kills_or_stops_once_costs_no_score(tmp_path: Path, fault: str) -> None:
    flag, number = tmp_path / "flag", signal.SIGKILL if fault == "killed" else signal.SIGSTOP

    def unlucky(prompt: Prompt, completion: Completion) -> float:
        if completion.text == "b" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), number)
        return float(len(completion.text))

    with RewardRunner(unlucky, timeout=1.0) as rewards:
        [scores] = rewards.score([group("p-7", "a", "b", "ccc")])
    assert flag.exists() and scores == [Score(reward=1.0), Score(reward=1.0), Score(reward=3.0)]


def test_a_worker_killed_between_two_rounds_is_replaced_without_loss() -> None:
    with RewardRunner(misbehaving()) as rewards:
        [[first]] = rewards.score([group("1", "pid")])
        os.kill(int(first.reward), signal.SIGKILL)
        assert is_true_soon(lambda: not is_alive(int(first.reward)))
        [[second, third]] = rewards.score([group("2", "pid", "abc")])
    assert second.error is None and second.reward != first.reward
    assert third == Score(reward=3.0)


def test_closing_leaves_no_process_behind(tmp_path: Path) -> None:
    rewards = RewardRunner(misbehaving(), num_workers=2, timeout=0.5)
    [[hung, pid]] = rewards.score([group("1", "spawn and sleep", "pid", answer=str(tmp_path / "pid"))])
    assert hung.timeout is not None
    assert is_true_soon(lambda: not is_alive(int((tmp_path / "pid").read_text())))  # what the hung reward had started
    assert is_alive(int(pid.reward))
    rewards.close()
    rewards.close()
    assert not is_alive(int(pid.reward))
    with pytest.raises(ValueError, match="this RewardRunner is closed; make a new one"):
        rewards.score([])


@pytest.mark.parametrize("fault", ["sleep", "hold the interpreter"])
def test_a_busy_worker_dies_with_its_parent(tmp_path: Path, fault: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(f"""
import os, re, time
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt
def my_reward(prompt, completion):
    print(os.getpid(), flush=True)
    {"time.sleep(1000)" if fault == "sleep" else 're.match(r"(a+)+$", "a" * 60 + "b")'}
group = Group(prompt=Prompt(id="1", messages=[]), prompt_token_ids=None, completions=[Completion(text="")])
RewardRunner(my_reward, timeout=1000).score([group])
""")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert is_true_soon(lambda: not is_alive(worker))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A suite started in the background of a shell inherits that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_round_leaves_nothing_for_the_next() -> None:
    with RewardRunner(misbehaving(), timeout=60.0) as rewards:
        rewards.score([group("1", "abc")])
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            rewards.score([group("1", "a", "sleep")])
        assert rewards.score([group("1", "ab")]) == [[Score(reward=2.0)]]


def test_groups_submitted_one_by_one_each_have_their_own_scores() -> None:
    with RewardRunner(misbehaving(), num_workers=2) as rewards:
        futures = [rewards.submit(group(str(n), *["a" * n] * n)) for n in range(4)]
        assert [future.result() for future in futures] == [[Score(reward=float(n))] * n for n in range(4)]


def test_a_cancelled_group_frees_its_worker() -> None:
    with RewardRunner(misbehaving(), timeout=60.0) as rewards:
        [[pid]] = rewards.score([group("1", "pid")])
        hanging = rewards.submit(group("2", "sleep"))
        waiting = rewards.submit(group("3", "ab"))
        time.sleep(0.2)
        assert hanging.cancel()
        assert waiting.result(timeout=30) == [Score(reward=2.0)]
        assert not is_alive(int(pid.reward))


def test_groups_that_nobody_scores_any_more_learn_that_the_runner_is_closed() -> None:
    rewards = RewardRunner(misbehaving(), timeout=60.0)
    futures = [rewards.submit(group("1", "sleep")), rewards.submit(group("2", "abc"))]
    rewards.close()
    for future in futures:
        with pytest.raises(ValueError, match="this RewardRunner is closed"):
            future.result(timeout=10)


def test_a_reward_of_the_main_script_works_and_the_script_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text("""
import sys
from rewards import Score
from rewards.workers.runner import RewardRunner
from rollout import Completion, Group, Prompt
print("the script runs")
SCALE = 2.0
def my_reward(prompt, completion):
    return Score(reward=SCALE * len(completion.text), parts={"modules": "numpy.testing" in sys.modules})
import numpy.testing
with RewardRunner(my_reward) as runner:
    prompt = Prompt(id="1", messages=[])
    [[score]] = runner.score([Group(prompt=prompt, prompt_token_ids=None, completions=[Completion(text="abc")])])
    print(score.reward, score.parts, score.problem)
""")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    assert child.stdout == "the script runs\n6.0 {'modules': 0.0} None\n"


def test_a_reward_from_a_file_is_loaded_in_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "my_rewards.py"
    path.write_text(
        "import os\nPID = os.getpid()\ndef score(prompt, completion):\n    return PID == os.getppid() or 1 / 0"
    )
    with RewardRunner(weighted({"own": (load_reward(f"{path}:score"), 1.0)})) as rewards:
        [[score]] = rewards.score([group("p-7", "")])
    place = f"({path}:4)"
    told = f"part 'own': reward 'score' raised ZeroDivisionError: division by zero for prompt 'p-7' {place}"
    assert score == Score(reward=0.0, error=told, failed="own/score")


def test_images_columns_and_logprobs_reach_the_reward() -> None:
    def brightness(prompt: Prompt, completion: Completion) -> float:
        return prompt.images[0].getpixel((1, 1))[0] + prompt.columns["bonus"] + float(completion.logprobs.sum())

    picture = Image.new("RGB", (64, 64), (7, 0, 0))
    prompt = Prompt(id="1", messages=[], images=[picture], columns={"bonus": 0.25})
    completion = Completion(text="", logprobs=np.array([-0.5, -1.5], np.float32))
    with RewardRunner(brightness) as rewards:
        scores = rewards.score(
            [Group(prompt=prompt, prompt_token_ids=np.zeros(3, np.int32), completions=[completion] * 2)]
        )
    assert scores == [[Score(reward=5.25)] * 2]


class OneWay:
    """Can be pickled, and cannot be unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("seventeen",)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (threading.Lock(), "cannot be sent to a reward worker: TypeError: cannot pickle '_thread.lock' object"),
        (
            OneWay(),
            "cannot be read in a reward worker: ValueError: invalid literal for int() with base 10: 'seventeen'",
        ),
    ],
)
def test_a_prompt_that_cannot_travel_is_an_error_of_its_group_alone(value: object, told: str) -> None:
    with RewardRunner(misbehaving()) as rewards:
        bad, good = rewards.score([group("p-7", "a", "b", columns={"value": value}), group("p-8", "ab")])
    assert [score.error for score in bad] == [f"prompt 'p-7' {told}"] * 2
    assert good == [Score(reward=2.0)]


def test_a_reward_that_cannot_be_pickled_or_loaded_is_refused(tmp_path: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"reward '<lambda>' cannot be sent to a worker process: TypeError: cannot pick"
    ):
        RewardRunner(lambda prompt, completion: float(lock.locked()))
    path = tmp_path / "my_rewards.py"
    path.write_text("def score(prompt, completion): return 1.0")
    reward = load_reward(f"{path}:score")
    path.unlink()
    with RewardRunner(reward) as rewards, pytest.raises(ValueError) as refusal:
        rewards.score([group("1", "a")])
    told = f"reward 'score' cannot be loaded in a worker process: ValueError: reward '{path}:score': there is no file"
    assert str(refusal.value).startswith(told)


def test_a_reward_that_ends_its_process_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my_rewards.py"
    path.write_text(
        f"import os\nif os.getpid() != {os.getpid()}: os._exit(5)\ndef score(prompt, completion): return 1.0"
    )
    with RewardRunner(load_reward(f"{path}:score")) as rewards, pytest.raises(ValueError) as refusal:
        rewards.score([group("1", "a")])
    told = "reward 'score' ended its process (exit code 5) while it was being loaded in a worker process"
    assert str(refusal.value) == told


@pytest.mark.parametrize(
    ("reward", "options", "told"),
    [
        (1.0, {}, r"a reward must be a function of \(prompt, completion\), got 1.0"),
        (len, {"num_workers": 0}, "num_workers must be >= 1, got 0"),
        (len, {"timeout": 0.0}, "timeout must be > 0 seconds, got 0.0"),
        (len, {"timeout": float("nan")}, "timeout must be > 0 seconds, got nan"),
    ],
)
def test_bad_arguments_are_refused(reward: Verifier, options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RewardRunner(reward, **options)


def test_the_trial_accepts_a_reward_that_works() -> None:
    def per_token(prompt: Prompt, completion: Completion) -> float:
        return float(completion.logprobs.sum()) / len(completion.token_ids)

    for reward in (math_answer, per_token):
        with RewardRunner(reward) as rewards:
            assert dry_run(rewards, Prompt(id="digits-12", messages=[], answer=17)) is None


def test_the_trial_names_function_sample_and_what_went_wrong() -> None:
    def first_word(prompt: Prompt, completion: Completion) -> float:
        return float(completion.text.split()[0] == prompt.answer)

    line = first_word.__code__.co_firstlineno + 1
    with RewardRunner(first_word) as rewards, pytest.raises(ValueError) as refusal:
        dry_run(rewards, Prompt(id="digits-12", messages=[], answer="17"))
    assert str(refusal.value) == (
        "reward 'first_word' raised IndexError: list index out of range for prompt 'digits-12' "
        f"({__file__}:{line}); this was a trial on the made-up response '', before the start"
    )


@pytest.mark.parametrize(("answer", "told"), [("string", "returned 'yes' (str)"), ("sleep", "took longer than 1 s")])
def test_the_trial_tells_bad_values_and_hangs(answer: str, told: str) -> None:
    with RewardRunner(misbehaving(), timeout=1.0) as rewards, pytest.raises(ValueError) as refusal:
        dry_run(rewards, Prompt(id="digits-12", messages=[], answer=answer))
    assert str(refusal.value).startswith(f"reward 'my_reward' {told} for prompt 'digits-12'")
    assert str(refusal.value).endswith(f"on the made-up response {answer!r}, before the start")
