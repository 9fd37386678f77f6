"""The Python example of docs/several_hosts.md, as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.hosts import missing

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.further
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_the_example(tmp_path: Path):
    text = (CHECKOUT / "docs" / "several_hosts.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "runs").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert (tmp_path / "runs" / "example" / "summary.json").exists()
    last, counted, *rest = done.stdout.splitlines()
    assert last.startswith("best stage on validation")
    assert re.fullmatch(r"0 Counters\(tx_bytes=\d+, rx_bytes=\d+\)", counted)
    assert rest == ["host1", "True"]
