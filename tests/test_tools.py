"""What the scripts of tools/ say, where a test elsewhere does not run them."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench_scale() -> dict:
    """The names of the program inside of tools/bench_scale."""
    script = (ROOT / "tools" / "bench_scale").read_text()
    program = script.partition("<<'PYTHON'\n")[2].partition("\nPYTHON")[0]
    names: dict = {}
    exec(program.replace("sys.exit(main(sys.argv[1:]))", ""), names)
    return names


def test_bench_scale_tells_of_loops_that_it_could_not_count(bench_scale):
    sizes = {"peak": 2**30, "usable": 2**31}
    report = {
        "bytes_per_chip": sizes,
        "planned_bytes_per_chip": 2**30,
        "unsharded": 0.0,
        "hlo_flops_error": -0.25,
        "estimates": {},
        "unknown_loops": [],
    }
    line = {"row": "toy", "report": report, "seconds": 1.0}
    assert "-25.000%" in bench_scale["cells"](line)
    assert bench_scale["told_of"](line) == []
    report["unknown_loops"] = ["while.7"]
    assert "at least -25.000%" in bench_scale["cells"](line)
    assert len(bench_scale["told_of"](line)) == 1
    assert bench_scale["told_of"](line)[0].endswith("counted once: while.7")
