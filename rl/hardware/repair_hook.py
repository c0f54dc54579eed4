"""Import hook that lets CUDA builds of torchvision, torchaudio and torchcodec lie beside a CPU build of torch.

`sapo repair` copies this file into site-packages, where a `.pth` line imports it at the start of every
Python process, vLLM's and Ray's subprocesses included. Starting costs one entry in `sys.meta_path`; torch is not
imported. Each repair runs right after the module that loads the compiled library, and changes nothing where that works.
"""

import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # `typing` would cost each start of Python some milliseconds
if TYPE_CHECKING:
    from typing import Any


def _define_operators(extension):
    """torchvision: declares the two operators for which it registers shapes at import, without which it cannot load."""
    if extension._has_ops():
        return
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


def _tolerate_missing_library(utils):
    """torchaudio: a library that cannot be loaded counts as absent, which torchaudio itself copes with."""
    load = utils._load_lib

    def load_or_do_without(lib):
        try:
            return load(lib)
        except OSError:
            return False

    utils._load_lib = load_or_do_without


def _fail_as_if_absent(utils):
    """torchcodec: a library that cannot be loaded raises ImportError, which vLLM takes as "not installed"."""
    load = utils.load_image_library

    def load_or_import_error():
        try:
            load()
        except OSError as error:
            raise ImportError(f"torchcodec does not fit this build of torch: {error}") from error

    utils.load_image_library = load_or_import_error


REPAIRS = {
    "torchvision.extension": _define_operators,
    "torchaudio._extension.utils": _tolerate_missing_library,
    "torchcodec._internally_replaced_utils": _fail_as_if_absent,
}


class RepairFinder:
    """Finds the modules of `REPAIRS` as the normal path finder does, and repairs each once it has run."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Returns the spec of a module to be repaired; None for all others, which other finders find."""
        repair = REPAIRS.get(name)
        spec = PathFinder.find_spec(name, path, target) if repair else None
        if repair is None or spec is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_repair(module):
            execute(module)
            repair(module)

        loader.exec_module = execute_and_repair
        return spec


sys.meta_path.insert(0, RepairFinder)
