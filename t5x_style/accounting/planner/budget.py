"""A budget in the form in which a team has it, as model FLOPs."""

import dataclasses
import time

from t5x_style.accounting.chips import chip
from t5x_style.errors import UsageError
from t5x_style.quantities import SECONDS_PER_DAY

# Default share of the dense bfloat16 peak, by 6 N D. BloombergGPT reached 24.5 % on A100s;
# MaxText's tables give 40 to 60 % on TPUs.
EXPECTED_MFU = 0.4
# Share of the rate of large matrix products on a CPU; narrow products of a small model are slower.
EXPECTED_CPU_MFU = 0.25
THIS_CPU = "this_cpu"

SECONDS_PER_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """A budget and its parts; parts that were not given and do not follow are None.

    Attributes:
      flops: C = 6 N D, model FLOPs.
      form: the form in which it was given: 'flops', 'days', 'chip_hours', 'money' or 'cpu_minutes'.
      chip: name in the table of chips, dotted path of a user's own, or 'this_cpu'.
      chips: how many.
      peak_flops: of one chip, FLOP/s; measured for 'this_cpu'.
      mfu: model FLOPs by 6 N D over the peak, expected.
      price_per_chip_hour: in the user's own currency.
    """

    flops: float
    form: str
    chip: str | None = None
    chips: int | None = None
    peak_flops: float | None = None
    mfu: float | None = None
    price_per_chip_hour: float | None = None

    def chip_hours(self, flops: float) -> float | None:
        """Chip hours that `flops` take at the expected MFU; None without a chip."""
        if self.peak_flops is None or self.mfu is None:
            return None
        return flops / (self.peak_flops * self.mfu * SECONDS_PER_HOUR)

    def days(self, flops: float) -> float | None:
        """Days that `flops` take on all chips; None without a number of chips."""
        hours = self.chip_hours(flops)
        return None if hours is None or self.chips is None else hours / self.chips / 24

    def cost(self, flops: float) -> float | None:
        """Money that `flops` cost; None without a price."""
        hours = self.chip_hours(flops)
        if hours is None or self.price_per_chip_hour is None:
            return None
        return hours * self.price_per_chip_hour


def budget_of(
    *,
    flops: float | None = None,
    chip_name: str | None = None,
    chips: int | None = None,
    days: float | None = None,
    chip_hours: float | None = None,
    money: float | None = None,
    price_per_chip_hour: float | None = None,
    cpu_minutes: float | None = None,
    mfu: float | None = None,
) -> Budget:
    """The budget from one of its five forms.

    Args:
      flops: model FLOPs; chip_name, chips and price then serve only to show days and cost.
      chip_name, chips, days: chips for a time.
      chip_name, chip_hours: the form of a grant of GPU hours.
      chip_name, money, price_per_chip_hour: the form of a cloud's price list.
      cpu_minutes: this machine's CPU, measured now.
      mfu: None means EXPECTED_MFU, or EXPECTED_CPU_MFU for this CPU.

    Raises:
      UsageError: none or several forms, a missing part, or an impossible number.
    """
    numbers = {
        "flops": flops,
        "chips": chips,
        "days": days,
        "chip_hours": chip_hours,
        "money": money,
        "price_per_chip_hour": price_per_chip_hour,
        "cpu_minutes": cpu_minutes,
        "mfu": mfu,
    }
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise UsageError(f"--{name}={value}: must be above 0")
    if mfu is not None and mfu > 1:
        raise UsageError(f"--mfu={mfu}: a share of the peak, so at most 1 (40 % is 0.4)")
    forms = ("flops", "days", "chip_hours", "money", "cpu_minutes")
    given = [form for form in forms if numbers[form] is not None]
    if not given:
        raise UsageError(
            "a plan needs a budget: --flops=1e21, or --chip=v5e --chips=256 --days=7, or "
            "--chip=h100 --chip_hours=20000, or --chip=v5p --money=50000 "
            "--price_per_chip_hour=4.2, or --cpu_minutes=10 (or --preset=bloomberggpt)"
        )
    if len(given) > 1:
        flags = " and ".join(f"--{form}" for form in given)
        raise UsageError(f"{flags} are given together: each is a budget of its own, keep one")
    (form,) = given
    if cpu_minutes is not None:
        for name in ("chip", "chips"):
            if {"chip": chip_name, "chips": chips}[name] is not None:
                raise UsageError(
                    f"--cpu_minutes means this machine, --{name} another: keep one of them"
                )
        peak = measured_cpu_flops()
        share = mfu or EXPECTED_CPU_MFU
        spent = peak * share * cpu_minutes * 60
        return Budget(spent, form, THIS_CPU, 1, peak, share, price_per_chip_hour)
    if chip_name is None:
        for name in ("chips", "days", "chip_hours", "money", "price_per_chip_hour"):
            if numbers[name] is not None:
                raise UsageError(f"--{name}={numbers[name]} needs --chip: hours of which chip?")
        assert flops is not None
        return Budget(flops, form)
    known = chip(chip_name)
    share = mfu or EXPECTED_MFU
    rate = known.peak_bf16_flops * share
    if days is not None:
        if chips is None:
            raise UsageError(f"--days={days} needs --chips: how many of {chip_name}?")
        flops = chips * rate * days * SECONDS_PER_DAY
    elif chip_hours is not None:
        flops = rate * chip_hours * SECONDS_PER_HOUR
    elif money is not None:
        if price_per_chip_hour is None:
            raise UsageError(f"--money={money} needs --price_per_chip_hour: what does one cost?")
        flops = rate * money / price_per_chip_hour * SECONDS_PER_HOUR
    assert flops is not None
    return Budget(flops, form, chip_name, chips, known.peak_bf16_flops, share, price_per_chip_hour)


def measured_cpu_flops(seconds: float = 0.25) -> float:
    """float32 FLOP/s of this machine's CPU in large matrix products: its best rate, all cores.

    Args:
      seconds: for how long to measure.
    """
    # The import takes 0.1 s, and only this form of a budget needs it.
    import numpy as np

    size = 1024
    left = np.random.default_rng(0).random((size, size), np.float32)
    out = np.empty_like(left)
    np.matmul(left, left, out=out)  # the first call starts the threads
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(left, left, out=out)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
