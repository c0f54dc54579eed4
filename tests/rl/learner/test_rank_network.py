"""Ranks find each other over a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rl.learner.ranks import interface_of
from tests.machines import two_machines

ROOT = Path(__file__).resolve().parents[3]
RANK = """
import importlib.util, sys
from datetime import timedelta
import torch, torch.distributed as dist
# Without its package, which imports transformers for ten seconds.
spec = importlib.util.spec_from_file_location("ranks", "rl/learner/ranks.py")
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)
rank, store_address, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
limit = timedelta(seconds=30)
store = dist.TCPStore(store_address, 29544, is_master=rank == 0, wait_for_workers=False, timeout=limit)
ranks.join_ranks(store, rank, 2, on_gpus=False, address=address, timeout=limit)
number = torch.tensor([rank + 1])
dist.all_reduce(number)
print(number.item())
dist.barrier()
"""


def test_an_interface_is_found_by_its_address() -> None:
    assert psutil.net_if_addrs()[interface_of("127.0.0.1") or ""][0].address == "127.0.0.1"
    assert interface_of("203.0.113.7") is None  # an address of no machine (RFC 5737)


@pytest.mark.slow
def test_ranks_of_two_machines_meet_though_their_own_names_resolve_to_a_loopback_address() -> None:
    with two_machines() as machines:
        ranks = [
            machine.start(
                [sys.executable, "-c", RANK, str(rank), machines[0].address, machine.address],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank, machine in enumerate(machines)
        ]
        try:
            ended = [rank.communicate(timeout=120) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    assert [out.strip() for out, _ in ended] == ["3", "3"], ended
