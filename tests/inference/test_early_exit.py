"""Trained runs as predictors that may answer early, against the stages' own logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional

from distblock import BlockTrainer
from distblock.cli import main
from distblock.data.opening import open_data
from distblock.errors import DistblockError, InputError
from distblock.evaluation import evaluate_run, in_one_piece
from distblock.inference.early_exit import evaluate_early_exit
from distblock.inference.exits import Exits, fit_temperature, load_exits
from distblock.inference.policies import CONFIDENCES, Costs, Policy, Seen, measure, search
from distblock.inference.prediction import Wish, predict
from distblock.report.early_exits import class_table, confusion_table, draw_curve, early_exit_table
from distblock.runs import RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config: dict[str, Any] = {"executor": "local", "regime": {"epochs": 4}, "run_dir": str(folder)}
    BlockTrainer(config).fit()
    return RunDirectory.at(folder)


@pytest.fixture(scope="module")
def exits(run: RunDirectory) -> Exits:
    return load_exits(run, config=in_one_piece(run.read_config(), None))


@pytest.fixture(scope="module")
def images(run: RunDirectory, exits: Exits) -> torch.Tensor:
    data = open_data(run.read_config().data, seed=0, info=exits.info)
    from distblock.schedule.stream import evaluation_pass

    items = [item for item in evaluation_pass("test", data.info.num_test, 64) if item is not None]
    return torch.cat([torch.from_numpy(data.microbatch(item)[0]) for item in items])


@pytest.fixture(scope="module")
def found(run: RunDirectory) -> dict[str, Any]:
    return evaluate_early_exit(run)


def folder_of_digits(to: Path, count: int = 20) -> Path:
    from sklearn.datasets import load_digits

    to.mkdir(parents=True)
    bunch: Any = load_digits()
    for index in range(count):
        pixels = np.rint(bunch.images[index] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(to / f"{index:03d}-is-{bunch.target[index]}.png")
    return to


def test_without_confidence_the_last_stage_answers(exits: Exits, images: torch.Tensor):
    answers = exits.answer(images, last=2)
    logits = exits.logits(images)[2]
    assert answers.stages.tolist() == [2] * len(images)
    assert answers.classes.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(answers.probabilities, torch.softmax(logits, 1).max(1).values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_each_image_is_answered_by_the_first_stage_that_is_sure(exits: Exits, images: torch.Tensor, confidence: float):
    answers = exits.answer(images, last=2, policy=Policy(confidence=confidence))
    highest = [torch.softmax(logits, 1).max(1) for logits in exits.logits(images)]
    assert len(set(answers.stages.tolist())) > 1
    for place in range(len(images)):
        sure = [stage for stage in range(3) if stage == 2 or float(highest[stage].values[place]) >= confidence]
        # BatchNorm in evaluation mode knows no batch, but sums of other lengths may differ in the last bit.
        near = min(abs(float(highest[stage].values[place]) - confidence) for stage in range(3))
        if near > 1e-5:
            assert answers.stages[place] == sure[0]
            assert answers.classes[place] == highest[sure[0]].indices[place]


def test_a_stage_that_is_not_asked_does_not_answer(exits: Exits, images: torch.Tensor):
    answers = exits.answer(images, last=2, policy=Policy(confidence=0.5, asked=(1,)))
    assert set(answers.stages.tolist()) == {1, 2}
    sure = torch.softmax(exits.logits(images)[1], 1).max(1).values >= 0.5
    assert np.mean(answers.stages == 1) == pytest.approx(sure.double().mean().item(), abs=1 / len(images))


def test_what_is_asked_costs_beside_what_is_computed():
    costs = Costs(stages=(10, 20, 30), classifiers=(1, 2, 3))
    assert costs.until(0, ()) == 11
    assert costs.until(2, ()) == 63
    assert costs.until(2, (0, 1)) == 66
    assert costs.until(1, (0, 1, 2)) == 33


def test_deeper_exits_cost_more(exits: Exits):
    costs = exits.costs()
    until = [costs.until(stage, ()) for stage in range(3)]
    assert until == sorted(until)
    assert min(*costs.stages, *costs.classifiers) > 0


def seen_by(probabilities: list[list[float]], right: list[list[bool]]) -> Seen:
    """Labels are all 1; what is wrong says 0."""
    return Seen(
        classes=np.array(right).astype(np.int64),
        probabilities=np.array(probabilities),
        labels=np.ones(len(right[0]), dtype=np.int64),
    )


def test_accuracy_and_compute_of_a_policy():
    seen = seen_by([[0.9, 0.4, 0.6, 0.2], [0.9] * 4, [0.9] * 4], [[True, False, False, True], [True] * 4, [True] * 4])
    costs = Costs(stages=(10, 10, 10), classifiers=(5, 5, 5))
    found = measure(seen, Policy(confidence=0.5, asked=(0,)), last=2, costs=costs)
    assert found["answered"] == [0.5, 0, 0.5]
    assert found["accuracy"] == 0.75
    # Two images by the first stage, two by the last, which has asked the first before.
    assert found["cost"] == pytest.approx((15 + 40) / 2 / 35)
    alone = measure(seen, None, last=2, costs=costs)
    assert alone == {"accuracy": 1.0, "cost": 1.0, "answered": [0, 0, 1]}


def test_a_classifier_that_only_costs_is_not_asked():
    generator = np.random.default_rng(0)
    # The second stage is as sure as the first and of the same images, only later.
    sure = np.where(generator.random(1000) < 0.6, 0.95, 0.3)
    seen = seen_by([sure.tolist(), sure.tolist(), [0.99] * 1000], [(sure > 0.5).tolist()] * 2 + [[True] * 1000])
    policies = search(seen, last=2, costs=Costs(stages=(10, 10, 10), classifiers=(4, 4, 4)))
    best = policies[-1]
    assert best.asked == (0,)
    assert measure(seen, best, last=2, costs=Costs(stages=(10, 10, 10), classifiers=(4, 4, 4)))["accuracy"] == 1.0


def test_nothing_is_asked_where_the_first_stage_is_the_last():
    seen = seen_by([[0.9, 0.9]], [[True, False]])
    assert search(seen, last=0, costs=Costs(stages=(1,), classifiers=(1,))) == []


def test_many_stages_are_searched_with_fewer_of_them_asked():
    seen = seen_by([[0.9, 0.2]] * 54, [[True, False]] * 54)
    policies = search(seen, last=53, costs=Costs(stages=(1,) * 54, classifiers=(1,) * 54))
    assert policies
    assert all(policy.asked is not None and len(policy.asked) == 1 for policy in policies)


def test_the_curve_is_that_of_the_answers(run: RunDirectory, exits: Exits, images: torch.Tensor, found: dict[str, Any]):
    last = found["last_stage"]
    *early, alone = found["curve"]
    assert early
    costs = [point["validation"]["cost"] for point in found["curve"]]
    assert costs == sorted(costs)
    assert max(costs) == 1
    own = exits.costs()
    for point in early:
        assert point["confidence"] in CONFIDENCES
        policy = Policy(confidence=point["confidence"], asked=tuple(point["asked"]))
        answers = exits.answer(images, last=last, policy=policy, temperatures=found["temperatures"])
        shares = [float(np.mean(answers.stages == stage)) for stage in range(last + 1)]
        np.testing.assert_allclose(point["test"]["answered"], shares, atol=2 / len(images))
        counted = sum(share * own.until(stage, policy.asked or ()) for stage, share in enumerate(shares))
        assert point["test"]["cost"] == pytest.approx(counted / own.until(last, ()), abs=0.01)
    rows, best = evaluate_run(run)
    matrix = np.array(found["confusion"])
    assert last == best
    assert alone["confidence"] is None
    assert matrix.sum() == len(images)
    assert matrix.diagonal().sum() / matrix.sum() == pytest.approx(rows[best].accuracy)
    assert alone["test"]["accuracy"] == pytest.approx(rows[best].accuracy)
    assert run.read_early_exit() == json.loads(json.dumps({"format_version": 1, **found}))


def test_it_is_shown_and_drawn(found: dict[str, Any]):
    from rich.console import Console

    console = Console(width=150, record=True)
    for table in (early_exit_table(found), class_table(found), confusion_table(found)):
        console.print(table)
    text = console.export_text()
    assert f"{found['last_stage']} alone" in text
    assert "answered by stage" in text
    assert "<svg" in draw_curve(found)


def test_a_temperature_undoes_overconfidence():
    draw = torch.Generator().manual_seed(0)
    truth = torch.randn(5000, 4, generator=draw) * 2
    labels = torch.multinomial(torch.softmax(truth, 1), 1, generator=draw)[:, 0]
    assert fit_temperature(truth * 3, labels) == pytest.approx(3.0, rel=0.1)
    assert functional.cross_entropy(truth, labels) < functional.cross_entropy(truth * 3, labels)


def test_a_folder_is_predicted(run: RunDirectory, tmp_path: Path):
    folder = folder_of_digits(tmp_path / "images" / "below")
    predicted = predict(run, [str(folder.parent)], to=tmp_path / "out.parquet", wish=Wish(confidence=0.9))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.equals(predicted.table)
    stages = table.column("stage").to_pylist()
    shares = [f"stage {stage} {stages.count(stage) / 20:.0%}" for stage in range(predicted.last + 1)]
    assert predicted.answered == f"from a probability of 0.9 on a stage answers: {', '.join(shares)}"
    rows = table.to_pylist()
    assert [Path(row["image"]).name[:3] for row in rows] == [f"{index:03d}" for index in range(20)]
    right = [row["class_name"] == Path(row["image"]).stem[-1] for row in rows]
    assert sum(right) >= 17
    assert all(row["class_name"] == str(row["class"]) for row in rows)


def test_a_parquet_file_without_labels_and_single_images(run: RunDirectory, tmp_path: Path):
    files = sorted(folder_of_digits(tmp_path / "images", 5).iterdir())
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    one = predict(run, [str(tmp_path / "images.parquet")], to=tmp_path / "one.parquet", wish=Wish())
    two = predict(run, [str(file) for file in files], to=tmp_path / "two.parquet", wish=Wish())
    assert one.table.column("class").to_pylist() == two.table.column("class").to_pylist()
    assert one.table.column("image").to_pylist()[4] == f"{tmp_path}/images.parquet, row 4"


def test_the_confidence_for_an_accuracy_comes_from_validation(run: RunDirectory, found: dict[str, Any], tmp_path: Path):
    folder = folder_of_digits(tmp_path / "images", 5)
    points = [point["validation"] for point in found["curve"]]
    wished = sorted(point["accuracy"] for point in points)[-2]
    predicted = predict(run, [str(folder)], to=tmp_path / "out.parquet", wish=Wish(accuracy=wished))
    policy = predicted.policy
    key = (None, []) if policy is None else (policy.confidence, list(policy.asked or ()))
    chosen = next(p["validation"] for p in found["curve"] if (p["confidence"], list(p["asked"])) == key)
    assert chosen["accuracy"] >= wished
    assert all(point["accuracy"] < wished for point in points if point["cost"] < chosen["cost"])


def test_bad_input_is_one_line(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = folder_of_digits(tmp_path / "images", 2)
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "colours.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    to = ["--to", str(tmp_path / "out.parquet")]
    cases = [
        ([str(tmp_path / "wide.png")], "expected an image of 1 x 8 x 8"),
        ([str(tmp_path / "colours.png")], "expected a grey image, as the run was trained on, got RGB"),
        ([str(tmp_path / "broken.png")], "does not decode"),
        ([str(tmp_path / "empty")], "expected images below this folder"),
        ([str(tmp_path / "gone")], "expected a folder, a .parquet file or image files, got no such file"),
        ([str(folder), "--exit-confidence", "2"], "--exit-confidence: expected a probability"),
        ([str(folder), "--exit-confidence", "0.5", "--exit-accuracy", "0.9"], "got both"),
        ([str(folder), "--exit-stages", "0"], "--exit-stages: expected --exit-confidence beside it"),
        (
            [str(folder), "--exit-confidence", "0.5", "--stage", "1", "--exit-stages", "0", "1"],
            "--exit-stages: expected stages before the last, 1, got 1",
        ),
        ([str(folder), "--stage", "7"], "--stage: expected 0 to 2"),
        ([str(folder), "--to", str(tmp_path / "no" / "file")], "--to: expected a file in a folder"),
    ]
    for words, said in cases:
        with pytest.raises(SystemExit) as ended:
            main(["predict", run.location, *(words if "--to" in words else [*words, *to])])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.usefixtures("found")
def test_files_that_are_not_what_is_expected_are_named(run: RunDirectory, tmp_path: Path):
    pq.write_table(pa.table({"image": [b"no struct"]}), tmp_path / "plain.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([], kind)}), tmp_path / "none.parquet")
    out = tmp_path / "out.parquet"
    with pytest.raises(DistblockError, match="expected column image to be struct<bytes, path>, got binary"):
        predict(run, [str(tmp_path / "plain.parquet")], to=out, wish=Wish())
    with pytest.raises(InputError, match="expected images, got none"):
        predict(run, [str(tmp_path / "none.parquet")], to=out, wish=Wish())
    folder = folder_of_digits(tmp_path / "images", 2)
    with pytest.raises(InputError, match=r"--exit-accuracy: expected a share above 0, at most 1, got 97"):
        predict(run, [str(folder)], to=out, wish=Wish(accuracy=97))
    with pytest.raises(InputError, match="expected a file to write, got the folder"):
        predict(run, [str(folder)], to=folder, wish=Wish())
    with pytest.raises(InputError, match="--exit-stages: expected stages, got none"):
        predict(run, [str(folder)], to=out, wish=Wish(confidence=0.5, asked=()))
    copy = tmp_path / "copy"
    shutil.copytree(run.location, copy)
    (copy / "early_exit.json").write_text("")
    with pytest.raises(InputError, match="got no JSON"):
        predict(RunDirectory.at(copy), [str(folder)], to=out, wish=Wish(accuracy=0.5))
    assert not out.exists()


def test_a_run_without_weights_or_without_early_exits_is_named(run: RunDirectory, tmp_path: Path):
    empty = tmp_path / "run"
    empty.mkdir()
    (empty / "config.yaml").write_text("format_version: 1\n")
    with pytest.raises(InputError, match="weights"):
        predict(RunDirectory.at(empty), ["x"], to=tmp_path / "out.parquet", wish=Wish())
    copy = tmp_path / "copy"
    shutil.copytree(run.location, copy)
    # As one wrote it that knew no choice of stages.
    (copy / "early_exit.json").write_text('{"format_version": 1, "temperatures": [1, 1, 1], "validation": []}')
    with pytest.raises(InputError, match=r"evaluate .* --early-exit first"):
        predict(RunDirectory.at(copy), ["x"], to=tmp_path / "out.parquet", wish=Wish(is_calibrated=True))


def test_the_command_prints_and_draws(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "curve.svg"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", run.location, "--early-exit", "--picture", str(picture)])
    assert not ended.value.code
    assert "early exits" in capsys.readouterr().out
    assert picture.read_text().count("<svg") == 1
    assert json.loads((Path(run.location) / "early_exit.json").read_text())["classes"]


def test_the_command_says_which_parts_it_measures(run: RunDirectory, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", run.location, "--early-exit", "--part", "validation"])
    assert ended.value.code == 2
    assert "--part: expected test beside --early-exit" in capsys.readouterr().err


@pytest.mark.usefixtures("found")
def test_the_report_shows_them(run: RunDirectory):
    from distblock.pages import report

    page = Path(report([run])).read_text()
    assert "Early exits" in page
    assert "% of stage" in page
    assert page.count("<td>7</td>") >= 1
