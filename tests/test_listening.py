"""What a run listens on: the exporter where it was told, replicas on their node's address; the rest is Ray's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil


def listening(process: psutil.Process) -> set[str]:
    """Addresses that a process listens on."""
    return {
        str(connection.laddr[0])
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_the_exporter_and_replicas_listen_where_it_is_written(tmp_path: Path):
    command = f"{sys.executable} -m distblock train --replicas 2 --resources.workers 1 --regime.epochs 1000"
    command += f" --metrics.port 0 --run-dir {tmp_path / 'run'}"
    with subprocess.Popen(command.split(), stderr=subprocess.PIPE, text=True) as train:
        try:
            assert train.stderr is not None
            assert next((line for line in train.stderr if line.startswith("epoch")), None), "it ended"
            driver = psutil.Process(train.pid)
            workers = [child for child in driver.children(recursive=True) if "StageWorker" in " ".join(child.cmdline())]
            here = {address.address for found in psutil.net_if_addrs().values() for address in found}
            # Ray's own servers take every address: "::".
            assert listening(driver) == {"127.0.0.1", "::"}
            assert len(workers) == 2
            for worker in workers:
                assert len(listening(worker)) == 2
                assert listening(worker) - {"::"} <= here
        finally:
            train.terminate()
            train.communicate()
