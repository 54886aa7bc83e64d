"""Raw configs: what is accepted, what is refused, and what the refusal says."""

import dataclasses
import math
import pathlib
import subprocess
import sys

import pytest

from keel_jax import config, errors
from keel_jax.config import effects, options
from tests import conftest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_defaults_are_a_valid_raw_config():
    raw = config.default()
    raw.train.num_steps = 1000
    assert config.from_config_dict(raw) == config.Config()


def test_round_trip_through_json():
    cfg = conftest.tiny_config(trials=dict(peak_lr=(1e-3, 1e-2)))
    assert config.from_dict(config.to_dict(cfg)) == cfg


def test_alpha_is_the_number_of_sublayers():
    assert config.ModelConfig(num_blocks=256).num_sublayers == 512


def test_steps_follow_from_tokens_and_tokens_from_steps():
    train = config.TrainConfig(num_tokens=1000, batch_size=4, seq_len=10)
    assert (train.num_steps, train.num_tokens, train.tokens_per_step) == (25, 1000, 40)
    # Rounded up to whole steps, and so it stays through config.json.
    train = config.TrainConfig(num_tokens=1001, batch_size=4, seq_len=10)
    assert (train.num_steps, train.num_tokens) == (26, 1040)
    assert dataclasses.replace(train) == train
    cfg = dataclasses.replace(conftest.tiny_config(), train=train)
    assert config.from_dict(config.to_dict(cfg)) == cfg
    assert config.TrainConfig(num_steps=26, batch_size=4, seq_len=10) == train


def test_a_flag_gives_the_length_in_tokens_over_a_file_that_gives_steps(tmp_path):
    script = (
        "from absl import app\n"
        "from ml_collections import config_flags\n"
        "from keel_jax import config\n"
        "FLAG = config_flags.DEFINE_config_file('config', lock_config=True)\n"
        "def main(_):\n"
        "    train = config.from_config_dict(FLAG.value).train\n"
        "    print(train.num_steps, train.num_tokens)\n"
        "app.run(main)\n"
    )
    flags = ["--config=experiments/configs/tiny.py", "--config.train.num_tokens=50000"]
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=120)
    command = [sys.executable, "-c", script, *flags]
    done = subprocess.run([*command, "--config.train.num_steps=0"], **options)
    assert done.stdout.split() == ["49", "50176"], done.stderr
    # What the refusal says is what works.
    refused = subprocess.run(command, **options)
    assert "--config.train.num_steps=0 --config.train.num_tokens=50000" in refused.stderr


def test_a_config_file_leaves_the_length_open():
    with pytest.raises(ValueError, match="no length: set train.num_steps or train.num_tokens"):
        config.from_config_dict(config.default())


def test_flops_are_six_a_weight_and_attention():
    model = config.ModelConfig(
        num_blocks=2, d_model=8, d_ffn=16, num_heads=2, num_kv_heads=1, vocab_size=10
    )
    weights = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8 * 10
    assert model.num_matmul_params == weights
    scores = 2 * 2 * 8 * 32  # two products a block, 2 FLOPs each, 8 = heads x head_dim, 32 keys
    assert model.flops_per_token(32, causal=False) == 6 * weights + 3 * 2 * scores
    assert model.flops_per_token(32) == 6 * weights + 3 * 2 * scores / 2


def test_trials_pair_up():
    cfg = conftest.tiny_config(trials=dict(peak_lr=(1e-3, 1e-2)), seed=7)
    assert cfg.trial_settings == ((1e-3, 7), (1e-2, 7))
    assert cfg.for_trial(1) == conftest.tiny_config(optim=dict(peak_lr=1e-2), seed=7)
    spread = dataclasses.replace(cfg, mesh=config.MeshConfig(trial=2))
    assert spread.for_trial(1) == cfg.for_trial(1)


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
        (dict(train=dict(num_tokens=100)), r"once: train.num_steps=6 .*num_tokens=100.*0 means"),
        (dict(train=dict(num_steps=0)), "no length"),
        (dict(train=dict(num_steps=-1)), "num_steps=-1 must be at least 0"),
        (dict(train=dict(batch_size=8, accumulation_steps=3)), r"batch_size=8 .*steps=3"),
        (dict(train=dict(profile_steps="5")), "first:last"),
        (dict(train=dict(profile_steps="0:3")), "'0:3' must be .* 1 <= first"),
        (dict(train=dict(profile_steps="3:2")), "'3:2' must be .* first <= last"),
        (dict(train=dict(profile_steps="5:7")), "'5:7' must be .* last <= train.num_steps=6"),
        (dict(optim=dict(warmup_steps=6)), r"no room .*warmup_steps=6, train.num_steps=6\. "),
        (dict(optim=dict(schedule="wsd", warmup_steps=6)), r"no room .*fraction=0.2 \(1 steps\)"),
        (dict(optim=dict(schedule="wsd", wsd_decay_fraction=0.0)), r"no room .*=0.0 \(0 steps\)"),
        (
            dict(optim=dict(schedule="wsd", warmup_steps=0), train=dict(num_steps=2)),
            r"no room .*num_steps=2, .*=0.2 \(0 steps\)",
        ),
        (dict(optim=dict(epsilon=1e-20)), r"epsilon=1e-20 is below 1.1e-19"),
        (dict(seed=-1), r"seed=-1 must lie in \[0, 2\^32\)"),
        (dict(seed=2**32), r"seed=4294967296 must lie"),
        (dict(trials=dict(seed=(0, -1))), r"trials.seed=-1 must lie"),
        (dict(mesh=dict(trial=8)), r"mesh.trial=8 .* 1 trial"),
        (dict(mesh=dict(trial=-1, fsdp=1)), r"mesh.trial=-1 would leave open"),
        (dict(mesh=dict(trial=2), trials=dict(seed=(1, 2, 3))), r"mesh.trial=2 .* 3 trial"),
        (dict(optim=dict(beta1=1.5)), r"beta1=1.5"),
        (dict(trials=dict(peak_lr=(1e-3,), seed=(1, 2))), "1 entries.* has 2"),
        (dict(mesh=dict(data=-1, fsdp=-1)), "at most one is -1"),
        (dict(data=dict(path="a,b", weights=(1.0,))), "1 entries.* 2 directories"),
        (dict(tasks=dict(names=("piqa",))), "tasks.names=piqa needs tasks.data"),
        (dict(tasks=dict(every_steps=5)), "tasks.every_steps=5 has no effect with tasks.names"),
        (
            dict(tasks=dict(names=("piqa",), data="d", batch_size=0)),
            "batch_size=0 must be at least",
        ),
    ],
)
def test_mistakes_are_named(sections, message):
    values = config.to_dict(config.Config())
    values["train"] |= dict(num_steps=6, num_tokens=0)
    values["optim"]["warmup_steps"] = 2
    values["model"] |= dict(num_heads=4, num_kv_heads=2, d_model=16, head_dim=0)
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    with pytest.raises(ValueError, match=message):
        config.from_config_dict(values)


def test_differences_name_both_values():
    old = conftest.tiny_config()
    new = dataclasses.replace(old, seed=3, model=dataclasses.replace(old.model, d_ffn=48))
    assert config.differences(old, new) == {"seed": (0, 3), "model.d_ffn": (24, 48)}


# Of each option in effects.READERS: a value that is not its default, a setting under which it is
# read, and one under which it is not.
_REVERSIBLE = dict(recompute=dict(plan="reversible", anchor_blocks=3))
_EFFECTS = {
    "model.alpha": (3.0, dict(topology="deepnorm"), dict(topology="pre_ln")),
    "model.branch_scale": (0.5, dict(topology="complete_p"), dict(topology="pre_ln")),
    "model.learned_branch": (True, dict(topology="keel"), dict(topology="keel_no_inner_norm")),
    "model.branch_cap": (0.5, dict(topology="keel_capped"), dict(topology="keel")),
    "model.keel_first_block": ("v1", dict(topology="keel_scaled_input"), dict(topology="post_ln")),
    "model.mix_ln_post_fraction": (0.5, dict(topology="mix_ln"), dict(topology="keel")),
    "model.hyper_streams": (3, dict(topology="mhc"), dict(topology="pre_ln")),
    "model.attn_res_groups": (2, dict(topology="attention_residuals"), dict(topology="mhc")),
    "model.ngpt_rate": (0.1, dict(topology="ngpt"), dict(topology="mhc")),
    "model.output_init": ("over_sqrt_depth", dict(topology="keel"), dict(topology="ngpt")),
    "model.embedding_std": (1.0, dict(topology="keel"), dict(topology="ngpt")),
    "model.qk_norm": (True, dict(topology="keel"), dict(topology="hybridnorm_star")),
    "model.recompute.offload_saved": (
        True,
        dict(recompute=dict(plan="block", save="attention", offload=True)),
        dict(recompute=dict(offload=False)),
    ),
    "model.recompute.anchor_blocks": (
        2,
        dict(recompute=dict(plan="reversible")),
        dict(recompute=dict(plan="block")),
    ),
    "model.recompute.fixed_point_iterations": (
        2,
        _REVERSIBLE,
        dict(recompute=dict(plan="segments")),
    ),
    "model.recompute.error_bound": (0.5, _REVERSIBLE, dict(recompute=dict(plan="none"))),
    "model.recompute.segment_blocks": (
        (2,),
        dict(recompute=dict(plan="segments")),
        dict(recompute=dict(plan="block")),
    ),
    "model.recompute.save": (
        "attention",
        dict(recompute=dict(plan="block")),
        dict(recompute=dict(plan="none")),
    ),
    "model.recompute.offload": (
        True,
        dict(recompute=dict(plan="segments")),
        dict(recompute=dict(plan="auto")),
    ),
    "optim.beta1": (0.8, dict(name="lion"), dict(name="adafactor")),
    "optim.beta2": (0.8, dict(name="muon"), dict(name="adafactor")),
    "optim.epsilon": (1e-12, dict(name="adafactor"), dict(name="lion")),
    "optim.final_lr_fraction": (0.5, dict(schedule="wsd"), dict(schedule="constant")),
    "optim.wsd_decay_fraction": (0.5, dict(schedule="wsd"), dict(schedule="cosine")),
    "optim.lr_multiplier.residual": (
        2.0,
        dict(topology="keel_scaled_inner_norm"),
        dict(topology="keel"),
    ),
    "optim.decay_multiplier.residual": (
        1.0,
        dict(topology="keel_scaled_input"),
        dict(topology="keel_no_inner_norm"),
    ),
    "optim.lr_multiplier.output": (2.0, dict(tie_embeddings=False), dict(tie_embeddings=True)),
    "optim.decay_multiplier.output": (0.0, dict(tie_embeddings=False), dict(tie_embeddings=True)),
    "data.weights": ((1.0,), None, dict(path="a")),
    "train.init_partially": (True, dict(init_from="runs/a"), dict(init_from="")),
    "train.keep_best": (1, dict(eval_every_steps=1), dict(eval_every_steps=0)),
    "train.early_stopping_validations": (
        2,
        dict(eval_every_steps=1),
        dict(eval_every_steps=0),
    ),
    "data.prefetch_batches": (2, dict(num_threads=1), dict(num_threads=0)),
    "tasks.data": ("d", dict(names=("piqa",)), dict(names=())),
    "tasks.every_steps": (3, dict(names=("piqa",), data="d"), dict(names=())),
    "tasks.limit": (3, dict(names=("piqa",), data="d"), dict(names=())),
    "tasks.batch_size": (3, dict(names=("piqa",), data="d"), dict(names=())),
}


def _nested(name: str, value) -> dict:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _innermost(value):
    while isinstance(value, dict):
        [value] = value.values()
    return value


def _merged(one: dict, other: dict) -> dict:
    both = {**one, **other}
    for key in one.keys() & other.keys():
        both[key] = _merged(one[key], other[key])
    return both


@pytest.mark.parametrize("option", [reader.option for reader in effects.READERS])
def test_an_option_without_effect_is_refused(option):
    value, read, unread = _EFFECTS[option]
    [decider] = [r.decider for r in effects.READERS if r.option == option]
    section = decider.split(".")[0]

    def cfg(setting, options):
        return conftest.tiny_config(**_merged({section: setting}, options))

    cfg(unread, {})  # at its default, the option is no matter
    if read:
        cfg(read, _nested(option, value))
    else:
        conftest.tiny_config(data=dict(path="a,b", weights=(1.0, 2.0)))
    decides = _innermost(unread)
    with pytest.raises(ValueError) as refusal:
        cfg(unread, _nested(option, value))
    told = str(refusal.value)
    assert f"{option}={value!r} has no effect with {decider}={decides!r}" in told
    assert f"Change {decider}, or" in told and "its default" in told


def test_a_learned_branch_reads_the_multipliers_of_its_group():
    cfg = conftest.tiny_config(
        model=dict(learned_branch=True), optim=dict(lr_multiplier=dict(residual=2.0))
    )
    assert cfg.optim.lr_multiplier.residual == 2.0


_FLOATS = {
    name: field
    for name, field in options.fields(config.Config).items()
    if "float" in repr(field.type)
}
# What makes an option have an effect, and what else it then needs.
_READ_WITH = {
    "model.ngpt_rate": dict(model=dict(topology="ngpt")),
    "model.recompute.error_bound": dict(
        model=dict(recompute=dict(plan="reversible", anchor_blocks=2))
    ),
    "model.mix_ln_post_fraction": dict(model=dict(topology="mix_ln")),
    "optim.wsd_decay_fraction": dict(optim=dict(schedule="wsd")),
    "optim.lr_multiplier.residual": dict(model=dict(topology="rezero")),
    "optim.decay_multiplier.residual": dict(model=dict(topology="rezero")),
    "data.weights": dict(data=dict(path="a")),
}


@pytest.mark.parametrize("name", _FLOATS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39])
def test_a_number_that_is_not_finite_in_float32_is_refused(name, value):
    given = (value,) if "tuple" in repr(_FLOATS[name].type) else value
    with pytest.raises(errors.UserError) as refusal:
        conftest.tiny_config(**_merged(_READ_WITH.get(name, {}), _nested(name, given)))
    told = str(refusal.value)
    # A multiplier's message names its group.
    assert name.split(".")[-1] in told and f"={value} must" in told


def test_the_options_that_are_floats_are_found():
    assert len(_FLOATS) > 25 and "optim.epsilon" in _FLOATS and "trials.peak_lr" in _FLOATS
    assert set(_READ_WITH) <= set(_FLOATS)


@pytest.mark.parametrize("values", [[], 3, None, "model"])
def test_a_section_that_is_no_mapping_is_refused(values):
    with pytest.raises(errors.UserError, match="The config=.*: expected a mapping of options"):
        config.from_dict(values)
    with pytest.raises(errors.UserError, match="The config=.*: expected a mapping of options"):
        config.from_config_dict(values)
    with pytest.raises(errors.UserError, match="model.recompute=.*: expected a mapping of options"):
        config.from_dict({"model": {"recompute": values}})
    with pytest.raises(errors.UserError, match="trials=.*: expected a mapping of options"):
        config.from_dict({"lanes": {"seed": [1]}, "trials": values})


def test_a_whole_number_fits_64_bits():
    with pytest.raises(errors.UserError, match=r"train.batch_size=9223372036854775808 .* 2\^63"):
        conftest.tiny_config(train=dict(batch_size=2**63))


def test_a_comma_in_the_name_of_a_directory():
    for paths in (("a",), ("a", "b"), ("a,b",), ("/x, y/z", "c,,d", "e")):
        cfg = conftest.tiny_config(data=dict(path=config.join_paths(paths)))
        assert cfg.data.paths == paths
    # One directory has no weights, whatever its name.
    with pytest.raises(ValueError, match="data.weights=.* has no effect"):
        conftest.tiny_config(data=dict(path=r"a\,b", weights=(1.0,)))


def test_the_way_out_is_the_default():
    with pytest.raises(ValueError, match=r"set --config.optim.wsd_decay_fraction=0.2, its default"):
        conftest.tiny_config(optim=dict(wsd_decay_fraction=0.3))
    with pytest.raises(ValueError, match=r"or leave it unset, its default"):
        conftest.tiny_config(model=dict(topology="pre_ln", alpha=3.0))


def test_a_ramp_takes_the_warmup_of_any_config_file():
    assert conftest.tiny_config(optim=dict(schedule="linear_ramp", warmup_steps=20))
