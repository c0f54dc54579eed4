"""bench.scaling: its fits, and the model of a cluster, with numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cluster.growth import Growth, causes, half_point
from bench.cluster.inputs import Assumptions, Measured, Work
from bench.cluster.layout import Layout, layout_of
from bench.cluster.step import (
    decode_step,
    forward_flops,
    generate_seconds,
    learn_seconds,
    multiplied,
    read_parameters,
    ring_seconds,
    serial_seconds,
    step_terms,
    sync_seconds,
)
from bench.cost.cases import Case, axis_rows, cases_of
from bench.cost.power_laws import SerialCost, bottleneck, fit_power, fit_serial
from bench.cost.sheets import Sheet, field_help, number
from policies.model_sizes import PUBLISHED, ModelShape, VisionShape

VISION = VisionShape(layers=1, hidden=2, intermediate=3, positions=4, num_deepstack=0, out=4)
TINY = ModelShape(
    layers=2,
    hidden=4,
    heads=2,
    kv_heads=1,
    head_dim=2,
    intermediate=8,
    vocabulary=10,
    tied=True,
    vision=VISION,
)
"""A layer has 2 × 4 × (4 + 2) + 2 × 2 + 2 × 4 + 3 × 4 × 8 = 156 parameters, an embedding 40; a block 8 + 24 + 17 = 49."""
NOTHING = SerialCost(per_step=0, per_prompt=0, per_sample=0, per_token=0, per_pixel=0)
FREE = Measured(
    handle=NOTHING,
    hand_over=NOTHING,
    divide=NOTHING,
    prepare=NOTHING,
    bytes=NOTHING,
    dispatch=0.0,
    call=0.0,
    pair=0.0,
    address=0.0,
)
ROUND = Assumptions(
    peak_flops=1000.0,
    memory_bandwidth=100.0,
    decode_efficiency=0.5,
    decode_overhead=1.0,
    all_reduce=0.25,
    prefill_utilisation=0.5,
    learner_utilisation=0.1,
    nvlink=100.0,
    network=10.0,
    link_efficiency=0.5,
    hop=0.01,
    host_link=100.0,
    host_memory=1000.0,
    object_store=10.0,
    gpus_per_node=4,
)
LAYOUT = Layout(
    gpus=4,
    ranks=4,
    replicas=1,
    engines=4,
    width=1,
    offload=False,
    microbatch_tokens=1000,
    max_running=100,
    cache_tokens=1e9,
    placement="colocated",
)
WORK = Work(
    prompts=8,
    group_size=2,
    image_tokens=1,
    text_tokens=3,
    response_tokens=4,
    longest_tokens=4,
    num_minibatches=1,
)


def test_a_power_law_and_its_constant_are_found_in_exact_points():
    law = fit_power([1, 2, 4, 8, 16], [3 + 2 * size**1.5 for size in (1, 2, 4, 8, 16)])
    assert law.exponent == pytest.approx(1.5) and law.constant == pytest.approx(3) and law.factor == pytest.approx(2)
    assert law.constant_share == pytest.approx(3 / (3 + 2 * 64))
    assert law.error == pytest.approx(0, abs=1e-9)
    assert law.seconds(100) == pytest.approx(2003)


def test_seconds_that_hardly_grow_are_a_constant():
    law = fit_power([1, 2, 4, 8], [1.0, 1.1, 0.9, 1.0])
    assert (law.factor, law.exponent, law.constant_share) == (0, 0, 1)
    assert 0.9 < law.constant < 1.1


def test_the_slope_on_logarithmic_axes_includes_the_constant():
    assert fit_power([1, 10, 100, 1000], [2, 20, 200, 2000]).slope == pytest.approx(1)
    assert fit_power([1, 10, 100, 1000], [1001, 1010, 1100, 2000]).slope < 0.1


def test_a_serial_cost_is_found_in_batches_of_each_size():
    true = SerialCost(per_step=1.0, per_prompt=0.5, per_sample=0.25, per_token=0.125, per_pixel=0.001)
    rows = [
        {"prompts": p, "group_size": g, "response_tokens": t, "image_side": s}
        for p, g, t, s in [(2, 2, 2, 8), (8, 2, 2, 8), (2, 8, 2, 8), (2, 2, 32, 8), (2, 2, 2, 64), (4, 4, 4, 16)]
    ]
    for row in rows:
        samples = row["prompts"] * row["group_size"]
        row["seconds"] = true.seconds(
            prompts=row["prompts"],
            samples=samples,
            tokens=samples * row["response_tokens"],
            pixels=row["prompts"] * row["image_side"] ** 2,
        )
    # 2 prompts with 2 samples of 2 tokens and 64 pixels each: 1 + 2 × .5 + 4 × .25 + 8 × .125 + 128 × .001
    assert rows[0]["seconds"] == pytest.approx(4.128)
    found = fit_serial(rows, "seconds")
    for name in ("per_step", "per_prompt", "per_sample", "per_token", "per_pixel"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6)


def test_the_bottleneck_is_the_largest_phase_at_the_end_since_it_became_so():
    phases = {"generate": [3.0, 3.0, 3.0, 3.0], "learn": [1.0, 4.0, 5.0, 9.0], "sync": [1.0, 1.0, 6.0, 0.0]}
    found = bottleneck([1, 2, 4, 8], phases)
    assert (found.phase, found.share, found.since, found.size) == ("learn", 0.75, 8, 8)


def test_cases_vary_one_size_and_those_of_one_run_are_side_by_side():
    cases = cases_of({"prompts": [4, 8], "engines": [1, 2], "vocabulary": [512]})
    assert len(cases) == 4 and cases[0] == Case(prompts=4) and cases[1] == Case()
    rows = [
        {"vocabulary": 263, "engines": 1, "group_size": 8, "response_tokens": 16, "image_side": 64, "prompts": n}
        for n in (64, 8, 2)
    ]
    other = {**rows[0], "engines": 2}
    assert [row["prompts"] for row in axis_rows([*rows, other], "prompts")] == [2, 8, 64]


def test_parameters_that_are_multiplied_and_read_by_hand():
    assert multiplied(TINY) == 2 * 156 + 40
    assert read_parameters(TINY, 5) == multiplied(TINY)
    moe = replace(TINY, experts=4, experts_per_token=1, expert_intermediate=2)
    # Of a layer 156 − 96 = 60 remain, with a router of 16 and experts of 24 each.
    assert multiplied(moe) == 2 * (60 + 16 + 24) + 40
    # Two sequences choose 4 × (1 − (3/4)²) = 1.75 experts.
    assert read_parameters(moe, 2) == pytest.approx(2 * (60 + 16 + 1.75 * 24) + 40)


def test_a_decode_step_reads_weights_and_cache_and_takes_its_overhead():
    # 352 parameters of 2 bytes, and 3 × 10 tokens of 2 × 2 × 2 layers × 1 × 2 = 16 bytes, at 50 bytes/s
    assert decode_step(TINY, 1, 3, 10, ROUND) == pytest.approx((704 + 480) / 50 + 1)
    # Two GPUs share the weights, not the one key-value head, and reduce twice a layer.
    assert decode_step(TINY, 2, 3, 10, ROUND) == pytest.approx((352 + 480) / 50 + 1 + 4 * 0.25)
    # 1,000 sequences without a context: 704,000 FLOPs at 500 FLOP/s
    assert decode_step(TINY, 1, 1000, 0, ROUND) == pytest.approx(1408 + 1)


def test_engines_generate_all_tokens_but_no_faster_than_the_longest_response():
    # An engine has 2 prompts, 4 samples at once, 4 steps with 4 + 2 tokens of context. Prefill: 2 × (704 × 4 + 2 × 49 × 4) FLOPs.
    step, prefill = (704 + 4 * 6 * 16) / 50 + 1, 2 * (704 * 4 + 392) / 500
    assert generate_seconds(TINY, LAYOUT, WORK, ROUND) == pytest.approx(prefill + 4 * step)
    # Half as many at once take twice as many steps.
    halved = (704 + 2 * 6 * 16) / 50 + 1
    assert generate_seconds(TINY, replace(LAYOUT, max_running=2), WORK, ROUND) == pytest.approx(prefill + 8 * halved)
    alone = (704 + (4 + 50) * 16) / 50 + 1
    assert generate_seconds(TINY, LAYOUT, replace(WORK, longest_tokens=100), ROUND) == pytest.approx(
        prefill + 100 * alone
    )


def test_the_learner_computes_prompts_once_and_waits_for_the_longest_sequence():
    # A prompt of 4 tokens and two responses of 4: 12 tokens, squares 16 + 2 × (64 − 16) = 112, attention 2 × 2 × 2 × 2 × 112
    forward = 704 * 12 + 16 * 112 + 392
    assert forward_flops(TINY, 4, [(2, 4)], 1) == forward
    terms = learn_seconds(TINY, replace(LAYOUT, ranks=1), WORK, ROUND)
    assert terms["learn"] == pytest.approx(3 * 8 * forward / 100)
    assert terms["layers' traffic"] == terms["replicas"] == terms["offload"] == 0
    # 1,000 ranks: the busiest has one response alone.
    single = 704 * 8 + 16 * 64 + 392
    many = learn_seconds(TINY, replace(LAYOUT, ranks=1000, replicas=1000), WORK, ROUND)
    assert many["learn"] == pytest.approx(3 * single / 100)


def test_the_old_policys_pass_adds_a_third_of_an_update_for_all_but_the_first_minibatch():
    one = learn_seconds(TINY, replace(LAYOUT, ranks=1), WORK, ROUND)["learn"]
    two = learn_seconds(TINY, replace(LAYOUT, ranks=1), replace(WORK, num_minibatches=2), ROUND)["learn"]
    assert two / one == pytest.approx(3.5 / 3)


def test_traffic_of_layers_is_what_exceeds_the_products_and_offload_moves_every_shard():
    # One minibatch: two gathers of 2 bytes a parameter, one reduction of 4; 2 layers, a block and the rest
    shape, fast = TINY, replace(ROUND, peak_flops=1e12)
    p = shape.parameters
    learn = learn_seconds(shape, LAYOUT, WORK, fast)
    traffic = 8 * p * 0.75 / 50 + 3 * 4 * 4 * 0.01
    assert learn["layers' traffic"] + learn["learn"] == pytest.approx(traffic)
    # Three copies of a shard at 4 bytes a parameter, and 28 bytes a parameter of each of 4 shards in host memory
    offloaded = learn_seconds(shape, replace(LAYOUT, offload=True), WORK, fast)["offload"]
    assert offloaded == pytest.approx(3 * 4 * p / 4 / 100 + 28 * p / 1000)
    # Four replicas of one rank each: 8 bytes a parameter by an adapter of 5 bytes/s, 2 × 4 modules × 2 hops
    replicas = learn_seconds(shape, replace(LAYOUT, replicas=4), WORK, fast)["replicas"]
    assert replicas == pytest.approx(8 * p / 5 + 2 * 4 * 2 * 0.01)


def test_a_ring_sends_all_but_its_own_part_and_takes_a_hop_for_each_rank():
    assert ring_seconds(1000, 1, 5, ROUND) == 0
    assert ring_seconds(1000, 4, 5, ROUND) == pytest.approx(1000 * 0.75 / 50 + 5 * 4 * 0.01)
    # Over machines: 4 adapters of 10 bytes/s
    assert ring_seconds(1000, 8, 5, ROUND) == pytest.approx(1000 * 0.875 / 20 + 5 * 8 * 0.01)


def test_calls_of_a_colocated_sync_grow_with_engines_times_ranks():
    measured = replace(FREE, call=1.0, pair=0.5, address=0.25)
    assert measured.round(4) == 4 + 8
    # Two rounds, and one for the only piece, with the addresses of 4 ranks to each of 4 engines
    terms = sync_seconds(TINY, LAYOUT, measured, ROUND)
    assert terms["sync calls"] == 3 * 12 + 4 * 4 * 0.25
    separate = sync_seconds(TINY, replace(LAYOUT, placement="separate"), measured, ROUND)
    assert separate["sync calls"] == 4 * 12
    # All parameters, 2 bytes each, by one adapter, and a hop for each receiver
    assert separate["broadcast"] == pytest.approx(2 * TINY.parameters / 5 + 4 * 0.01)


def test_serial_work_grows_with_the_batch_and_only_microbatches_are_shared():
    ones = SerialCost(per_step=1, per_prompt=1, per_sample=1, per_token=1, per_pixel=0)
    measured = replace(FREE, hand_over=ones, divide=ones, prepare=ones, bytes=ones, handle=ones, dispatch=10.0)
    terms = serial_seconds(replace(LAYOUT, ranks=8), WORK, measured, ROUND)
    whole = 1 + 8 + 16 + 64
    assert terms["hand over"] == terms["divide"] == whole and terms["prepare"] == whole / 8
    assert terms["handle"] == 160  # the dispatcher's 10 s for each of 16 samples are more
    assert terms["batch to nodes"] == whole / 10  # two nodes, one round


def test_separate_hides_the_shorter_side_and_colocated_adds_up():
    together = step_terms(TINY, LAYOUT, WORK, FREE, ROUND)
    assert not together.hidden and together.step == pytest.approx(sum(together.seconds.values()))
    apart = step_terms(TINY, replace(LAYOUT, placement="separate"), WORK, FREE, ROUND)
    sync = sum(apart.seconds[name] for name in ("gather", "broadcast", "sync calls"))
    assert apart.hidden == {"generate", "handle"}  # the learner's products take longer
    assert apart.step == pytest.approx(apart.seconds["learn"] + sync)
    # One response of a million tokens keeps engines busy for longer than the learner, whose terms are hidden then.
    fast = replace(ROUND, peak_flops=1e15)
    late = step_terms(TINY, replace(LAYOUT, placement="separate"), replace(WORK, longest_tokens=10**6), FREE, fast)
    assert "learn" in late.hidden and late.step == pytest.approx(late.seconds["generate"] + sync)


@pytest.mark.parametrize("placement", ["colocated", "separate"])
def test_layouts_of_published_sizes_use_all_gpus_as_their_presets_do(placement):
    assert layout_of("235B-A22B", 8, placement, Assumptions()) is None
    for size, gpus in (("8B", 64), ("30B-A3B", 4096), ("235B-A22B", 512)):
        layout = layout_of(size, gpus, placement, Assumptions())
        assert layout is not None
        if placement == "colocated":
            assert layout.ranks == layout.engines * layout.width == gpus
        else:
            assert layout.ranks + layout.engines * layout.width == gpus and layout.ranks == gpus / 4
    assert layout_of("8B", 64, "colocated", Assumptions()).replicas == 8


def test_without_serial_work_weak_scaling_is_nearly_perfect_and_strong_scaling_ends_at_the_longest_response():
    growth = Growth(measured=FREE, assumptions=Assumptions(), work=Work())
    weak = growth.scale("8B", [8, 64, 512], "weak", "colocated")
    assert [step.work.prompts for step in weak] == [64, 512, 4096]
    assert all(step.efficiency > 0.97 for step in weak) and half_point(weak) is None
    strong = growth.scale("8B", [8, 64, 512], "strong", "colocated")
    half = half_point(strong)
    assert half is not None and half.layout.gpus == 64 and next(iter(causes(half))) == "generate"
    assert half.terms.step == pytest.approx(half.work.samples / half.speed / 64)


def test_the_term_that_exceeds_perfect_scaling_is_the_cause():
    measured = replace(FREE, hand_over=replace(NOTHING, per_sample=0.01))
    half = half_point(
        Growth(measured=measured, assumptions=Assumptions(), work=Work()).scale(
            "8B", [8, 64, 512, 4096], "weak", "colocated"
        )
    )
    # 512 samples a machine: 5.12 s for the smallest cluster, 328 s for 512 GPUs, where the rest of a step is about 240 s
    assert half is not None and half.layout.gpus == 512
    assert next(iter(causes(half).items())) == ("hand over", pytest.approx(327.68 - 5.12))
    assert PUBLISHED["8B"].layers == 36


def test_sheets_are_markdown_and_every_assumption_has_its_source():
    sheet = Sheet(title="Sizes", head=["a", "b"], rows=[["1", "2"]])
    assert sheet.markdown() == "Sizes:\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert [number(value) for value in (0.0, 0.01234, 12.34, 1234.5)] == ["0", "0.0123", "12.3", "1,234"]
    helps = field_help(Assumptions)
    assert all(
        any(word in text for word in ("assumed", "measured", "data sheet", "presets")) for text in helps.values()
    )
