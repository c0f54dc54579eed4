"""Ray's workers as copies of one process, which has imported vLLM and torch: that takes 11 of the 14 seconds of an engine's start.

    raylet ──starts──▶ client: this file as a script ──arguments, environment, output──▶ zygote ──forks──▶ worker

Everything else is as ever: each worker is a new process with an environment of its own. What a test starts as a user does, in a
process of its own, imports for itself.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
from typing import Any

MODULES = """
    PIL.Image numpy psutil torch torch.distributed.fsdp torch._inductor
    transformers transformers.models.qwen3_vl.modeling_qwen3_vl transformers.models.qwen3_vl.processing_qwen3_vl
    transformers.models.qwen3_vl.video_processing_qwen3_vl transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe
    rl.learner rollout.engine.vllm_engine rollout.weights.slab_receiver
    vllm vllm.v1.engine.async_llm vllm.v1.engine.core vllm.v1.executor.uniproc_executor vllm.v1.worker.cpu_worker
    vllm.model_executor.models.qwen3_vl vllm.model_executor.models.qwen3_vl_moe
    """.split()
MESSAGE_BYTES = 1 << 20


class Zygote:
    """The process that is copied. It ends with the process that has made it."""

    def __init__(self, folder: str) -> None:
        import subprocess

        self.path = os.path.join(folder, "zygote")
        command = [sys.executable, "-m", "tests.zygote", self.path]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment | {"HF_HUB_OFFLINE": "1"}
        )

    @property
    def python(self) -> list[str]:
        """Words of a command in place of `python`, with which a copy runs a script. Waits until the imports are done."""
        assert self._process.stdout is not None
        while not os.path.exists(self.path):
            assert self._process.stdout.readline(), "the zygote has not started"
        return [sys.executable, "-IS", os.path.abspath(__file__), self.path]

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's option for a cluster whose workers are copies."""
        return {"py_executable": " ".join(self.python)}

    def close(self) -> None:
        """Ends the process. Copies that still live stay."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(path: str) -> None:
    """Imports the modules, then starts a copy for each message, until the standard input is closed."""
    import gc
    import importlib

    gc.disable()
    sys.modules["ray"] = None  # type: ignore[assignment]  # Ray reads a worker's environment when it is imported; vLLM goes without
    for name in MODULES:
        importlib.import_module(name)
    del sys.modules["ray"]
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    print(path, flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        client, _ = listener.accept()
        message, fds, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 3)
        if os.fork() == 0:
            listener.close()
            _become_worker(client, json.loads(message), fds)
        client.close()
        for fd in fds:
            os.close(fd)


def _become_worker(client: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """Runs Ray's script as the main module. The client ends with this process: its connection closes."""
    import runpy

    import torch

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["folder"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    sys.argv = message["arguments"]
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        client.fileno()  # it has been open until here
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def be_client(path: str, arguments: list[str]) -> None:
    """Requests a copy that runs these arguments, and waits for its end."""
    zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    zygote.connect(path)
    message = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()})
    zygote.sendmsg([message.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    zygote.recv(1)


if __name__ == "__main__":
    be_client(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else serve(sys.argv[1])
