"""The exit statuses and the channels of the command line."""

from t5x_style.commands import main as main_module


def test_a_verb_returns_its_result_as_json_and_speaks_on_standard_error(run_toy):
    status, result, err = run_toy()
    assert status == 0
    assert result["model"] == {"width": 8, "layers": 2, "kind": "rope", "dropout": 0.0}
    assert result["optimizer"]["learning_rate"] == 1e-3
    assert result["steps"] == 20
    assert result["dry_run"] is False
    assert "said for people" in err
