"""The text of a plan of made-up numbers, which are worked out by hand beside it."""

import dataclasses
import pathlib
import types

import pytest

from t5x_style.accounting import LAWS, Allocation, Architecture, Plan, Topology
from t5x_style.accounting.audit import bloomberggpt
from t5x_style.accounting.planner.allocation import CapCost
from t5x_style.accounting.planner.budget import Budget
from t5x_style.accounting.planner.recipe import Recipe
from t5x_style.accounting.planner.sensitivity import Sensitivity
from t5x_style.accounting.planner.service import ServedModel
from t5x_style.accounting.planner.sources import SourceLimits
from t5x_style.reporting.text.accounts import accounts_text
from t5x_style.reporting.text.plan import plan_text

HERE = pathlib.Path(__file__).parent

# 6e20 FLOPs at half of 4e14 a second are 3e6 seconds of a chip: 833.3 hours, 13 h on 64.
BUDGET = Budget(6e20, "days", "v5p", 64, peak_flops=4e14, mfu=0.5, price_per_chip_hour=2.0)


def allocation(law, params, tokens, **more):
    return Allocation(
        law,
        params,
        tokens,
        **{"effective_tokens": tokens / 2, "loss": 2.5, "efficiency": 0.875} | more,
    )


@dataclasses.dataclass(frozen=True)
class Roof:
    bound: str = "compute"
    hidden_seconds: float = 1.5
    exposed_seconds: float = 2.5

    def mfu(self, convention, seconds=2.0):
        assert convention == "6nd"
        return 0.5 / seconds


def layout(remat):
    return types.SimpleNamespace(
        roofline=Roof(),
        step_seconds=2.0,
        devices_per_chip=2,
        bytes_per_chip={"total": 3 * 2**30},
        topology=Topology(data=2, fsdp=4, remat=remat, microbatches=3),
    )


@pytest.fixture
def plan():
    parts = {"parameters": 1, "optimizer": 2, "gradients": 3, "activations": 5, "total": 7}
    memory = types.SimpleNamespace(**{part: size * 2**20 for part, size in parts.items()})
    made = Plan(
        budget=BUDGET,
        sources=SourceLimits(
            {"legal": 4e9, "web": 6e9}, {"legal": 0.25, "web": 0.75}, {"legal": 4, "web": 1}
        ),
        law=LAWS["besiroglu"],
        laws={"besiroglu": LAWS["besiroglu"]},
        optima=[allocation("one", 1e9, 1e11, interval=((0.9e9, 1.1e9), (0.8e11, 1.2e11)))],
        within_data=[
            allocation("one", 2e9, 5e10, scarce_source="legal"),
            allocation("two", 1e9, 1e10, loss=None, efficiency=None),
        ],
        recommended=allocation("one", 1_920_000, 1e10),
        cap_costs=[CapCost("legal", 0.0125, 0.25, 1.5e20), CapCost(None, 0.02, 0.5, 3e20)],
        bloomberggpt=allocation("rule", 1e9, 7e10),
        served=ServedModel(1e12, allocation("one", 5e8, 4e11), 1.2e21, 1.8e21, 0.125),
        vocabulary={"isoflops": 1000},
        architecture=Architecture(
            vocab_size=1000, layers=2, d_model=256, d_ff=512, heads=4, positions="rope"
        ),
        recipe=Recipe(
            2048,
            64,
            3_001,
            393_347_072,
            0.00025,
            5_000_000,
            0.1,
            {"batch": "b", "learning rate": "l", "warm-up": "w", "horizon": "h"},
        ),
        chosen=allocation("one", 1.9e6, 8e9),
        meshes=[
            layout(remat) for remat in ("none", "full", "none", "full", "none", "full", "offload")
        ],
        remat_memory={"none": memory},
        checkpoint_bytes=3 * 2**20,
        checkpoint_period=100,
        sensitivity=[
            Sensitivity("as planned", 1, 6e20, 1e9, 1e11, 2.5, 0.875, 0.5, 1000.0),
            Sensitivity("budget", 0.5, 3e20, 5e8, 5e10, 2.625, 0.75, None, None),
        ],
        warnings=["mind the gap"],
    )
    return made


def test_every_figure_of_a_plan_stands_in_its_place(plan):
    """plan.txt is worked out by hand: 256 x 1,000 of embedding, 0.5 / 1.5 of MFU, 6,002 s x 64."""
    assert plan_text(plan) == (HERE / "plan.txt").read_text().rstrip("\n")


def test_the_accounts_of_bloomberggpt_stand_in_their_places():
    """accounts.txt has the figures that the tests of the accounts hold against the paper."""
    text = accounts_text(bloomberggpt.accounts())
    assert text == (HERE / "accounts.txt").read_text().rstrip("\n")


def beginnings(plan) -> list[str]:
    """The first words of each section."""
    return [" ".join(part.split()[:2]) for part in plan_text(plan).split("\n\n")]


def test_what_does_not_apply_is_left_out(plan):
    assert beginnings(plan) == [
        "budget: 6.00e20",
        "law parameters",
        "cost of",
        "with 1.00T",
        "model: L",
        "source unique",
        "batch 64",
        "mesh remat",
        "bytes per",
        "if FLOPs",
        "warning: mind",
    ]
    least = dataclasses.replace(
        plan,
        budget=Budget(6e20, "flops"),
        sources=SourceLimits(),
        cap_costs=[],
        bloomberggpt=None,
        served=None,
        vocabulary={},
        meshes=None,
        remat_memory=None,
        warnings=[],
    )
    assert beginnings(least) == [
        "budget: 6.00e20",
        "law parameters",
        "model: L",
        "batch 64",
        "if FLOPs",
        "besiroglu: Besiroglu",
    ]
    text = plan_text(least)
    assert text.startswith("budget: 6.00e20 model FLOPs (6 N D)\n")
    for absent in ("one epoch", "vocabulary by", "muennighoff"):
        assert absent not in text


@pytest.mark.parametrize(("loss", "shown"), [(1e-6, True), (0.9e-6, False)])
def test_a_limit_that_costs_nothing_is_not_shown(plan, loss, shown):
    costs = [CapCost("legal", 1.0, 0.5, 1e20), CapCost(None, loss, 0.5, 1e20)]
    changed = dataclasses.replace(plan, cap_costs=costs)
    assert ("cost of" in beginnings(changed)) == shown


@pytest.mark.parametrize(("saving", "saves"), [(0.01, True), (0.0, False), (-0.1, False)])
def test_a_smaller_model_is_advised_where_it_saves(plan, saving, saves):
    served = dataclasses.replace(plan.served, saving=saving)
    text = plan_text(dataclasses.replace(plan, served=served))
    assert ("no smaller model reaches this plan's loss for less within the data" in text) != saves


def test_chips_of_unknown_number_and_this_cpu(plan):
    """The meshes follow from the number; a CPU has none, and a measured peak in float32."""
    unknown = dataclasses.replace(plan, meshes=None, remat_memory=None)
    assert "meshes: --chips lists those of v5p that hold this model" in plan_text(unknown)
    budget = dataclasses.replace(
        BUDGET, form="cpu_minutes", chip="this_cpu", price_per_chip_hour=None
    )
    text = plan_text(dataclasses.replace(unknown, budget=budget))
    assert "of this_cpu (400 TFLOP/s measured in float32) at 50.0% MFU by 6ND, 13 h" in text
    assert "meshes" not in text
    assert "costing" not in text
    priceless = plan_text(
        dataclasses.replace(plan, budget=dataclasses.replace(BUDGET, price_per_chip_hour=None))
    )
    assert [line.split()[-1] for line in priceless.splitlines() if line.startswith("data=2")] == [
        "-"
    ] * 6
