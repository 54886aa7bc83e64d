"""config.json: every option of the model is in the function that it describes, or is refused."""

import dataclasses
import json

import numpy as np
import pytest

from keel_jax import config
from keel_jax.config import options
from keel_jax.interchange import hf_config
from keel_jax.model import residual
from tests import conftest
from tests.interchange import models

_ORIGIN = hf_config.Origin(7, 700, 48, "data", "tokenizer")
# Another value than the default of the tiny model, and what makes it read.
_OTHER = {
    "topology": ("pre_ln", {}),
    "num_blocks": (4, {}),
    "d_model": (32, {}),
    "d_ffn": (32, {}),
    "num_heads": (2, {}),
    "num_kv_heads": (1, {}),
    "head_dim": (8, {}),
    "vocab_size": (80, {}),
    "rope_theta": (5e5, {}),
    "norm_epsilon": (1e-6, {}),
    "qk_norm": (True, {}),
    "tie_embeddings": (True, {}),
    "final_norm": ("on", {}),
    "alpha": (3.0, {}),
    "branch_scale": (0.5, dict(topology="complete_p")),
    "learned_branch": (True, {}),
    "branch_cap": (0.5, dict(topology="keel_capped")),
    "keel_first_block": ("v1", {}),
    "mix_ln_post_fraction": (0.5, dict(topology="mix_ln")),
}
# Read by topologies alone that are refused.
_OF_OTHER_RULES = {"hyper_streams", "attn_res_groups", "ngpt_rate"}
# Of the run, as the exported weights have been initialized and are loaded in any dtype.
_OF_RUN = {"init_std", "embedding_std", "output_init", "compute_dtype", "stream_dtype"}


def _values(**model):
    cfg = conftest.tiny_config(model=model).model
    return hf_config.of_model(cfg, _ORIGIN, 1, "float32")


def _function(values):
    """What modeling_keel.py reads."""
    return {name: value for name, value in values.items() if name != hf_config.SECTION}


def test_every_option_of_the_model_is_known_here():
    fields = options.fields(config.ModelConfig)
    kinds = {"model": set(_OTHER) | _OF_OTHER_RULES, "run": _OF_RUN}
    for kind, change in (("model", options.Change.MODEL), ("run", options.Change.RUN)):
        names = {name for name, field in fields.items() if options.change_of(field) is change}
        assert names == kinds[kind]


@pytest.mark.parametrize("name", _OTHER)
def test_an_option_that_changes_the_function_changes_what_is_read(name):
    value, reader = _OTHER[name]
    assert _function(_values(**reader, **{name: value})) != _function(_values(**reader))


@pytest.mark.parametrize(
    "topology", [n for n in config.TOPOLOGIES if n not in models.SINGLE_STREAM]
)
def test_other_rules_are_refused_and_what_is_supported_is_named(topology):
    with pytest.raises(ValueError, match=f"'{topology}'.*supports keel, .*rezero"):
        _values(topology=topology)


def test_a_stream_in_bfloat16_is_refused():
    with pytest.raises(ValueError, match="stream_dtype='bfloat16'.*in float32"):
        _values(stream_dtype="bfloat16")


@pytest.mark.parametrize("topology", models.SINGLE_STREAM)
def test_the_rows_are_the_constants_of_every_block(topology):
    model = conftest.tiny_config(model=dict(topology=topology, num_blocks=7)).model
    rows = json.loads(json.dumps(hf_config.of_model(model, _ORIGIN, 1, "float32")))["residual"]
    constants = residual.topology(model)
    assert set(rows) == set(hf_config._CONSTANTS)
    for name, runs in rows.items():
        blocks = [values for count, *values in runs for _ in range(count)]
        np.testing.assert_array_equal(np.array(blocks), getattr(constants, name))


@pytest.mark.parametrize("topology", models.SINGLE_STREAM)
def test_the_way_back_gives_the_same_model(topology):
    model = conftest.tiny_config(model=dict(topology=topology, num_blocks=7)).model
    values = json.loads(json.dumps(hf_config.of_model(model, _ORIGIN, 1, "float32")))
    again, origin = hf_config.to_model(values, "config.json")
    same = dataclasses.replace(model, recompute=config.RecomputeConfig(), attention="auto")
    assert again == same and origin == _ORIGIN


def test_a_config_that_was_changed_is_refused():
    values = _values()
    values["rope_theta"] = 5e5
    with pytest.raises(ValueError, match="rope_theta is 500000.0, and by .* it would be 10000.0"):
        hf_config.to_model(values, "config.json")
    del values[hf_config.SECTION]
    with pytest.raises(ValueError, match='config.json has no section "keel_jax"'):
        hf_config.to_model(values, "config.json")
    broken = {**_values(), hf_config.SECTION: {**_values()[hf_config.SECTION]}}
    del broken[hf_config.SECTION]["step"]
    with pytest.raises(ValueError, match="lacks 'step'"):
        hf_config.to_model(broken, "config.json")
    broken[hf_config.SECTION]["model"] = {"topologie": "keel"}
    with pytest.raises(ValueError, match="Did you mean model.topology"):
        hf_config.to_model(broken, "config.json")
