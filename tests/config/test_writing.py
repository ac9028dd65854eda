"""A layout's gin file, read back."""

import dataclasses

from t5x_style.accounting import Topology
from t5x_style.commands.main import load_named
from t5x_style.config import checks
from t5x_style.config.writing import layout_gin


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
    path.write_text(layout_gin(topology, "said\nof it"))
    assert "# said\n# of it\n" in path.read_text()
    checks.parse(["gin_configs/runs/pretrain.gin", str(path)], load=load_named)
    assert Topology() == topology
    # Microbatches are a part of the layout, too.
    assert "\nMICROBATCHES = 4\n" in layout_gin(dataclasses.replace(topology, microbatches=4), "")


def test_it_holds_behind_files_that_say_otherwise(tmp_path):
    before = Topology(
        data=2, fsdp=8, tensor=2, remat="full", microbatches=8, compiler_flags={"xla_a": "true"}
    )
    topology = Topology(fsdp=32)
    paths = tmp_path / "before.gin", tmp_path / "layout.gin"
    for path, text in zip(paths, (layout_gin(before, ""), layout_gin(topology, "")), strict=True):
        path.write_text(text)
    files = ["gin_configs/runs/pretrain.gin", *map(str, paths)]
    checks.parse(files, load=load_named)
    assert Topology() == topology
    assert "MICROBATCHES = 1\n" in text
