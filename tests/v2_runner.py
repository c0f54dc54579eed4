"""vLLM's V2 model runner on CPUs, where it is V1 by default: its Triton kernels run in Triton's interpreter.

    python -m pytest -p tests.v2_runner FILE …    runs the engines of a file as GPUs run them: V2, scheduled asynchronously

The switch must come before vLLM is imported, so this is a plugin of pytest, and such tests have a process of their own. vLLM's
own process is its fork. The interpreter takes milliseconds for each program of a kernel, and cannot run those of top-k and top-p.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class _Driver:
    """As much of a driver as vLLM asks for, before it takes Triton for installed."""

    @staticmethod
    def is_active() -> bool:
        return True


def _name_a_backend() -> None:
    from triton.backends import Backend, backends

    backends["cpu"] = Backend(compiler=None, driver=_Driver)  # type: ignore[arg-type]


def _schedule_asynchronously() -> None:
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_schedule(config: Any) -> None:
        check(config)  # switches it off: "async scheduling is not required on CPU"
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = staticmethod(check_and_schedule)


def _hurry_the_interpreter() -> None:
    """Halves its time: integers overflow unchecked, as compiled, and `triton.language` is patched once, not at every call."""
    import triton.language as tl
    from triton.runtime import interpreter

    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()  # nothing to restore


_name_a_backend()
_hurry_the_interpreter()
_schedule_asynchronously()
