"""Command that writes the HTML report of a run, at any time: `python -m rl.report runs/digit_sums`."""

import sys
from pathlib import Path

from rl.run_dir.html_report import write_report

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rl.report RUN_DIR")
    try:
        print(write_report(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(f"error: {error}")
