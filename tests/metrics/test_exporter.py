"""What a scrape over HTTP returns, read by the client library's own parser, against the account's sums."""

from __future__ import annotations

import threading
import urllib.request
from dataclasses import replace
from typing import Any, get_args

import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from distblock.errors import InputError
from distblock.messages import Failure, FailureKind, Line, StageReport
from distblock.metrics.accounting import Account
from distblock.metrics.catalogue import CATALOGUE
from distblock.metrics.exporter import Exporter

EDGES = ["data->0", "0->1", "1->2"]
PARTS = ("_bucket", "_count", "_sum")

FAILURE = Failure(kind="worker_died", who="worker 1", place="epoch 1", cause="killed", replayed=2, held_up_s=3.0)

LINE = Line(
    edge=2,
    sender="10.0.0.1",
    receiver="10.0.0.2",
    sender_interface="eth0",
    receiver_interface="eth0",
    sender_speed_bytes_per_s=None,
    receiver_speed_bytes_per_s=None,
    rate_bytes_per_s=1.25e7,
)


def scrape(exporter: Exporter) -> dict[str, Family]:
    """Families by the catalogue's names; the parser leaves the suffix off the names of counters."""
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=10) as response:
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in families}


def value(family: Family, **labels: str) -> float:
    [sample] = [sample for sample in family.samples if sample.labels == {"run": "a-run", **labels}]
    return sample.value


@pytest.fixture
def account() -> Account:
    return Account(num_stages=3)


@pytest.fixture
def exporter(account):
    with Exporter(run="a-run", host="127.0.0.1", port=0, account=account) as exporter:
        yield exporter


def record(account: Account, run: Any) -> None:
    for departure in run.departures:
        account.record_departure(departure, "10.0.0.1")
    for report in run.reports:
        account.record(report)


@pytest.fixture
def scraped(run, account, exporter) -> dict[str, Family]:
    record(account, run)
    account.record_backpressure(2, 0.25)
    account.record_backpressure(2, 0.5)
    exporter.record_driver(1.5)
    exporter.record_failure(FAILURE)
    exporter.set_in_flight(2, 3, 3_000)
    exporter.set_in_flight(2, 1, 1_000)
    exporter.set_lines([LINE])
    return scrape(exporter)


def test_all_of_the_catalogue_and_nothing_else_is_served(exporter, scraped):
    assert {name: family.type for name, family in scraped.items()} == {m.name: m.kind for m in CATALOGUE}
    for metric in CATALOGUE:
        family = scraped[metric.name]
        assert family.documentation == metric.help
        assert family.samples
        for sample in family.samples:
            assert sample.name.removeprefix(metric.name) in (PARTS if metric.kind == "histogram" else ("",))
            assert tuple(sorted(set(sample.labels) - {"le"})) == tuple(sorted(metric.labels))


def test_the_lines_are_those_of_the_last_attempt(exporter, scraped):
    assert value(scraped["distblock_line_rate_bytes"], edge="1->2") == 1.25e7
    exporter.set_lines([replace(LINE, edge=0, rate_bytes_per_s=1.0), replace(LINE, edge=1, rate_bytes_per_s=None)])
    [sample] = scrape(exporter)["distblock_line_rate_bytes"].samples
    assert (sample.labels["edge"], sample.value) == ("data->0", 1.0)
    exporter.set_lines([])
    assert scrape(exporter)["distblock_line_rate_bytes"].samples == []


def test_before_the_first_report_the_names_are_there(exporter):
    assert set(scrape(exporter)) == {metric.name for metric in CATALOGUE}


def test_stages_have_the_sums_of_the_account(run, scraped, account):
    for stage in range(3):
        label = str(stage)
        totals = account.totals()[stage]
        samples = scraped["distblock_samples_total"]
        assert value(samples, stage=label, purpose="train") == 3 * 112
        assert value(samples, stage=label, purpose="evaluate") == 3 * 40 + 20
        evaluations = sum(item.purpose == "evaluate" for item in run.items)
        assert value(scraped["distblock_microbatches_total"], stage=label, purpose="evaluate") == evaluations
        assert value(scraped["distblock_compute_seconds_total"], stage=label) == pytest.approx(totals.compute_s)
        assert value(scraped["distblock_epoch"], stage=label) == 3
    idle = {sample.labels["stage"]: sample.value for sample in scraped["distblock_idle_seconds_total"].samples}
    assert idle == pytest.approx({"0": account.totals()[0].idle_s, "2": account.totals()[2].idle_s})


def test_gauges_show_the_last_pass(run, scraped, account):
    for part in ("train", "validation", "test"):
        sums = account.stage_pass(1, 2, part)
        assert sums is not None
        assert value(scraped["distblock_loss"], stage="1", part=part) == pytest.approx(sums.loss)
        assert value(scraped["distblock_accuracy_ratio"], stage="1", part=part) == pytest.approx(sums.accuracy)
        assert value(scraped["distblock_transport_cost"], stage="1", part=part) == pytest.approx(sums.transport_cost)
    assert value(scraped["distblock_learning_rate"], stage="1") == account.rows()[-2].lr
    largest = max(report.peak_memory_bytes for report in run.reports if report.worker == 1)
    assert value(scraped["distblock_peak_memory_bytes"], stage="2") == largest


def durations(scraped, edge: str) -> list[Any]:
    """Buckets by their bound, and the sum without one."""
    samples = scraped["distblock_hop_duration_seconds"].samples
    return [each for each in samples if each.labels["edge"] == edge and not each.name.endswith("_count")]


def hop_seconds(run, edge: int) -> list[float]:
    """Of each hop that is not within a process, straight from the reports."""
    sent = run.departures if edge == 0 else [d for r in run.reports for d in r.departures if d.edge == edge]
    came = [a for r in run.reports for a in r.arrivals if a.edge == edge]
    pairs = [(one, other) for one, other in zip(sent, came, strict=True) if one.wire_bytes]
    return [one.encode_s + one.put_s + other.fetch_s + other.decode_s for one, other in pairs]


def test_edges_have_the_sums_of_the_account(run, scraped, account):
    for sums in account.edges():
        edge = sums.name
        assert value(scraped["distblock_payload_bytes_total"], edge=edge) == sums.payload_bytes
        assert value(scraped["distblock_wire_bytes_total"], edge=edge) == sums.wire_bytes
        assert value(scraped["distblock_exposed_seconds_total"], edge=edge) == pytest.approx(sums.exposed_s)
        for phase in ("encode", "put", "fetch", "decode"):
            seconds = value(scraped["distblock_hop_seconds_total"], edge=edge, phase=phase)
            assert seconds == pytest.approx(getattr(sums, f"{phase}_s"))
        told = {sample.labels.get("le"): sample.value for sample in durations(scraped, edge)}
        sizes = account.sizes(EDGES.index(edge))
        assert told.get("+Inf", 0) == sum(size.seconds.count for size in sizes)
        assert told.get(None, 0.0) == pytest.approx(sum(size.seconds.sum_s for size in sizes))
        for bound in (le for le in told if le not in (None, "+Inf")):
            within = sum(told_s <= float(bound) for told_s in hop_seconds(run, EDGES.index(edge)))
            assert told[bound] == within
    hops = {(s.labels["edge"], s.labels["path"]): s.value for s in scraped["distblock_hops_total"].samples}
    count = account.edges()[0].hops
    assert hops == {("data->0", "same_node"): count, ("0->1", "in_process"): count, ("1->2", "cross_node"): count}
    assert value(scraped["distblock_backpressure_seconds_total"], edge="1->2") == 0.75
    assert value(scraped["distblock_in_flight_microbatches"], edge="1->2") == 1
    assert value(scraped["distblock_in_flight_bytes"], edge="1->2") == 1_000


def test_what_the_account_has_not(scraped):
    assert value(scraped["distblock_driver_busy_seconds_total"]) == 1.5
    assert value(scraped["distblock_failures_total"], kind="worker_died") == 1
    assert value(scraped["distblock_line_rate_bytes"], edge="1->2") == 1.25e7


def test_staleness_has_the_sums_of_the_account(run, account, exporter):
    for report in run.reports:
        updates = report.item.number + 1
        account.record(replace(report, stages=tuple(replace(stage, updates=updates) for stage in report.stages)))
    families = scrape(exporter)
    updates, uses = families["distblock_staleness_updates_total"], families["distblock_uses_total"]
    for edge in (1, 2):
        sums, name = account.staleness(edge), f"{edge - 1}->{edge}"
        assert (value(uses, edge=name), value(updates, edge=name)) == (sums.uses, sums.updates)
    assert account.staleness(2).uses > account.staleness(1).uses > 0  # the last worker uses inputs again
    assert account.staleness(2).updates > account.staleness(1).updates


def test_drops_and_reuses(run, account, exporter):
    first = next(report for report in run.reports if report.worker == 0)
    account.record(replace(first, reused=(1, 2)))
    account.record_drop(2)
    families = scrape(exporter)
    reuses = [value(families["distblock_reuses_total"], stage=stage) for stage in "012"]
    assert reuses == [2, 2, 0]
    assert value(families["distblock_drops_total"], edge="1->2") == 1


def told(exporter: Exporter, *, kind: str) -> dict[Any, float]:
    """Of the families of one type: by sample's name and labels."""
    families = [family for family in scrape(exporter).values() if family.type == kind]
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_a_run_that_goes_back_lowers_no_counter(run, make_run, account, exporter):
    """The checkpoint has a part of the run; what is done again counts again."""
    record(account, run)
    before, buckets = told(exporter, kind="counter"), told(exporter, kind="histogram")
    checkpoint, earlier = Account(num_stages=3), make_run(batches=4)
    record(checkpoint, earlier)
    exporter.follow(checkpoint)
    assert told(exporter, kind="counter") == before
    assert told(exporter, kind="histogram") == buckets
    assert value(scrape(exporter)["distblock_epoch"], stage="1") == checkpoint.rows()[-1].epoch + 1 < 3

    seconds = checkpoint.totals()[1].compute_s
    record(checkpoint, make_run(batches=6))
    after = told(exporter, kind="counter")
    assert all(after[series] >= counted for series, counted in before.items())
    name = ("distblock_compute_seconds_total", (("run", "a-run"), ("stage", "1")))
    assert after[name] - before[name] == pytest.approx(checkpoint.totals()[1].compute_s - seconds)
    counted = [
        sum(s for (n, _), s in each.items() if n.endswith("_count"))
        for each in (buckets, told(exporter, kind="histogram"))
    ]
    assert counted[1] > counted[0]


def test_a_resumed_run_counts_what_is_new(run, account, exporter):
    """Its process is another one, and so are its counters; gauges say where it is."""
    record(account, run)
    resumed = Account.from_json(account.to_json())
    with Exporter(run="a-run", host="127.0.0.1", port=0, account=Account(num_stages=3)) as other:
        other.follow(resumed)
        assert set(told(other, kind="counter").values()) == {0}
        assert told(other, kind="gauge") == told(exporter, kind="gauge")
        resumed.record(run.reports[0])
        assert (
            value(scrape(other)["distblock_samples_total"], stage="0", purpose="train")
            == run.reports[0].item.num_samples
        )


def test_what_may_never_happen_begins_at_zero(exporter):
    """`increase` over a counter that appears with its first failure is nothing: it needs the 0 before."""
    families = scrape(exporter)
    for kind in get_args(FailureKind):
        assert value(families["distblock_failures_total"], kind=kind) == 0
    for edge in ("data->0", "0->1", "1->2"):
        assert value(families["distblock_drops_total"], edge=edge) == 0
        assert value(families["distblock_backpressure_seconds_total"], edge=edge) == 0
        assert value(families["distblock_in_flight_microbatches"], edge=edge) == 0
    assert value(families["distblock_reuses_total"], stage="2") == 0
    assert value(families["distblock_compute_seconds_total"], stage="1") == 0


def test_a_scrape_sees_whole_reports(run, account, exporter):
    """A scrape that comes between the two stages of worker 0's report waits, and then sees both."""
    seen: list[dict[str, Family]] = []
    scraper = threading.Thread(target=lambda: seen.append(scrape(exporter)))

    class Interrupted(tuple[StageReport, ...]):
        def __iter__(self):
            for stage in tuple.__iter__(self):
                yield stage
                if stage.stage == 0 and scraper.ident is None:
                    scraper.start()
                    scraper.join(timeout=0.3)

    account.record(replace(run.reports[0], stages=Interrupted(run.reports[0].stages)))
    scraper.join()
    samples = seen[0]["distblock_samples_total"].samples
    assert {sample.labels["stage"] for sample in samples if sample.value} == {"0", "1"}


def test_a_taken_port_is_named(exporter):
    with pytest.raises(InputError, match=rf"metrics\.port: expected a free port on 127\.0\.0\.1, got {exporter.port} "):
        Exporter(run="another", host="127.0.0.1", port=exporter.port, account=Account(num_stages=3))


def test_a_closed_exporter_frees_its_port():
    first = Exporter(run="a-run", host="127.0.0.1", port=0, account=Account(num_stages=3))
    port = first.port
    first.close()
    with Exporter(run="a-run", host="127.0.0.1", port=port, account=Account(num_stages=3)) as second:
        assert second.port == port
