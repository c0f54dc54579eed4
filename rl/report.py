"""Writes the HTML report of a run, at any time: `python -m rl.report runs/digit_sums`."""

import argparse
import os
import sys
from pathlib import Path

from rl.run_dir.html_report import write_report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog=os.environ.get("SAPO_PROGRAM", "python -m rl.report"), description=__doc__)
    parser.add_argument("run_dir", type=Path, help="the run's folder")
    try:
        print(write_report(parser.parse_args().run_dir))
    except ValueError as error:
        sys.exit(f"error: {error}")
