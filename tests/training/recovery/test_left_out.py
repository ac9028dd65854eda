"""An update that was not applied is told with the documents of its step."""

import types

import numpy as np

from t5x_style.training.rewind import tell_left_out
from tests.training.runs import make_run

NAN = float("nan")


def test_the_rows_that_are_no_numbers_are_named_and_then_the_largest(tmp_path):
    run, events = make_run(tmp_path, steps=99), []
    session = types.SimpleNamespace(
        writer=types.SimpleNamespace(event=lambda kind, **fields: events.append((kind, fields)))
    )
    row_nats = np.array([5, 40, NAN, 6, 7, np.inf, 8, 41], np.float32)
    tell_left_out(run, session, 5, "loss nan, gradient norm 1.0", row_nats)
    ((kind, fields),) = events
    assert (kind, fields["step"], fields["count"], fields["tokens"]) == ("skipped", 5, 1, 5 * 128)
    # Four steps of eight rows went before.
    assert [(row["row"], row["finite"]) for row in fields["documents"]] == [
        (34, False), (37, False), (39, True), (33, True),
    ]  # fmt: skip
    for row in fields["documents"]:
        rows = run.reader.rows(np.array([row["row"]]))
        assert run.reader.names[rows.source[0]] == row["source"]
        store = run.stores.train[row["source"]]
        begin, end = row["tokens"]
        assert store.tokens[begin : end + 1].tolist() == rows.tokens[0].tolist()
        # Documents of this store have eight tokens each.
        assert row["places"] == list(range(begin // 8, end // 8 + 1))
