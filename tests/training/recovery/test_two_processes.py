"""The processes of a run go back together, as the run of one process does."""

import json

import numpy as np

from tests.training.test_hosts import end, losses, read, start


def test_two_processes_go_back_to_the_same_step_and_learn_what_one_learns(tmp_path):
    rule = {"action": "rewind", "window": 8, "patience": 2, "margin": 2}
    run = {"steps": 28, "spikes": rule, "noise": [21 * 8, 23 * 8], "eval_tokens": 0}
    folders = [tmp_path / "one", tmp_path / "two"]
    children = [
        start(processes, {**run, "model_dir": str(folder), "keep_checkpoints": 4})
        for processes, folder in enumerate(folders, start=1)
    ]
    for processes in children:
        assert [ended.status for ended in end(processes)] == [0] * len(processes)
    found = [
        [
            (event["event"], event["step"], event.get("count"))
            for event in read(folder / "events.jsonl")
            if event["event"] in ("spike", "rewound", "skipped")
        ]
        for folder in folders
    ]
    assert found[0] == [("spike", 22, None), ("rewound", 15, 2), ("skipped", 22, 2)]
    assert found[1] == found[0]
    assert json.loads((folders[1] / "plan.json").read_text())["skipped_steps"] == [[22, 2]]
    one, two = ([loss for loss in losses(folder) if loss is not None] for folder in folders)
    assert len(one) == 26
    np.testing.assert_allclose(two, one, rtol=1e-5)
