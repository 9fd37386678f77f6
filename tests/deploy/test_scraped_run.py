"""A real Prometheus scrapes a real run and Ray's own metrics.

The run is asynchronous and tunes its multiplier, so that it has all that the catalogue names; nothing fails in it, and
still every expression has an answer.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import provisioned
import pytest
from scraped import Server, free_port, prometheus, ray_with_metrics, until

from distblock.metrics.catalogue import CATALOGUE, LINE_RATE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Prometheus, while a run trains."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("scraped")
    exporter = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as ray_folder:
        ray_file = Path(ray_folder) / "prom_metrics_service_discovery.json"
        with (
            ray_with_metrics(Path(ray_folder)) as (address, environment),
            prometheus(folder, exporter=exporter, ray_file=ray_file) as server,
        ):
            command = [sys.executable, "-m", "distblock", "train", f"--address={address}", "--run-dir=a-run"]
            command += [f"--metrics.port={exporter}", "--regime.name=asynchronous", "--objective.multiplier-step=0.1"]
            command += ["--regime.epochs=10000", "--regime.max-time-s=600"]
            with (
                (folder / "run.log").open("w") as log,
                subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as run,
            ):
                try:
                    begun = until(
                        lambda: (
                            run.poll() is not None
                            or server.query('distblock_accuracy_ratio{run="a-run", part="validation"}')
                        ),
                        deadline_s=240,
                    )
                    assert begun, (folder / "run.log").read_text()
                    assert run.poll() is None, (folder / "run.log").read_text()
                    yield server
                    assert run.poll() is None, "the run ended before its metrics had been looked at"
                finally:
                    run.terminate()


def test_every_metric_is_there_with_its_help(server):
    known = server.ask("metadata")
    for metric in CATALOGUE:
        # In the OpenMetrics format, which Prometheus asks for, a counter's family has no suffix.
        [told] = known[metric.name.removesuffix("_total")]
        assert (told["type"], told["help"]) == (metric.kind, metric.help)
        if metric is LINE_RATE:
            continue  # between hosts alone
        [first, *_] = server.query(f"{metric.name}_count" if metric.kind == "histogram" else metric.name)
        assert first["metric"]["run"] == "a-run"
        assert set(metric.labels) <= set(first["metric"])


def test_rays_own_metrics_are_scraped(server):
    targets = until(
        lambda: [target for target in server.ask("targets")["activeTargets"] if target["labels"]["job"] == "ray"],
        deadline_s=60,
    )
    assert len(targets) >= 2  # the node's, the dashboard's, the autoscaler's
    assert until(lambda: server.query('ray_actors{Name="StageWorker"} > 0'), deadline_s=60)


@pytest.mark.parametrize(
    "expression",
    [*provisioned.recorded(), *provisioned.alerts(), *provisioned.panels()],
    ids=lambda expression: expression.where,
)
def test_every_expression_returns_data(server, expression):
    assert until(lambda: server.query(expression.of_run("a-run")), deadline_s=60), expression.text


def test_the_shares_are_shares(server):
    """Of three stages that compute most of the time, on one machine's cores."""
    busy = {row["metric"]["stage"]: float(row["value"][1]) for row in server.query("stage:distblock_busy:ratio")}
    assert set(busy) == {"0", "1", "2"}
    assert all(0 < share < 1.05 for share in busy.values())


def test_nothing_fires(server):
    assert server.query('ALERTS{alertstate="firing"}') == []
    assert {row["value"][1] for row in server.query("run:distblock_failures:increase10m")} == {"0"}
