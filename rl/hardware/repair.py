"""Makes CUDA builds of torchvision, torchaudio and torchcodec work beside a CPU build of torch; says what it has done.

    sapo repair

It installs the import hook of `repair_hook.py` into this environment, only where one of them cannot load. Safe to repeat.
To undo it, delete the two files that it names.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

HOOK = Path(__file__).with_name("repair_hook.py")
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
INSTALLED_HOOK = SITE_PACKAGES / "_sapo_repair_hook.py"
INSTALLED_PTH = SITE_PACKAGES / "sapo_repair_hook.pth"
LIBRARIES = {"torchvision": "_C.so", "torchaudio": "lib/_torchaudio*.so", "torchcodec": "libtorchcodec_image.so"}
"""Package -> the compiled library that it loads when it is imported."""


def broken_packages() -> list[str]:
    """Returns those of `LIBRARIES` that are installed but cannot load their library; none beside a CUDA build of torch."""
    import torch  # the libraries link to torch's

    return [] if torch.version.cuda else [package for package in LIBRARIES if not loads(package)]


def loads(package: str) -> bool:
    """Returns True if the package's compiled libraries can be loaded, or it has none."""
    spec = importlib.util.find_spec(package)  # finds it without importing it
    if spec is None or spec.origin is None:
        return True
    try:
        for library in Path(spec.origin).parent.glob(LIBRARIES[package]):
            ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def install() -> None:
    """Copies the hook, then the line that starts it: a `.pth` must never name a module that is not there yet."""
    shutil.copyfile(HOOK, INSTALLED_HOOK)
    INSTALLED_PTH.write_text(f"import {INSTALLED_HOOK.stem}\n", encoding="utf-8")


if __name__ == "__main__":
    program = os.environ.get("SAPO_PROGRAM", "python -m rl.hardware.repair")
    argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    if broken := broken_packages():
        install()
        print(f"{', '.join(broken)} cannot load beside this torch: repaired by {INSTALLED_PTH} and {INSTALLED_HOOK}")
    else:
        print("nothing to repair")
