"""Seeds of completions."""

from __future__ import annotations

import hashlib


def request_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """Returns the seed of one completion. It depends on the run, the step and the prompt, not on the engine."""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
