"""The report: figures are the summary's, nothing is taken for markup, and a browser shows it without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distblock import BlockTrainer
from distblock.errors import InputError
from distblock.pages import read_run, report
from distblock.planning.crossover import ways
from distblock.reasons import why
from distblock.report import tables
from distblock.report.page import Run, make_page
from distblock.report.page.crossover import workload
from distblock.report.page.run import bubble_share
from distblock.report.page.schedule import measured, planned
from distblock.report.times import worker_times
from distblock.runs import RunDirectory

SMALL: dict[str, Any] = {"data": {"batch_size": 64}, "regime": {"epochs": 2}}


@pytest.fixture(scope="module")
def runs(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "workers": SMALL,
        "plain loop": {**SMALL, "executor": "local"},
        "wavefront": {**SMALL, "regime": {"name": "wavefront", "epochs": 1, "laps": 2}},
        "asynchronous": {**SMALL, "regime": {"name": "asynchronous", "epochs": 2}},
    }
    for name, config in settings.items():
        BlockTrainer({**config, "run_dir": str(folder / name)}).fit()
    return {name: folder / name for name in settings}


@pytest.fixture(scope="module")
def run(runs: dict[str, Path]) -> Run:
    return read_run(RunDirectory.at(runs["workers"]))


class Text(HTMLParser):
    """Cells of tables by row, and everything that would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.labels: list[str] = []
        self._is_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.labels += [values["aria-label"] or ""] if "aria-label" in values else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._is_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = self._is_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1][-1] += data


def test_figures_are_the_summarys(run: Run):
    rows = Text(make_page([run])).rows
    for stage in run.summary["stages"]:
        [row] = [row for row in rows if row[0] == str(stage["index"])]
        assert row[4:6] == [tables.percent(stage["val_accuracy"]), tables.percent(stage["test_accuracy"])]
        assert row[-1] == tables.size(stage["peak_memory_bytes"])
    for edge in run.edges:
        first, *sizes = [row for row in rows if row[0] == edge["name"]]
        assert first[2:5] == [str(edge["hops"]), tables.size(edge["payload_bytes"]), tables.size(edge["wire_bytes"])]
        assert [row[1:3] for row in sizes] == [
            [tables.binary_size(each["upto_bytes"]), str(each["hops"])] for each in edge["sizes"]
        ]
    assert rows[1][0] == "workers"
    assert rows[1][8] == tables.percent(run.summary["test_accuracy"])


def test_it_loads_nothing(run: Run):
    page = Text(make_page([run]))
    assert [link for link in page.links if not link.startswith("#")] == []
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert len(page.labels) == 9
    assert all(label.endswith(": workers") for label in page.labels)


def test_nothing_is_taken_for_markup(run: Run):
    evil = "<script>alert(1)</script>$x^2$\"'"
    page = make_page([replace(run, name=evil)])
    assert "<script" not in page
    assert Text(page).rows[1][0] == evil


def test_several_runs_stand_side_by_side(runs: dict[str, Path], tmp_path: Path):
    written = report([RunDirectory.at(path) for path in runs.values()], to=str(tmp_path / "all.html"))
    page = Text(Path(written).read_text())
    assert [row[0] for row in page.rows[1:5]] == list(runs)
    assert "Accuracy by depth: workers, plain loop, wavefront, asynchronous" in page.labels
    assert page.labels.count("The first microbatches: schedule: wavefront") == 1
    assert "The first microbatches: schedule: plain loop" not in page.labels


def test_a_workers_time_is_the_runs(run: Run):
    times = worker_times(run.summary)
    assert [each.name for each in times] == ["stage 0", "stage 1", "stage 2"]
    for each, stage in zip(times, run.summary["stages"], strict=True):
        parts = (each.compute_s, each.exposed_s, each.credit_s, each.input_s, each.other_s)
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(run.summary["wall_s"])
        assert each.compute_s == stage["compute_s"]
    share = bubble_share(run)
    assert share is not None
    assert 0 < share < 1


@pytest.mark.parametrize("name", ["wavefront", "asynchronous"])
def test_why_says_where_the_time_went_where_no_replay_can(runs: dict[str, Path], name: str):
    directory = RunDirectory.at(runs[name])
    told = why(directory).splitlines()
    assert f"No replay tells this run again ({name} regime, executor ray)" in told[0]
    told = [line for line in told if not line.startswith("  (")]
    times = worker_times(directory.read_json("summary.json"))
    for line, each in zip(told[1:], times, strict=False):
        assert line.startswith(f"  {each.name}: ")
        assert f"computing {tables.duration(each.compute_s)} (" in line
    assert told[-1].startswith("Beside computing, workers spend most on ")
    assert [each["name"] for each in json.loads(why(directory, as_json=True))["workers"]] == [e.name for e in times]


def test_the_plan_is_a_staircase(run: Run):
    """Nobody begins before the one above has finished, nor two at once."""
    bars = planned(run)
    assert bars is not None
    ends = {(bar.place, bar.number): bar.finished_s for bar in bars}
    for bar in bars:
        before = [ends[bar.place - 1, bar.number]] if bar.place else []
        before += [ends[bar.place, bar.number - 1]] if (bar.place, bar.number - 1) in ends and bar.place else []
        assert all(bar.started_s >= end_s - 1e-9 for end_s in before)
    assert {bar.place for bar in bars} == {bar.place for bar in measured(run)} == {0, 1, 2, 3}


def test_a_regime_of_several_streams_has_no_plan(runs: dict[str, Path]):
    wave = read_run(RunDirectory.at(runs["wavefront"]))
    assert planned(wave) is None
    assert wave.verdict is None
    assert len(measured(wave)) > 3


def test_the_run_has_it(runs: dict[str, Path]):
    written = report([RunDirectory.at(runs["workers"])])
    assert written == str(runs["workers"] / "report.html")


def test_what_is_no_finished_run_is_refused(runs: dict[str, Path], tmp_path: Path):
    cut_short = tmp_path / "cut"
    shutil.copytree(runs["workers"], cut_short)
    (cut_short / "summary.json").unlink()
    with pytest.raises(InputError, match=r"report: expected a finished run with summary\.json"):
        report([RunDirectory.at(cut_short)])
    with pytest.raises(InputError, match="--to: expected a file in a folder that is there"):
        report([RunDirectory.at(runs["workers"])], to=str(tmp_path / "nowhere" / "page.html"))


FRAME = """<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe><p id="probe"></p><script>
addEventListener("load", () => {{
  const framed = document.querySelector("iframe").contentDocument, root = framed.documentElement;
  document.getElementById("probe").textContent = [
    root.clientWidth <= {width}, root.scrollWidth <= root.clientWidth, framed.querySelectorAll("svg").length
  ].join(" ");
}});
</script>"""
"""A page as wide as a phone: a window of Chromium's own is 500 pixels wide or more."""


@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it(run: Run, tmp_path: Path, width: int):
    """Whatever holds it says whether it is wider than its frame; the page itself has no script."""
    page = make_page([run])
    dom = browse(tmp_path, FRAME.format(width=width, page=escape(page)), "--dump-dom", "--window-size=1400,900")
    assert f'<p id="probe">true true {page.count("<svg")}</p>' in dom


def test_a_browser_prints_it(run: Run, tmp_path: Path):
    browse(tmp_path, make_page([run]), f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def browse(folder: Path, page: str, *flags: str) -> str:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    (folder / "page.html").write_text(page)
    # No name is resolved: what needed a network would be missing.
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser, *common, profile, *flags, f"file://{folder / 'page.html'}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_ways_to_train_are_compared_by_what_the_run_measured(run: Run, runs: dict[str, Path]):
    work = workload(run)
    assert work is not None
    # 16, then 32 channels of 8 x 8 and 4 x 4 values of 4 bytes leave the first two of three stages.
    assert work.edge_bytes == (16 * 8 * 8 * 4, 32 * 4 * 4 * 4)
    assert work.num_parameters == sum(stage["num_parameters"] for stage in run.summary["stages"])
    computed_s = sum(stage["compute_s"] for stage in run.summary["stages"])
    assert 0 < sum(work.worker_s) * run.summary["num_samples"] < 3 * computed_s
    text = Text(make_page([run]))
    assert {name for name, *_ in text.rows if name in ways(work)} == set(ways(work))
    assert any(label.startswith("When to use what") for label in text.labels)
    for other in ("plain loop", "wavefront", "asynchronous"):
        assert workload(read_run(RunDirectory.at(runs[other]))) is None
