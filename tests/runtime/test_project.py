"""What of a project goes to the cluster, and what stays."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from distblock import InputError
from distblock.runtime import project
from distblock.runtime.project import Packed, pack

FILES = (
    *("nets.py", "lib/deep.py", "lib/data/module.py", "run.yaml"),  # what belongs
    *("data/train.parquet", "runs/one/summary.json", ".env", ".git/HEAD", "lib/__pycache__/deep.pyc", "venv/bin/x"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(name)
    return tmp_path / "project"


def own(archive: Path) -> list[str]:
    """The archive's names but this package's."""
    return [name for name in zipfile.ZipFile(archive).namelist() if not name.startswith("distblock/")]


def test_code_goes_and_what_lies_beside_it_stays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "token").write_text("a token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
    (folder / "weights.bin").write_bytes(bytes(project.FILE_BYTES + 1))
    assert pack(folder, tmp_path / "a.zip") == Packed(num_files=4, too_large=("weights.bin",))
    assert own(tmp_path / "a.zip") == sorted(FILES[:4])
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert {"distblock/__init__.py", "distblock/data/dataset.py", "distblock/runs/directory.py"} <= set(names)
    assert not any("__pycache__" in name for name in names)


def test_equal_content_is_equal_bytes(folder: Path, tmp_path: Path):
    pack(folder, tmp_path / "a.zip")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    pack(tmp_path / "copy", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_what_git_ignores_stays(tmp_path: Path):
    folder = tmp_path / "project"
    (folder / "images").mkdir(parents=True)
    for name, text in {"nets.py": "", ".gitignore": "images/\nkey.json\n", "key.json": "", "images/0.png": ""}.items():
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    pack(folder, tmp_path / "a.zip")
    assert own(tmp_path / "a.zip") == ["nets.py"]


def test_a_project_that_is_one_already_is_not_written_over(folder: Path, tmp_path: Path):
    (folder / "distblock").mkdir()
    (folder / "distblock" / "__init__.py").write_text("theirs")
    pack(folder, tmp_path / "a.zip")
    archive = zipfile.ZipFile(tmp_path / "a.zip")
    assert [name for name in archive.namelist() if name.startswith("distblock/")] == ["distblock/__init__.py"]
    assert archive.read("distblock/__init__.py") == b"theirs"


def test_too_much_is_refused_with_its_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(project, "PROJECT_BYTES", 40)
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(bytes(39))
    with pytest.raises(InputError, match=r"--working-dir: expected a project of up to .* of it in images;"):
        pack(folder, tmp_path / "a.zip")
    with pytest.raises(InputError, match="--working-dir: expected the project's folder, got"):
        pack(folder / "nets.py", tmp_path / "a.zip")
