"""The door: what is accepted, what is refused, and what the refusal says."""

import dataclasses

import pytest

from keel_jax import config
from tests import conftest


def test_defaults_pass_through_the_door():
    door = config.default()
    door.train.num_steps = 1000
    assert config.from_config_dict(door) == config.Config()


def test_round_trip_through_json():
    cfg = conftest.tiny_config(lanes=dict(peak_lr=(1e-3, 1e-2)))
    assert config.from_dict(config.to_dict(cfg)) == cfg


def test_alpha_is_the_number_of_sublayers():
    assert config.ModelConfig(num_blocks=256).num_sublayers == 512


def test_steps_follow_from_tokens():
    train = config.TrainConfig(num_tokens=1000, batch_size=4, seq_len=10)
    assert (train.num_steps, train.tokens_per_step) == (25, 40)
    assert config.TrainConfig(num_tokens=1001, batch_size=4, seq_len=10).num_steps == 26


def test_flops_are_six_a_weight_and_attention():
    model = config.ModelConfig(
        num_blocks=2, d_model=8, d_ffn=16, num_heads=2, num_kv_heads=1, vocab_size=10
    )
    weights = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8 * 10
    assert model.num_matmul_params == weights
    scores = 2 * 2 * 8 * 32  # two products a block, 2 FLOPs each, 8 = heads x head_dim, 32 keys
    assert model.flops_per_token(32, causal=False) == 6 * weights + 3 * 2 * scores
    assert model.flops_per_token(32) == 6 * weights + 3 * 2 * scores / 2


def test_lanes_pair_up():
    cfg = conftest.tiny_config(lanes=dict(peak_lr=(1e-3, 1e-2)), seed=7)
    assert cfg.lane_settings == ((1e-3, 7), (1e-2, 7))
    assert cfg.for_lane(1) == conftest.tiny_config(optim=dict(peak_lr=1e-2), seed=7)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(model=dict(num_block=3)), "Did you mean model.num_blocks"),
        (dict(optimm=dict()), "Did you mean optim"),
        (dict(model=dict(topology="kell")), "Did you mean 'keel'"),
        (dict(model=dict(d_model=30)), r"d_model=30 .*num_heads=4"),
        (dict(model=dict(num_heads=4, num_kv_heads=3)), r"num_heads=4 .*num_kv_heads=3"),
        (dict(model=dict(d_model=20)), r"head_dim=5 is odd"),
        (dict(model=dict(num_blocks="3")), r"num_blocks='3': expected int"),
        (dict(model=dict(topology="pre_ln", alpha=3.0)), "no effect"),
        (dict(train=dict(num_tokens=100)), "length of the run once"),
        (dict(train=dict(batch_size=8, accumulation_steps=3)), r"batch_size=8 .*steps=3"),
        (dict(train=dict(profile_steps="5")), "first:last"),
        (dict(optim=dict(warmup_steps=6)), r"warmup_steps=6 .*num_steps=6"),
        (dict(optim=dict(beta1=1.5)), r"beta1=1.5"),
        (dict(lanes=dict(peak_lr=(1e-3,), seed=(1, 2))), "1 entries.* has 2"),
        (dict(mesh=dict(data=-1, fsdp=-1)), "at most one is -1"),
        (dict(data=dict(path="a,b", weights=(1.0,))), "1 entries.* 2 directories"),
    ],
)
def test_mistakes_are_named(sections, message):
    values = config.to_dict(config.Config())
    values["train"]["num_tokens"] = None
    values["train"]["num_steps"] = 6
    values["optim"]["warmup_steps"] = 2
    values["model"] |= dict(num_heads=4, num_kv_heads=2, d_model=16, head_dim=None)
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    with pytest.raises(ValueError, match=message):
        config.from_config_dict(values)


def test_differences_name_both_values():
    old = conftest.tiny_config()
    new = dataclasses.replace(old, seed=3, model=dataclasses.replace(old.model, d_ffn=48))
    assert config.differences(old, new) == {"seed": (0, 3), "model.d_ffn": (24, 48)}
