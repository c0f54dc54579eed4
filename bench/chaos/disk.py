"""A small disk for a run, which a fault can fill."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

BALLAST = "ballast"
CHUNK = 1 << 20


class SmallDisk:
    """A tmpfs in the place of a folder, if this process may mount one.

    Args:
        folder: The folder, which is created.
        megabytes: Its size.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """Writes until there is no room for another byte."""
        with (self._folder / BALLAST).open("ab", buffering=0) as ballast:
            size = CHUNK
            while size:
                try:
                    os.write(ballast.fileno(), bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def free(self) -> None:
        """Makes room again."""
        (self._folder / BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves what the run has written, but for its checkpoints, in a folder of the same name."""
        if not self.is_mounted:
            return
        self.is_mounted = False
        kept = self._folder.with_name(f"{self._folder.name}.kept")
        shutil.copytree(self._folder, kept, ignore=shutil.ignore_patterns("checkpoints", BALLAST))
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
        with suppress(OSError):
            self._folder.rmdir()
            kept.rename(self._folder)
