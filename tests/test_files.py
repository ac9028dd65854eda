"""Files that are whole or absent, locks and digests."""

import hashlib
import os
import pathlib
import threading

import pytest

from t5x_style import files
from t5x_style.errors import UsageError
from tests.disk import RecordedOs


@pytest.fixture
def recorded(monkeypatch) -> RecordedOs:
    """The calls of `files` while the test runs."""
    recorded = RecordedOs()
    monkeypatch.setattr(files, "os", recorded)
    return recorded


@pytest.mark.parametrize("content", ["é\n" * 5000, b"\xff\0"])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(
    content, recorded, tmp_path
):
    file = tmp_path / "new" / "folder" / "file"
    whole = content.encode() if isinstance(content, str) else content
    for _ in range(2):  # the second time another file has the name
        files.write_whole(file, content)
        (synced, named, folder) = recorded.events
        assert (synced.kind, synced.held) == ("synced", whole)
        assert synced.path.parent == file.parent
        assert synced.path != file
        assert named == ("named", file, whole)
        assert folder == ("synced", file.parent, ["file"])
        recorded.events.clear()


def test_a_write_that_fails_leaves_the_file_that_was_there_alone(recorded, tmp_path, monkeypatch):
    files.write_whole(tmp_path / "file", "old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(recorded, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        files.write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_gets_its_name_once_all_in_it_is_on_the_disk(recorded, tmp_path):
    building, place = tmp_path / "building", tmp_path / "place"
    building.mkdir()
    for name in "ab":
        (building / name).write_text(name)
    files.publish_folder(building, place)
    named = recorded.named(place)
    assert recorded.events[named].held == ["a", "b"]
    assert recorded.synced_before(named) == {building, building / "a", building / "b"}
    assert recorded.synced_after(named) == {tmp_path}
    assert not building.exists()


def test_nothing_that_was_opened_to_be_synced_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        files.sync(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_is_held_by_one_and_waited_for_by_the_next(tmp_path):
    lock = tmp_path / "new" / "lock"
    asked, entered, order = threading.Event(), threading.Event(), []

    def second():
        with files.locked(lock, asked.set):
            order.append("second")
            entered.set()

    with files.locked(lock, lambda: order.append("held by nobody")):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(60), "the second was not told that the lock is held"
        order.append("first")
        assert not entered.is_set()
    thread.join(60)
    assert order == ["first", "second"]


def test_who_does_not_want_to_wait_for_a_lock_raises(tmp_path):
    def refused():
        raise UsageError("held")

    with (
        files.locked(tmp_path / "lock", refused),
        pytest.raises(UsageError, match="held"),
        files.locked(tmp_path / "lock", refused),
    ):
        raise AssertionError("two hold the lock")
    with files.locked(tmp_path / "lock", refused):
        pass


def test_a_digest_is_sha_256_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 10**5)
    assert files.file_digest(tmp_path / "file") == hashlib.sha256(b"abc" * 10**5).hexdigest()


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://a"])
def test_a_path_with_a_scheme_is_refused_with_its_flag(path):
    with pytest.raises(UsageError, match=rf"--model_dir = '{path}': {path[:2]}:// is not a file"):
        files.local_path(path, "--model_dir")


@pytest.mark.parametrize("path", ["a:b/c", "/a//b", "C:/a"])
def test_a_path_without_a_scheme_is_a_path_of_this_machine(path):
    assert os.fspath(files.local_path(path, "x")) == path.replace("//", "/")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b"\xef\xbb\xbfa = 1\n", "a = 1\n"),
        (b"\xef\xbb\xbf", ""),
        ("a\ufeffb".encode(), "a\ufeffb"),
        (b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("a\u2028b\u0085c\x0cd".encode(), "a\u2028b\u0085c\x0cd"),
    ],
)
def test_the_text_of_a_file_that_a_person_wrote(content, text, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert files.read_text(tmp_path / "a.txt", "--terms") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntw\xfc", r"--terms: not UTF-8 text: byte 6 \(line 2\) is 0xfc"),
        (b"\xef\xbb\xbfone\r\n\xff", r"--terms: not UTF-8 text: byte 8 \(line 2\) is 0xff"),
        ("one".encode("utf-16"), "--terms: not UTF-8 text: .*: it is UTF-16"),
        ("one".encode("utf-16-le"), r"--terms: not text: byte 1 \(line 1\) is NUL"),
        (b"a\nb\0", r"--terms: not text: byte 3 \(line 2\) is NUL"),
    ],
)
def test_bytes_that_are_no_text_are_named_by_place(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        files.read_text(tmp_path / "a.txt", "--terms")


def test_a_file_that_cannot_be_opened_is_named_by_what_names_it(tmp_path):
    with pytest.raises(UsageError, match="--terms: No such file or directory"):
        files.read_text(tmp_path / "a.txt", "--terms")
    with pytest.raises(UsageError, match="--terms: Is a directory"):
        files.read_text(tmp_path, "--terms")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~", "--x = '~': ~ is not expanded: write '/data/me'"),
        ("~/runs/a", "--x = '~/runs/a': ~ is not expanded: write '/data/me/runs/a'"),
        ("$RUNS/a", r"\$RUNS is not expanded: write '/runs/a'"),
        ("/mnt/${RUNS}", r"\$\{RUNS\} is not expanded: write '/mnt//runs'"),
    ],
)
def test_what_a_shell_expands_is_no_name_of_a_folder(path, message, tmp_path, monkeypatch):
    """A gin file is read by no shell: `~/runs` would be a folder called `~` beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/data/me")
    monkeypatch.setenv("RUNS", "/runs")
    with pytest.raises(UsageError, match=message):
        files.local_path(path, "--x")
    # A file of that very name, and names that no shell would expand, are what they are.
    for name in ("$UNSET/a", "a~", "a/~", "./~", "~no such user"):
        assert files.local_path(name, "--x") == pathlib.Path(name)
    pathlib.Path("~").mkdir()
    assert files.local_path("~", "--x") == pathlib.Path("~")
