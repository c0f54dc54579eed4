"""What the model of a cluster takes: assumptions, a batch, and the pieces that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cost.power_laws import SerialCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """All that was not measured where the serial pieces were. Each field says where its value is from."""

    gpus_per_node: int = 8
    """GPUs of a machine; as in the presets."""
    device_gib: float = 80.0
    """Memory of a GPU; as in the presets."""
    host_gib: float = 2048.0
    """Host memory of a machine; assumed."""
    peak_flops: float = 989e12
    """Dense bfloat16 FLOP/s of a GPU; data sheet of H100 and H200."""
    memory_bandwidth: float = 3.35e12
    """Bytes/s of a GPU's memory; data sheet of H100 SXM."""
    decode_efficiency: float = 0.6
    """Share of that bandwidth that decoding reaches; assumed."""
    decode_overhead: float = 4e-3
    """Seconds of a decode step beside its reads, for scheduling, launches and sampling; assumed."""
    all_reduce: float = 20e-6
    """Seconds of a small all-reduce between an engine's GPUs, two a layer and decode step; assumed."""
    prefill_utilisation: float = 0.4
    """Share of the peak FLOPs that prefill and large decode batches reach; assumed."""
    learner_utilisation: float = 0.26
    """Share of the peak FLOPs of a dense learner; measured on one H200 with 4B (docs/learner.md), assumed equal for larger ones."""
    moe_utilisation: float = 0.13
    """The same of a MoE; assumed as half of a dense one's, not measured."""
    nvlink: float = 450e9
    """Bytes/s of a GPU to others in its machine, each way; data sheet."""
    network: float = 50e9
    """Bytes/s of a GPU's own network adapter, each way; assumed, 400 Gbit/s each."""
    link_efficiency: float = 0.7
    """Share of a link's bandwidth that large collectives reach; assumed."""
    hop: float = 5e-6
    """Seconds that a collective takes for each rank of its ring; assumed."""
    host_link: float = 50e9
    """Bytes/s between a GPU and its host, each way; assumed, PCIe 5 × 16."""
    host_memory: float = 400e9
    """Bytes/s of a machine's host memory, for the optimizer of an offloaded learner; assumed."""
    object_store: float = 2.5e9
    """Bytes/s of Ray's object store from node to node; assumed. The nodes that have a batch double with each round of copies."""
    cpu_speed: float = 1.0
    """Speed of a core of the cluster by that of the measured machine; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A step's batch; the sizes are assumed, between the presets' limits."""

    prompts: int = 512
    """Prompts of a step."""
    group_size: int = 8
    """Responses of each prompt."""
    image_tokens: int = 1024
    """Tokens of each prompt's picture; 1,024 pixels are a token."""
    text_tokens: int = 128
    """Other tokens of each prompt."""
    response_tokens: int = 2048
    """Tokens of a response, mean."""
    longest_tokens: int = 16384
    """Tokens of the longest response; the presets' limit."""
    num_minibatches: int = 4
    """Optimizer updates; as in the presets."""

    @property
    def samples(self) -> int:
        """Responses of a step."""
        return self.prompts * self.group_size

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt."""
        return self.image_tokens + self.text_tokens

    @property
    def tokens(self) -> int:
        """Tokens of all responses."""
        return self.samples * self.response_tokens

    @property
    def pixels(self) -> int:
        """Pixels of all pictures."""
        return self.prompts * self.image_tokens * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on this machine."""

    handle: SerialCost
    """The driver's CPU seconds until a batch is scored."""
    hand_over: SerialCost
    """Seconds from a scored batch to the learner's ranks, and for metrics."""
    divide: SerialCost
    """A rank's seconds to divide the samples of all ranks."""
    prepare: SerialCost
    """The seconds for the microbatches of a batch, which the ranks share."""
    bytes: SerialCost
    """Bytes of a batch's samples, in place of seconds."""
    dispatch: float
    """The driver's seconds for a completion with many engines."""
    call: float
    """Seconds of a call of an engine from one process."""
    pair: float
    """Seconds for each pair of engines that are called in a round."""
    address: float
    """Seconds to send the address of one rank's memory to one engine."""

    def round(self, engines: int, ranks: int = 0) -> float:
        """Returns the seconds in which one process calls every engine once, with the addresses of so many ranks."""
        return engines * (self.call + engines * self.pair + ranks * self.address)
