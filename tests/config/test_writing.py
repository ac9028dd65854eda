"""A layout's gin file, read back."""

from t5x_style.commands.main import load_named
from t5x_style.config import checks
from t5x_style.config.writing import layout_gin
from t5x_style.partitioning import Topology


def test_what_is_written_is_read_back(tmp_path):
    topology = Topology(
        chip="v5p",
        slice="4x4x4",
        data=4,
        fsdp=16,
        remat="full",
        compiler_flags={"xla_a": "true", "xla_b": "1"},
    )
    path = tmp_path / "layout.gin"
    path.write_text(layout_gin(topology, 1, "said\nof it"))
    assert "# said\n# of it\n" in path.read_text()
    checks.parse([str(path)], load=load_named)
    assert Topology() == topology
    # Passes are of the layout, too.
    assert layout_gin(topology, 4, "").endswith("MICROBATCHES = 4\n")


def test_it_holds_behind_files_that_say_otherwise(tmp_path):
    before = Topology(data=2, fsdp=8, tensor=2, remat="full", compiler_flags={"xla_a": "true"})
    topology = Topology(fsdp=32)
    paths = tmp_path / "before.gin", tmp_path / "layout.gin"
    for path, text in zip(
        paths, (layout_gin(before, 8, ""), layout_gin(topology, 1, "")), strict=True
    ):
        path.write_text(text)
    checks.parse([str(path) for path in paths], load=load_named)
    assert Topology() == topology
    assert text.endswith("MICROBATCHES = 1\n")
