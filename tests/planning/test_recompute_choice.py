"""The plan of recomputation that "auto" chooses, for a memory and a chip."""

import dataclasses

import pytest

from keel_jax import config
from keel_jax.planning import chips, cost_model, recompute_choice

V5E = chips._CHIPS["TPU v5e"]


@pytest.fixture(scope="module")
def choose():
    """(GiB of memory or None, chip) -> the choice for a 512-block model of the peers' shape."""
    cfg = config.from_config_dict(
        dict(
            model=dict(
                num_blocks=512,
                d_ffn=2688,
                num_heads=8,
                num_kv_heads=8,
                vocab_size=32768,
                attention="splash",
            ),
            train=dict(num_steps=1000, batch_size=64, seq_len=2048),
        )
    )
    sizes = dict.fromkeys(config.MESH_AXES, 1) | {"fsdp": 16}
    # A sixteenth of 6.5 G parameters, and two moments.
    shards = cost_model.Shards(1_619_000_000, 3_238_000_000, 100_000, ())
    return lambda gib, chip=V5E: recompute_choice.choose(
        cfg, sizes, shards, chip, gib and round(gib * 2**30)
    )


def test_less_memory_is_paid_with_time_and_the_choice_fits(choose):
    choices = [choose(gib) for gib in (2000, 200, 64, 31.25, 15.75, 9)]
    for more, less in zip(choices, choices[1:], strict=False):
        assert (less.seconds, -less.total_bytes) >= (more.seconds, -more.total_bytes)
    assert choices[0].recompute.plan in ("none", "block") and not choices[0].recompute.offload
    assert choices[4].recompute.plan == "segments" or choices[4].recompute.offload
    for gib, choice in zip((2000, 200, 64, 31.25, 15.75, 9), choices, strict=True):
        assert choice.total_bytes <= gib * 2**30
    # Too little for anything: the smallest of all, and the compiler has the last word.
    assert choose(1).total_bytes <= min(c.total_bytes for c in choices)
    assert choose(15.75) == choose(15.75)


def test_without_a_known_memory_each_block_is_recomputed(choose):
    assert choose(None, None).recompute == config.RecomputeConfig(plan="block")
    # A known memory and an unknown chip, as on a GPU: no offload, as its link is not known.
    assert not choose(9, None).recompute.offload


def test_a_slow_link_is_not_chosen(choose):
    """Offloading costs what its transfers cannot hide behind."""
    slow = dataclasses.replace(V5E, host_bytes_per_second=1e6)
    assert not choose(15.75, slow).recompute.offload
    endless = dataclasses.replace(V5E, host_bytes_per_second=1e15)
    assert choose(9, endless).recompute.offload
