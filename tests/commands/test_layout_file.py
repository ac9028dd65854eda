"""A layout's gin file, read back."""

from t5x_style.commands import configuration
from t5x_style.commands.layout_file import layout_gin
from t5x_style.commands.main import load_named
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
    path.write_text("MICROBATCHES = 1\n" + layout_gin(topology, 1, "said\nof it"))
    assert "# said\n# of it\n" in path.read_text()
    configuration.parse([str(path)], load=load_named)
    assert Topology() == topology
    # Passes are of the layout, too.
    assert layout_gin(topology, 4, "").endswith("MICROBATCHES = 4\n")
