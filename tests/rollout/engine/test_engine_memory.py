"""An engine on CPUs does not grow with the number of shapes that it has seen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rollout.config import RolloutConfig
from rollout.pool.engine_actor import engine_environment

pytestmark = pytest.mark.slow

MULTIPLY = """
import ctypes
import torch
import vllm._custom_ops as ops

class Usage(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Usage
weight = ops.create_onednn_mm(torch.randn(64, 64).t(), 32)
for num_tokens in range(1, 1001):
    ops.onednn_mm(weight, torch.randn(num_tokens, 64), None)
    if num_tokens in (600, 1000):
        print(mallinfo2().uordblks)
"""
"""Multiplies 1 to 1000 tokens by one weight, as vLLM's layers do; prints the allocated bytes after 600 and at the end."""


def test_the_kernels_that_onednn_keeps_take_no_more_memory_after_many_numbers_of_tokens():
    environment = {**os.environ, **engine_environment(RolloutConfig(), "")}
    run = subprocess.run(
        [sys.executable, "-c", MULTIPLY], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    before, end = map(int, run.stdout.split()[-2:])
    assert end - before < 5 * 2**20  # 110 MB by oneDNN's default
