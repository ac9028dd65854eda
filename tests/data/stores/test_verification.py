"""Stores that change under a run: found, and named by file and place, whatever changes them."""

import os
import shutil
import threading
import time

import pytest

from t5x_style.data import TokenStore
from t5x_style.data.building import assemble as assembly
from t5x_style.data.stores import verification
from t5x_style.data.stores.token_store import StoreChanged
from t5x_style.data.stores.verification import Verification
from t5x_style.errors import Fault
from tests.data.store_helpers import write_store

DOCUMENTS = [[10 * i + j for j in range(i % 7)] + [1] for i in range(200)]  # 3,2xx bytes of ids


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Of blocks of 256 bytes; its files are looked at without a pause."""
    monkeypatch.setattr(assembly, "BLOCK_BYTES", 256)
    monkeypatch.setattr(verification, "LOOK_SECONDS", 0.005)
    return write_store(tmp_path / "legal-train-0", DOCUMENTS)


def flip(path, place: int) -> None:
    """One bit, in place, as a fault of the disk does."""
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def error_of(verification: Verification) -> StoreChanged:
    """The error that a run gets, after a while."""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            verification.check()
            time.sleep(0.005)
    except StoreChanged as error:
        return error
    finally:
        verification.close()
    raise AssertionError("nothing was found")


def wait_until_verified(verification: Verification) -> None:
    deadline = time.monotonic() + 60
    while any(file.verified is None for file in verification._files):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_flipped_bit_is_found_after_the_start_by_file_and_bytes(store):
    flip(store.path / "tokens.bin", 700)
    error = error_of(Verification([TokenStore.open(store.path)]))
    assert isinstance(error, Fault)
    assert str(error) == (
        f"{store.path / 'tokens.bin'} has changed since it was built in bytes 512 to 767: "
        "remove the store"
    )
    # The verb that verifies says the same.
    with pytest.raises(StoreChanged) as said:
        TokenStore.open(store.path).verify()
    assert str(said.value) == str(error)


def test_the_last_block_ends_where_the_file_ends(store):
    size = (store.path / "tokens.bin").stat().st_size
    assert size % 256
    flip(store.path / "tokens.bin", size - 1)
    with pytest.raises(StoreChanged, match=f"bytes {size // 256 * 256:,} to {size - 1:,}: remove"):
        store.verify()


@pytest.mark.parametrize("name", ["document_ends.npy", "meta.json"])
def test_the_other_files_that_a_run_reads_are_verified_too(store, name):
    place = (store.path / name).stat().st_size - (1 if name.endswith("npy") else 5)
    opened = TokenStore.open(store.path)
    flip(store.path / name, place)
    assert f"{name} has changed since it was built: remove" in str(error_of(Verification([opened])))


def test_a_bit_that_flips_during_the_run_is_found(store):
    watched = Verification([store])
    wait_until_verified(watched)
    assert watched.check() == []
    before = (store.path / "tokens.bin").stat().st_mtime_ns
    while (store.path / "tokens.bin").stat().st_mtime_ns == before:
        flip(store.path / "tokens.bin", 0)
        flip(store.path / "tokens.bin", 0)
    flip(store.path / "tokens.bin", 0)
    assert "in bytes 0 to 255" in str(error_of(watched))


def test_a_store_that_was_touched_is_read_again_and_goes_on(store):
    watched = Verification([store])
    wait_until_verified(watched)
    (tokens,) = (file for file in watched._files if file.path.name == "tokens.bin")
    before = tokens.verified
    os.utime(store.path / "tokens.bin", ns=(1, 1))
    while tokens.verified == before:
        time.sleep(0.005)
    assert watched.check() == []
    watched.close()


@pytest.mark.parametrize("name", ["tokens.bin", "document_ends.npy"])
def test_a_file_that_is_cut_is_refused_at_the_next_step(store, monkeypatch, name):
    """Before the read through the map, which would end the process by SIGBUS."""
    monkeypatch.setattr(verification, "LOOK_SECONDS", 60)
    watched = Verification([store])
    wait_until_verified(watched)
    size = (store.path / name).stat().st_size
    os.truncate(store.path / name, size - 4)
    with pytest.raises(
        StoreChanged, match=rf"{name} has changed .* in size: {size - 4:,} bytes, and {size:,} then"
    ):
        watched.check()
    watched.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_store_that_is_replaced_is_read_on_and_told_once(store, tmp_path, how):
    """The map still has the old bytes. An open that follows would read the others."""
    held = store.tokens[:50].tolist()
    watched = Verification([store])
    shutil.move(store.path, tmp_path / "old")
    if how == "replaced":
        write_store(store.path, DOCUMENTS[::-1], seed=3)
    told = []
    while not told:
        told += watched.check()
        time.sleep(0.005)
    time.sleep(0.05)
    assert watched.check() == []
    assert told == [
        f"{store.path} was removed or replaced while the run reads it: this start goes on with the "
        "bytes that it had"
    ]
    assert store.tokens[:50].tolist() == held
    watched.close()


def test_a_disk_that_gives_an_error_ends_the_run_and_no_thread(store, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    error = error_of(Verification([store]))
    assert str(error).endswith(".npy cannot be read: Input/output error") or str(error).endswith(
        "tokens.bin cannot be read: Input/output error"
    )
    assert raised == []


def test_a_disk_that_answers_no_more_does_not_keep_a_run_from_ending(store, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(verification, "END_SECONDS", 0.05)
    monkeypatch.setattr(os, "preadv", lambda *_: answered.wait(60) and 0)
    watched = Verification([store])
    watched.close()
    answered.set()
    watched._thread.join()


def test_an_older_store_without_blocks_is_verified_as_a_whole(tmp_path, monkeypatch):
    meta = {"blocks": None}
    store = write_store(tmp_path / "old", DOCUMENTS)
    store.meta.update(meta)
    flip(store.path / "tokens.bin", 700)
    assert "tokens.bin has changed since it was built: remove" in str(
        error_of(Verification([store]))
    )


def test_processes_share_the_work_and_leave_nothing_out(store, monkeypatch):
    """Each byte of the ids is read by one process of three, and each file by one."""
    read = []
    monkeypatch.setattr(
        TokenStore, "verify_piece", lambda store, piece, *_: read.append((index, piece))
    )
    for index in range(3):
        watched = Verification([store], index=index, processes=3)
        wait_until_verified(watched)
        watched.close()
    pieces = sorted(piece for _, piece in read if piece.file == "tokens.bin")
    assert [piece.first for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == store.tokens.nbytes
    shares = [sum(who == index for who, _ in read) for index in range(3)]
    assert max(shares) - min(shares) <= 1
    assert {piece.file for _, piece in read} == {"tokens.bin", "document_ends.npy", "meta.json"}
    assert len(read) == len(set(read))


def test_arrays_that_no_file_is_behind_need_none(store):
    array = TokenStore(store.path, store.tokens, store.document_ends, store.meta)
    watched = Verification([array])
    assert watched.check() == []
    watched.close()
