"""The manifest names every changed bit, every missing file, and whose checkpoint it is."""

import hashlib
import json
import os
import pathlib

import pytest

from t5x_style.checkpoints import manifest
from t5x_style.errors import Fault, UsageError

ORBAX = {"item_handlers": {"run": "a"}, "init_timestamp_nsecs": 11, "custom_metadata": {}}
CONTENT = {
    "state/_METADATA": b'{"a": 1}',
    "state/manifest.ocdbt": b"\x01\x02\x03",
    "state/ocdbt.process_0/d/x": bytes(range(40)),
    "state/ocdbt.process_1/d/y": b"",
    "run/metadata": b'{"tokens": 5}',
}
FACTS = {"step": 5, "tokens": 640, "identity": {"seed": 7, "blend": {"a": 0.1}}}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A checkpoint as it is when Orbax asks for the manifest, and as it is after the rename."""
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "_CHECKPOINT_METADATA").write_text(json.dumps(ORBAX))
    manifest.write(tmp_path, FACTS)
    (tmp_path / "_CHECKPOINT_METADATA").write_text(
        json.dumps(ORBAX | {"commit_timestamp_nsecs": 9})
    )
    (tmp_path / "commit_success.txt").write_text("whole")
    return tmp_path


def fault(folder: pathlib.Path) -> str | None:
    try:
        written = manifest.read(folder)
    except ValueError as error:
        return str(error)
    if written is None:
        return manifest.older_fault(folder)
    return manifest.outline_fault(folder, written) or manifest.content_fault(folder, written)


def rewrite(folder: pathlib.Path, **changes: object) -> None:
    """Make a manifest that says something else, and is whole."""
    text = json.loads((folder / "MANIFEST.json").read_text()) | changes
    del text["sha256"]
    digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()
    whole = json.dumps({**text, "sha256": digest}, indent=1, sort_keys=True) + "\n"
    (folder / "MANIFEST.json").write_text(whole)


def test_it_has_size_and_digest_of_every_file_and_the_facts(folder):
    written = json.loads((folder / "MANIFEST.json").read_text())
    assert written["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in CONTENT.items()
    }
    assert {key: written[key] for key in FACTS} == FACTS
    assert fault(folder) is None


def test_a_flipped_bit_is_named_in_any_file_and_in_the_manifest(folder):
    names = [*CONTENT, "MANIFEST.json", "_CHECKPOINT_METADATA"]
    for name in names:
        file = folder / name
        content = file.read_bytes()
        # Seven and eight have no common factor: every bit of a byte is met.
        for bit in range(0, 8 * len(content), 7):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            # The time of Orbax's rename is set after the manifest, and nothing reads it.
            if name == "_CHECKPOINT_METADATA":
                try:
                    if json.loads(flipped) | {"commit_timestamp_nsecs": 9} == json.loads(content):
                        continue
                except ValueError:
                    pass
            file.write_bytes(flipped)
            found = fault(folder)
            assert found is not None, (name, bit)
            assert name in found
        file.write_bytes(content)
    assert fault(folder) is None


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("state/manifest.ocdbt", os.remove, "state/manifest.ocdbt is missing"),
        (
            "state/_METADATA",
            lambda file: os.truncate(file, 4),
            "has 4 bytes instead of 8",
        ),
        ("state/ocdbt.process_1/d/y", os.remove, "process_1/d/y is missing"),
        ("_CHECKPOINT_METADATA", os.remove, "_CHECKPOINT_METADATA is missing"),
        ("MANIFEST.json", lambda file: os.truncate(file, 0), "MANIFEST.json is damaged"),
        ("MANIFEST.json", lambda file: file.write_text("[]"), "MANIFEST.json is damaged"),
    ],
)
def test_what_is_gone_or_cut_is_named(folder, name, damage, expected):
    damage(folder / name)
    assert expected in fault(folder)


def test_a_file_that_is_a_folder_or_a_pipe_is_named_and_not_waited_for(folder):
    (folder / "run/metadata").unlink()
    (folder / "run/metadata").mkdir()
    assert fault(folder) == "run/metadata is not a file"
    (folder / "run/metadata").rmdir()
    os.mkfifo(folder / "run/metadata")
    assert fault(folder) == "run/metadata is not a file"


@pytest.mark.parametrize("name", ["../strange", "/etc/hostname"])
def test_a_name_outside_the_checkpoint_is_refused_and_not_read(folder, name):
    content = b"whatever"
    (folder.parent / "strange").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files = manifest.read(folder)["files"] | {name: entry}
    rewrite(folder, files=files)
    assert fault(folder) == f"MANIFEST.json names {name!r}, which is outside the checkpoint"


def test_the_processes_share_the_bytes_and_leave_none_out(folder):
    written = manifest.read(folder)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(bytes(byte ^ 1 for byte in content))
    changed = {name for name, content in CONTENT.items() if content}
    named = set()
    for process in range(3):
        for _ in CONTENT:
            found = manifest.content_fault(folder, written, process, 3)
            if found is None:
                break
            name = found.split()[0]
            named.add((process, name))
            (folder / name).write_bytes(CONTENT[name])
    assert {name for _, name in named} == changed
    assert len(named) == len(changed)
    assert {process for process, _ in named} == {0, 1, 2}


def test_digests_left_by_the_processes_are_taken_and_the_files_not_read_again(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "_CHECKPOINT_METADATA").write_text(json.dumps(ORBAX))
    for process in (0, 1):
        manifest.write_part(tmp_path / "state", process, f"ocdbt.process_{process}")
    # Bits that flip between the write and the manifest do not become the truth.
    (tmp_path / "state/ocdbt.process_0/d/x").write_bytes(bytes(40))
    manifest.write(tmp_path, FACTS)
    assert not list(tmp_path.rglob("DIGESTS*"))
    assert fault(tmp_path) == "state/ocdbt.process_0/d/x has other bytes than were written"


def test_a_file_cut_before_the_manifest_makes_the_save_fail(tmp_path):
    file = tmp_path / "state/ocdbt.process_0/x"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1234")
    manifest.write_part(tmp_path / "state", 0, "ocdbt.process_0")
    file.write_bytes(b"12")
    with pytest.raises(Fault, match="process_0/x has 2 bytes instead of 4"):
        manifest.write(tmp_path, FACTS)


def test_one_without_a_manifest_is_of_an_older_version_or_has_lost_it(folder):
    (folder / "MANIFEST.json").unlink()
    assert fault(folder) is None
    (folder / "run/metadata").write_text('{"tokens": 5, "has_manifest": true}')
    assert fault(folder) == "MANIFEST.json is missing"
    (folder / "run/metadata").write_text('{"tokens')
    assert fault(folder) == "MANIFEST.json is missing, and run/metadata is damaged"
    (folder / "state/_METADATA").unlink()
    assert fault(folder) == "MANIFEST.json and state/_METADATA are missing"


def test_a_manifest_of_a_later_version_is_not_called_damaged(folder):
    rewrite(folder, version=2)
    with pytest.raises(UsageError, match=r"MANIFEST.json is of version 2, and 1 is read here"):
        fault(folder)
