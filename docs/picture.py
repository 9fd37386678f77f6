"""Draws docs/demo.svg: what `distblock train` prints, in colours that every browser shows."""

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "distblock", "train", "--run-dir", "runs/digits"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
epochs = done.stderr.splitlines()
lines = ["$ distblock train", *epochs[:3], "...", *epochs[-2:], "", *done.stdout.splitlines()]
with Path("/dev/null").open("w") as nowhere:
    console = Console(record=True, width=112, file=nowhere)
    for line in lines:
        console.print(Text(line.replace(f"{folder}/", "")), soft_wrap=True)
    console.save_svg(str(Path(__file__).with_name("demo.svg")), title="distblock train")
