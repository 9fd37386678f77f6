"""The documentation's examples run as they stand: files are written, commands executed in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

DOCS = Path(__file__).parents[1] / "docs"


def test_own_network_and_data(tmp_path: Path):
    text = (DOCS / "own_network_and_data.md").read_text()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = 0
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", block)
            assert name is not None, block
            (tmp_path / name[1]).write_text(block)
        else:
            done = subprocess.run(
                ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            commands += 1
    assert commands == 4
    for name in ("shapes", "shapes-in-python", "more"):
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        assert summary["test_accuracy"] > 0.9
        # The residuals of every stage are seen, of the first one inside its nn.Sequential.
        assert all(stage["transport_cost"] > 0 for stage in summary["stages"])
    assert (tmp_path / "shapes.safetensors").exists()
    assert (tmp_path / "shapes.onnx").exists()
    exits = json.loads((tmp_path / "runs" / "three" / "early_exit.json").read_text())
    assert sorted(exits["class_names"]) == ["cross", "disc", "square"]
    assert min(exits["classes"]) > 0.5


def test_the_notebook_from_top_to_bottom(tmp_path: Path):
    """Its code in one process, as a kernel would run it."""
    notebook = json.loads((DOCS / "own_images.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    environment = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", "\n".join(cells)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert sum(row["class_name"] == "7" for row in rows) > 0.9 * len(rows) > 100


def test_the_readme_names_only_what_there_is():
    readme = (DOCS.parent / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (DOCS.parent / target).exists(), target
    makefile = (DOCS.parent / "Makefile").read_text()
    for verb in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert f"\n{verb}:" in makefile
