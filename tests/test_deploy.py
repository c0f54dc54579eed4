"""The templates of `deploy/`, dry: what they start, with which options, and what becomes of a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parents[1] / "deploy" / "slurm.sh"
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\nnode3\\n"; else echo "scontrol $*" >>"$CALLS"; fi',
    "srun": """
        echo "srun $*" >>"$CALLS"
        case "$*" in
            *hostname*) echo "10.0.0.1 fe80::1" ;;
            *) exec sleep 60 ;;
        esac""",
    "python": 'grep -c "ray start" "$CALLS" || true',  # the nodes that are alive
    "ray": 'echo "ray $*" >>"$CALLS"',
    "sapo": """
        echo "sapo $* at $RAY_ADDRESS" >>"$CALLS"
        trap "echo stopped >>$CALLS; sleep 0.5; exit 143" TERM
        for _ in $(seq "${STEPS:-1}"); do sleep 0.1; done
        exit "${STATUS:-0}" """,
}
"""Stand-ins for SLURM's commands, Ray's and ours: each notes how it is called."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    commands = tmp_path / "venv" / "bin"
    commands.mkdir(parents=True)
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "20001", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_SUBMIT_DIR": str(tmp_path)}
    return {**os.environ, **job, "VENV": str(tmp_path / "venv"), "CALLS": str(tmp_path / "calls")}


def job(environment: dict[str, str], **more: str) -> subprocess.Popen[str]:
    """Starts the job as SLURM does, in a session of its own."""
    command = ["bash", SLURM, "general_rl", "--preset", "32B"]
    return subprocess.Popen(command, env=environment | more, start_new_session=True, text=True)


def ended(process: subprocess.Popen[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Waits for the job's end, ends what it leaves, as SLURM does, and returns status and calls."""
    try:
        status = process.wait(60)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    return status, Path(environment["CALLS"]).read_text().splitlines()


def test_a_slurm_job_starts_ray_on_every_node_and_the_recipe_on_the_first(environment: dict[str, str]):
    status, calls = ended(job(environment), environment)
    assert status == 0
    starts = sorted(call for call in calls if "ray start" in call)
    assert [call.split("-w ")[1].split()[0] for call in starts] == ["node1", "node2", "node3"]
    assert "--head" in starts[0] and "--node-ip-address=10.0.0.1 --port=20001" in starts[0]
    assert all("--address=10.0.0.1:20001" in call for call in starts[1:])
    assert "sapo train general_rl --preset 32B --resume auto at 10.0.0.1:20001" in calls
    assert calls[-1] == "ray stop --force", "a job that has ended well is not queued again"


def test_a_preempted_slurm_job_ends_the_run_in_order_and_is_queued_again(environment: dict[str, str]):
    process = job(environment, STEPS="600")
    deadline = time.monotonic() + 30
    while "sapo" not in (Path(environment["CALLS"]).read_text() if Path(environment["CALLS"]).exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # its trap
    process.send_signal(signal.SIGTERM)
    status, calls = ended(process, environment)
    assert status == 143
    assert calls[-3:] == ["stopped", "ray stop --force", "scontrol requeue 20001"]


def test_a_slurm_job_whose_run_fails_is_not_queued_again(environment: dict[str, str]):
    status, calls = ended(job(environment, STATUS="2"), environment)
    assert status == 2 and calls[-1] == "ray stop --force"


def test_outside_a_slurm_job_the_script_says_how_it_is_started():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    ran = subprocess.run(["bash", SLURM], env=environment, capture_output=True, text=True)
    assert ran.returncode != 0 and "there is no SLURM job: start this script by sbatch" in ran.stderr
