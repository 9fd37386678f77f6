"""How a process sees that it has the run's storage before it, without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from distblock.data.listing import Listing
from distblock.errors import DataError, InputError, StorageError
from distblock.runs import RunDirectory
from distblock.runtime import reach
from distblock.runtime.reach import Token, data_refusal, look, packed, storage_refusal, token

AT_ONCE = (0.0,)

LISTING = Listing(where="/data", num_files=2, names_sha256="", sizes=(("train.parquet", 5), ("test.parquet", 6)))


@pytest.fixture
def storage(tmp_path: Path) -> RunDirectory:
    return RunDirectory.at(tmp_path / "run")


def test_the_file_is_seen_and_then_gone(storage: RunDirectory):
    with token(storage, note=pytest.fail) as expected:
        assert look(packed(storage), expected, tries_s=AT_ONCE) is None
        assert storage.read(expected.name) == expected.content
    assert list(Path(storage.root).iterdir()) == []


def test_no_two_are_alike(storage: RunDirectory):
    with token(storage, note=pytest.fail) as one, token(storage, note=pytest.fail) as other:
        assert one.name != other.name
        assert one.content != other.content


def test_another_folder_is_not_it(storage: RunDirectory, tmp_path: Path):
    elsewhere = RunDirectory.at(tmp_path / "elsewhere")
    elsewhere.write("config.yaml", b"seed: 0")
    with token(storage, note=pytest.fail) as expected:
        assert look(packed(elsewhere), expected, tries_s=AT_ONCE) == f"no {elsewhere.path(expected.name)}"
        elsewhere.write(expected.name, b"other")
        assert look(packed(elsewhere), expected, tries_s=AT_ONCE) == f"other content in {elsewhere.path(expected.name)}"


def test_a_file_that_shows_late(storage: RunDirectory, monkeypatch: pytest.MonkeyPatch):
    expected = Token(name=".reach-0", content=b"it")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            storage.write(expected.name, expected.content)

    monkeypatch.setattr(reach.time, "sleep", sleep)
    assert look(packed(storage), expected) is None
    assert slept == list(reach.TRIES_S[:3])


@pytest.mark.parametrize("by_path", [True, False])
def test_a_file_system_of_the_users_own_goes_along(tmp_path: Path, by_path: bool):
    filesystem = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    storage = RunDirectory(filesystem if by_path else fs.PyFileSystem(fs.FSSpecHandler(memory())), "bucket/run")
    with token(storage, note=pytest.fail) as expected:
        assert look(packed(storage), expected, tries_s=AT_ONCE) is None


def memory():
    return pytest.importorskip("fsspec").filesystem("memory")


class Locked(fs.FSSpecHandler):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__(memory())
        self.lock = threading.Lock()


class Elsewhere(fs.FSSpecHandler):
    """Can be pickled, but not taken up again."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return __import__, ("a_module_of_this_host_alone",)


def test_an_object_store_whose_keys_stand_in_the_uri(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={quote(f'http://{host}:{port}', safe='')}&region=us-east-1&allow_bucket_creation=true"
    storage = RunDirectory.at(f"s3://somebody:a-secret@bucket/runs/one?{options}")
    with token(storage, note=pytest.fail) as expected:
        assert look(packed(storage), expected, tries_s=AT_ONCE) is None
        wrong = look(packed(storage), Token(name="other", content=b""), tries_s=AT_ONCE)
        assert wrong == "no bucket/runs/one/other"
    assert not storage.exists(expected.name)
    server.stop()
    refused = str(storage_refusal(storage, {"b": str(wrong)}, driver="a"))
    assert "s3://bucket/runs/one" in refused
    assert "a-secret" not in refused


def test_one_that_cannot_be_pickled_says_so():
    with pytest.raises(InputError, match=r"RunConfig\.storage_filesystem: .* can be pickled.* got: TypeError: .*lock"):
        packed(RunDirectory(fs.PyFileSystem(Locked()), "run"))


def test_one_that_cannot_be_unpickled_there_says_so():
    pickled = packed(RunDirectory(fs.PyFileSystem(Elsewhere(memory())), "run"))
    found = look(pickled, Token(name="name", content=b""), tries_s=AT_ONCE)
    assert found is not None
    assert "cannot be unpickled there: ModuleNotFoundError: No module named 'a_module_of_this_host_alone'" in found


def test_what_a_storage_raises_is_told(storage: RunDirectory, tmp_path: Path):
    (tmp_path / "run").write_text("a file where the folder should be")
    found = look(packed(storage), Token(name="name", content=b""), tries_s=AT_ONCE)
    assert found is not None
    assert str(tmp_path / "run") in found


def test_a_storage_that_takes_nothing(storage: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(reach, "TRIES_S", (0.0, 0.0))
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"run/\.reach-\w+ cannot be written: "), token(storage, note=pytest.fail):
        pass


def test_a_file_that_stays_is_told(storage: RunDirectory):
    notes: list[str] = []
    with token(storage, note=notes.append) as expected:
        storage.remove(expected.name)
    assert len(notes) == 1
    assert "could not be removed: FileNotFoundError" in notes[0]


def test_refusals_name_host_path_and_what_to_do(storage: RunDirectory):
    wrong = {"10.0.0.2 (b)": "no /x/.reach-1", "10.0.0.3 (c)": "no /x/.reach-1"}
    assert str(storage_refusal(storage, wrong, driver="10.0.0.1 (a)")) == (
        f"run_dir: expected node 10.0.0.2 (b) to see in {storage.root} what the driver on 10.0.0.1 (a) has written"
        " there, got no /x/.reach-1 (nor does 10.0.0.3 (c)); give --run-dir a folder that all nodes share, or a URI"
        " such as s3://bucket/runs/name"
    )


def test_data_refusals():
    assert data_refusal(LISTING, LISTING, node="b", driver="a") is None
    none = Listing(where="/mnt/data", num_files=0, names_sha256="", sizes=())
    refused = data_refusal(LISTING, none, node="10.0.0.2 (b)", driver="10.0.0.1 (a)")
    assert isinstance(refused, DataError)
    assert str(refused).startswith(
        "data.path: expected node 10.0.0.2 (b) to see in /mnt/data the files that the driver on 10.0.0.1 (a) sees, but"
        " it does not: expected 2 files, got none; give --data.path a folder that all nodes share"
    )
    assert "in /data the files" in str(data_refusal(LISTING, "OSError: stale", node="b", driver="a"))
    assert "got OSError: stale;" in str(data_refusal(LISTING, "OSError: stale", node="b", driver="a"))
