"""Imports every module of the five packages and names those that fail: the cheapest test, run first."""

import gc
import importlib
import os
import pkgutil
import sys

PACKAGES = ("rl", "rewards", "rollout", "policies", "recipes")


def modules() -> list[str]:
    """The dotted names of all modules, packages first."""
    found = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        found += [name, *(module.name for module in pkgutil.walk_packages(package.__path__, f"{name}."))]
    return found


def main() -> None:
    broken = []
    names = modules()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            broken.append(f"{name}: {type(error).__name__}: {error}")
    print("\n".join(broken) or f"all {len(names)} modules import", flush=True)
    os._exit(bool(broken))  # Python would take 7,000 modules apart, in 3 CPU seconds


if __name__ == "__main__":
    gc.disable()  # 2 CPU seconds less
    sys.path.insert(0, ".")
    main()
