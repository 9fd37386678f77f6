"""Settings are checked once, and every error is one line that says what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from distblock.config import Config, dump_config, make_config, parse_values, read_values
from distblock.errors import InputError
from distblock.flags import known_flags, merge, parse_flags, take_files


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean model?"),
        ({"model": {"nam": "x"}}, "model.nam: unknown key; did you mean name?"),
        ({"data": {"zzz": 1}}, "data.zzz: unknown key; expected one of name, path"),
        ({"objective": {"tau": 0}}, "objective.tau: should be greater than 0, got 0"),
        ({"objective": {"tau": -1}}, "objective.tau: should be greater than 0, got -1"),
        ({"objective": {"tau": "nan"}}, "objective.tau: should be greater than 0, got 'nan'"),
        ({"data": {"fraction": 1.5}}, "data.fraction: should be less than or equal to 1, got 1.5"),
        ({"data": {"name": "cifar10"}}, "data.path: expected the folder of cifar10, got nothing"),
        ({"model": {"stages": 2, "cuts": [1]}}, "expected stages or cuts, got both"),
        ({"precision": "fp16"}, "expected fp32 or bf16 on a CPU, got fp16"),
        ({"address": "ray://head:10001"}, "got ray://head:10001; Ray Client"),
        ({"regime": {"name": "end-to-end"}, "model": {"stages": 3}}, "end-to-end trains the whole network as one"),
        ({"resources": {"cpus_per_worker": 0}}, "expected CPUs or GPUs for a worker"),
    ],
)
def test_bad_values_are_named(values: dict, message: str):
    with pytest.raises(InputError) as caught:
        make_config(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_survives_its_file():
    config = make_config(
        {"objective": {"tau": "inf"}, "data": {"augment": ["crop", "flip"]}, "model": {"cuts": [1, 2]}}
    )
    assert make_config(parse_values(dump_config(config), origin="test")) == config


def test_flags_are_laid_over_files_before_anything_is_checked(tmp_path: Path):
    # The file alone would be refused: cifar10 needs a path, which a flag gives.
    file = tmp_path / "run.yaml"
    file.write_text("data: {name: cifar10, batch_size: 32}\nobjective: {tau: .inf}\n")
    files, flags = take_files(["--config", str(file), "--data.path", "/data", "--data.batch-size=16"])
    assert files == [str(file)]
    config = make_config(merge(read_values(file), parse_flags(flags)))
    assert (config.data.name, config.data.path, config.data.batch_size) == ("cifar10", "/data", 16)
    assert config.objective.tau == float("inf")


def test_flags_by_hand():
    words = (
        "--seed 3 --objective.varying --model.no-channels-last --data.augment crop flip --model.cuts 1,2 --run-dir none"
    )
    assert parse_flags(words.split()) == {
        "seed": "3",
        "objective": {"varying": True},
        "model": {"channels_last": False, "cuts": ["1", "2"]},
        "data": {"augment": ["crop", "flip"]},
        "run_dir": None,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--objective.tua 1", "--objective.tua: unknown flag; did you mean --objective.tau?"),
        ("--seed", "--seed: expected one value, got none"),
        ("--seed 1 2", "--seed: expected one value, got 1 2"),
        ("digits", "digits: expected a flag"),
    ],
)
def test_bad_flags_are_named(words: str, message: str):
    with pytest.raises(InputError) as caught:
        parse_flags(words.split())
    assert message in str(caught.value)


def test_every_key_has_a_flag_that_reaches_it():
    # Oracle: the dotted keys of the dumped defaults; an empty mapping is a value, no section.
    def keys(values: dict, prefix: str = "") -> set[str]:
        nested = [(f"{prefix}{key}", value) for key, value in values.items()]
        return {
            name
            for key, value in nested
            for name in (keys(value, f"{key}.") if isinstance(value, dict) and value else {key})
        }

    assert set(known_flags()) == keys(Config().model_dump())


@pytest.mark.parametrize(("text", "message"), [("a: [", "not YAML"), ("- 1", "expected keys and values, got list")])
def test_bad_files_are_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_values(file)
    assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        read_values(tmp_path / "none.yaml")
