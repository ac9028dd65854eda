"""Expected seconds of a training step from FLOPs, memory traffic and bytes over the links.

A model of costs, not a measurement: the constants below are its assumptions. It leaves out latency,
stragglers, axes that share a link, the input, checkpoints and the compiler's weaknesses, so a real
step takes longer.
"""

import dataclasses
import math

from t5x_style.accounting.chips import LINK_EFFICIENCY, Chip
from t5x_style.accounting.flops import (
    executed_attention,
    recomputed,
    training_flops_per_token,
)
from t5x_style.accounting.layouts.memory import parameters_per_device
from t5x_style.accounting.parameter_count import attention_widths, parameters
from t5x_style.accounting.step_shape import StepShape
from t5x_style.accounting.topology import Topology

# Share of the peak that attention reaches: its products are thin (head size) and the softmax is
# between them. Assumed; by the compiler's schedule flash kernels of head size 128 reach 40 to 54 %
# on a v5p, 41 % on a v5e and 16 to 22 % on a v6e, for which this is too kind.
ATTENTION_EFFICIENCY = 0.40
# A torus of 256 chips is 16 x 16: a group of up to 16 chips is a ring along one axis, of up to 256
# one along two, and so on; each axis has a link in both directions. Slices that are cut smaller and
# do not wrap around have half of that.
TORUS_SIDE = 16
# XLA's TPU compiler turns a scatter over all chips of a slice into a sum and a slice of it, which
# sends twice the bytes: a mesh with data=2 is faster than one that is all fsdp.
WHOLE_TORUS_SCATTER = 2
# How much of the collectives' time shows. The compiler overlaps them with the products of the
# neighbouring layer; how well is not known before a profile, so the middle is taken.
EXPOSED_SHARE = 0.5
# Of an update, state apart: a gradient is read, a parameter is read and written, in float32.
UPDATE_BYTES = 12
# Logits: float32, written and read for the softmax, and the same for their gradient.
LOGIT_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device by cause.

    Attributes:
      matrix_products, attention: at the assumed shares of the chip's peak.
      memory: traffic that no product hides: norms and positions, gathered weights written, scores
        of the plain kernel, logits, the update.
      fsdp: weights gathered and gradients scattered.
      data: gradients summed over the replicas (data x sequence).
      tensor: activations summed.
      sequence: keys and values gathered, their gradients scattered.
      tokens: of the step, all devices together.
      model_flops: of the step by convention, '6nd' and 'causal'.
      peak_flops: FLOP/s of all chips together.
    """

    matrix_products: float
    attention: float
    memory: float
    fsdp: float
    data: float
    tensor: float
    sequence: float
    tokens: int
    model_flops: dict[str, float]
    peak_flops: float

    @property
    def on_chip(self) -> float:
        """Seconds without collectives."""
        return self.matrix_products + self.attention + self.memory

    @property
    def collectives(self) -> float:
        """Seconds that the links or the network are busy."""
        return self.fsdp + self.data + self.tensor + self.sequence

    @property
    def hidden_seconds(self) -> float:
        """The step with collectives and products fully overlapped."""
        return max(self.on_chip, self.collectives)

    @property
    def exposed_seconds(self) -> float:
        """The step with nothing overlapped."""
        return self.on_chip + self.collectives

    @property
    def seconds(self) -> float:
        """The expected step: between the two by EXPOSED_SHARE."""
        exposed = self.exposed_seconds - self.hidden_seconds
        return self.hidden_seconds + EXPOSED_SHARE * exposed

    @property
    def bound(self) -> str:
        """The longest term: 'compute', 'memory' or the axis of a collective."""
        terms = {
            "compute": self.matrix_products + self.attention,
            "memory": self.memory,
            "fsdp": self.fsdp,
            "data": self.data,
            "tensor": self.tensor,
            "sequence": self.sequence,
        }
        return max(terms, key=lambda name: terms[name])

    @property
    def tokens_per_second(self) -> float:
        """Of all chips together, at the expected step."""
        return self.tokens / self.seconds

    def mfu(self, convention: str, seconds: float | None = None) -> float:
        """Share of the peak by '6nd' or 'causal', at the expected step or at `seconds`."""
        taken = self.seconds if seconds is None else seconds
        return self.model_flops[convention] / (taken * self.peak_flops)


def roofline(shape: StepShape, topology: Topology, chip: Chip) -> Roofline:
    """The step's seconds under the default rules, every product at the bfloat16 peak.

    Args:
      shape: the mesh and the microbatches divide its sequences.
      topology: each of its microbatches gathers the weights and sums the gradients.
    """
    arch, tokens, c = shape.architecture, shape.tokens, shape.compute_bytes
    own_tokens = tokens / topology.devices * topology.tensor
    peak = chip.peak_bf16_flops / chip.devices_per_chip

    hardware = training_flops_per_token(arch, shape.sequence_length, "hardware", topology)
    products = executed_attention(arch, shape.sequence_length, topology)
    again = recomputed(arch, topology)
    attention = sum((3 + again.count(term)) * flops for term, flops in products.items())
    per_device = tokens / topology.devices / peak

    terms = parameters(arch)
    blocks = (terms["attention"] + terms["feed_forward"]) / topology.tensor
    vocabulary = arch.vocab_size * arch.d_model / topology.tensor
    # Blocks: gathered in the forward and in the backward pass, gradients scattered. Embedding and
    # head: each gathered once and scattered once, the head's gradient in float32.
    gathered = 2 * c * (blocks + vocabulary)
    scattered = c * blocks + (c + 4) * vocabulary
    if topology.fsdp == topology.devices and chip.interconnect != "nvlink":
        scattered *= WHOLE_TORUS_SCATTER
    memory_bytes = _memory_bytes(shape, topology, own_tokens, gathered * topology.microbatches)

    def seconds(size: float, group: int, stride: int) -> float:
        return _ring_seconds(chip, size, group, stride=stride)

    inner = topology.tensor * topology.sequence
    return Roofline(
        matrix_products=(hardware - attention) * per_device / chip.matrix_efficiency,
        attention=attention * per_device / ATTENTION_EFFICIENCY,
        memory=memory_bytes / (chip.hbm_bandwidth / chip.devices_per_chip),
        fsdp=topology.microbatches * seconds(gathered + scattered, topology.fsdp, inner),
        # A sum is a scatter and a gather, of the gradients that a device has after fsdp's scatter.
        # `sequence`, the innermost axis, sums the same ones and is counted with `data`.
        data=2
        * topology.microbatches
        * seconds(
            c * parameters_per_device(arch, topology),
            topology.data * topology.sequence,
            topology.fsdp * inner,
        ),
        tensor=seconds(
            _tensor_bytes(shape, topology, own_tokens), topology.tensor, topology.sequence
        ),
        sequence=seconds(_sequence_bytes(shape, topology, own_tokens), topology.sequence, 1),
        tokens=tokens,
        model_flops={
            convention: tokens * training_flops_per_token(arch, shape.sequence_length, convention)
            for convention in ("6nd", "causal")
        },
        peak_flops=peak * topology.devices,
    )


def _memory_bytes(shape: StepShape, topology: Topology, tokens: float, gathered: float) -> float:
    """Bytes through a device's memory that no matrix product hides."""
    arch, c = shape.architecture, shape.compute_bytes
    queries, keys = attention_widths(arch)
    # Forward, backward twice as much, and the forward pass again where it is recomputed.
    passes = 3 if topology.remat == "none" else 4
    norms = (1 if arch.parallel_block else 2) * 2 * arch.d_model
    positions = 2 * (queries + keys) / topology.tensor if arch.positions == "rope" else 0
    total = passes * tokens * arch.layers * c * (norms + positions)
    if topology.kernel == "plain":
        # float32 scores and the weights, each written and read.
        heads = arch.heads / topology.tensor
        total += passes * tokens * arch.layers * heads * shape.sequence_length * 2 * (4 + c)
    total += LOGIT_BYTES * tokens * arch.vocab_size / topology.tensor
    if topology.fsdp > 1:
        total += gathered
    # The state is read and written.
    update = UPDATE_BYTES + 2 * shape.optimizer_bytes
    return total + update * parameters_per_device(arch, topology)


def _tensor_bytes(shape: StepShape, topology: Topology, tokens: float) -> float:
    """Bytes of [T, D] that the tensor axis scatters and gathers in a step.

    Per layer the results of the attention and of the feed-forward, forward, and the gradients of
    their inputs, backward; and attention's result again where it is recomputed. Once a step: the
    embedding's rows and the gradient of the last hidden state.
    """
    arch = shape.architecture
    sums = arch.layers * (5 if topology.remat == "full" else 4) + 2
    return sums * 2 * shape.compute_bytes * tokens * arch.d_model


def _sequence_bytes(shape: StepShape, topology: Topology, tokens: float) -> float:
    """Keys and values of the whole sequence, gathered forward and backward, gradients scattered."""
    _, keys = attention_widths(shape.architecture)
    whole = tokens * topology.sequence * 2 * keys / topology.tensor
    return 3 * shape.compute_bytes * shape.architecture.layers * whole


def _ring_seconds(chip: Chip, size: float, group: int, *, stride: int) -> float:
    """Seconds to gather (or to scatter) `size` bytes over a group of devices.

    Every device sends and receives (g - 1) / g of `size`. A group that spans more chips than the
    links join has m members on each side of the network, and each of them receives an m-th of the
    bytes of the other sides.

    Args:
      size: bytes of the gathered array on one device.
      group: g, devices.
      stride: devices between neighbours of the group; those in between share the links' domain.
    """
    if group == 1:
        return 0.0
    domain = chip.link_domain * chip.devices_per_chip
    members = max(1, min(group, domain // stride))
    seconds = 0.0
    if members > 1:
        seconds = size * (members - 1) / members / _link_rate(chip, members)
    if members < group:
        sides = group / members
        network = chip.network_bandwidth / chip.devices_per_chip
        seconds = max(seconds, size * (sides - 1) / sides / (members * network))
    return seconds


def _link_rate(chip: Chip, devices: int) -> float:
    """Bytes/s that a device receives over its links from a group within their domain."""
    if chip.interconnect == "nvlink":
        rate = chip.links * chip.link_bandwidth
    else:
        chips = math.ceil(devices / chip.devices_per_chip)
        axes = max(1, math.ceil(math.log(chips, TORUS_SIDE) - 1e-9))
        rate = min(axes, chip.links // 2) * 2 * chip.link_bandwidth
    return rate * LINK_EFFICIENCY / chip.devices_per_chip
