"""tools/flip_bits: a few flips of each kind, and what it calls missed."""

import json

from t5x_style.checkpoints import manifest
from tests.scripts import script

flip_bits = script("flip_bits")


def test_every_flip_is_named_and_the_costs_are_printed(capsys):
    assert flip_bits.main(["--flips=30", "--megabytes=1", "--seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (total,) = (line.split() for line in lines if line.startswith("all "))
    named, not_read, missed = map(int, total[1:])
    assert named + not_read == 30
    assert missed == 0
    costs = {line.split("  ")[0] for line in lines[lines.index("") + 3 :]}
    assert {"Orbax's write", "Orbax's read", "verification, before a restore"} < costs


def test_a_verification_that_looks_away_is_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(manifest, "content_fault", lambda *_: None)
    assert flip_bits.main(["--flips=8", "--megabytes=1"]) == 1


def test_only_the_time_of_the_rename_and_the_sign_of_success_are_not_read():
    before = {"item_handlers": {"run": "a"}, "commit_timestamp_nsecs": 15}
    later = before | {"commit_timestamp_nsecs": 14}
    other = before | {"item_handlers": {"run": "b"}}
    name, old = "_CHECKPOINT_METADATA", json.dumps(before).encode()
    assert not flip_bits.is_read(name, old, json.dumps(later).encode())
    assert flip_bits.is_read(name, old, json.dumps(other).encode())
    assert flip_bits.is_read(name, old, old[:-1] + b"]")
    assert not flip_bits.is_read("commit_success.txt", b"a", b"b")
    assert flip_bits.is_read("state/commit_success.txt", b"a", b"b")
    assert flip_bits.is_read("run/metadata", b"a", b"b")
