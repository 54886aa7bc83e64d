"""The paper's laws (arXiv:2601.19895 v2, sections 3 and 4) on the model itself.

Numbers against the equations, topology by topology, are in test_topologies.py; here are the
properties that make the architecture Keel: its alpha, its counts, what passes along the stream,
what reaches the branches, and why the stream is fp32.

Letters: N blocks, L = 2N sub-layers, B batch, T time, D model, F ffn, V vocabulary.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import depth, layers, lm, residual
from keel_jax.model.residual import equation
from tests import reference

# Small enough that LN(c x) is LN(x) to the last bit of fp32, for any c met here.
TINY = 1e-12
ALL_KEPT = config.RecomputeConfig(plan="none")


def small(**overrides) -> config.ModelConfig:
    """A narrow decoder whose logits are the stream itself, given `reading_the_stream`."""
    options = dict(
        num_blocks=3,
        d_model=16,
        d_ffn=24,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=16,
        compute_dtype="float32",
        recompute=ALL_KEPT,
        final_norm="off",
        norm_epsilon=TINY,
    )
    return config.ModelConfig(**(options | overrides))


def random_params(model: config.ModelConfig, seed: int = 0, *, gains: bool = False) -> dict:
    """Random matrices of size-keeping scale; gains of 1 unless `gains`."""
    params = reference.random_params(model, seed)
    if gains:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ones_like(leaf) if _is_gain(path) else leaf, params
    )


def reading_the_stream(params: dict) -> dict:
    """With W_out = 1 (V = D, no final norm) the logits are the stream after the last block."""
    matrix = np.eye(params["output"]["matrix"].shape[0], dtype=np.float32)
    return params | {"output": {"matrix": matrix}}


def with_branches_only_in(params: dict, *blocks: int) -> dict:
    """F = 0 in every other block: its `out` and `down` are zero."""
    attn, ffn = params["block"]["attention"], params["block"]["ffn"]
    keep = np.isin(np.arange(len(attn["out"])), blocks)[:, None, None].astype(np.float32)
    return params | {
        "block": {
            "attention": attn | {"out": attn["out"] * keep},
            "ffn": ffn | {"down": ffn["down"] * keep},
        }
    }


def all_tokens(model: config.ModelConfig) -> np.ndarray:
    """[1, V]: every token once, in order, so that logits[0, v] belongs to table[v]."""
    return np.arange(model.vocab_size, dtype=np.int32)[None]


# Compiling is all the time that these tests take.
jit = functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)


@jit
def apply(model: config.ModelConfig, params, tokens_BT):
    return lm.LanguageModel(model).apply({"params": params}, tokens_BT)


@jit
def gradients(model: config.ModelConfig, params, c_BTV):
    """d loss / d params for loss = sum(c * logits)."""

    def loss(params):
        logits = lm.LanguageModel(model).apply({"params": params}, all_tokens(model))
        return jnp.sum(c_BTV * logits)

    return jax.grad(loss)(params)


def direction(model: config.ModelConfig) -> np.ndarray:
    """Random c for `gradients`."""
    shape = (1, model.vocab_size, model.vocab_size)
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


# --- 1. alpha = 2N; counts -----------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", (2, 3, 32, 256, 512))
def test_alpha_is_the_number_of_sublayers(num_blocks):
    model = config.ModelConfig(num_blocks=num_blocks)
    alpha_N2 = residual.topology(model).alpha
    assert alpha_N2.shape == (num_blocks, 2)
    assert (alpha_N2[0] == 1).all()
    assert (alpha_N2[1:] == 2 * num_blocks).all()
    assert model.num_sublayers == 2 * num_blocks


@pytest.mark.parametrize("num_blocks", (2, 8))
def test_alpha_as_the_compiled_model_applies_it(num_blocks):
    # Only the last FFN speaks. out = c (alpha x + F) with x and F known: alpha is the ratio of
    # the two coefficients. fp32 leaves about 1e-7 alpha of error in the second.
    model = small(num_blocks=num_blocks)
    params = reading_the_stream(random_params(model))
    params = with_branches_only_in(params, num_blocks - 1)
    params["block"]["attention"]["out"][:] = 0
    out_VD = np.asarray(apply(model, params, all_tokens(model)))[0]
    x_VD = reference.rms_norm(params["embedding"]["table"].astype(float), 1.0, TINY)
    w = {name: leaf[-1].astype(float) for name, leaf in params["block"]["ffn"].items()}
    f_VD = reference.swiglu(w, x_VD)
    for out, x, f in zip(out_VD, x_VD, f_VD, strict=True):
        (on_x, on_f), *_ = np.linalg.lstsq(np.stack([x, f], 1), out, rcond=None)
        assert on_x / on_f == pytest.approx(2 * num_blocks, rel=1e-4)


@pytest.mark.parametrize(("first_block", "num_outer"), (("v2", 2 * 4 - 1), ("v1", 2 * 4 - 2)))
def test_norm_counts_by_gradient(first_block, num_outer):
    # A stacked leaf holds N gains even where block 0 has no norm: the norms that exist are the
    # gains that a gradient reaches.
    model = small(num_blocks=4, keel_first_block=first_block)
    params = random_params(model, gains=True)
    grads = gradients(model, params, direction(model))

    def count(kind):
        leaves = [half[f"{kind}_norm"] for half in grads["block"].values()]
        return sum(int(jnp.any(leaf != 0, axis=1).sum()) for leaf in leaves)

    assert count("inner") == 2 * 4
    assert count("outer") == num_outer
    assert "norm" not in grads["output"]
    matrices = 4 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24) + 2 * 16 * 16
    assert lm.count_params(model) == matrices + (2 * 4 + num_outer) * 16


@pytest.mark.parametrize(
    ("num_sublayers", "billions"), ((64, "0.40"), (128, "0.81"), (512, "3.22"), (1024, "6.44"))
)
def test_parameters_of_the_papers_models(num_sublayers, billions):
    # 12.58 M a block at d = 1024: what SwiGLU and a head width of d/16 are inferred from.
    model = config.ModelConfig(num_blocks=num_sublayers // 2, vocab_size=32)
    tree = jax.eval_shape(lambda: lm.init(lm.LanguageModel(model), jax.random.key(0)))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(tree["block"]))
    assert f"{num_params / 1e9:.2f}" == billions
    matrices = [leaf for leaf in jax.tree.leaves(tree["block"]) if leaf.ndim == 3]
    assert sum(leaf.size for leaf in matrices) == 12_582_912 * model.num_blocks


@pytest.mark.parametrize("topology", ("keel", "hybridnorm", "peri_ln"))
def test_no_bias_anywhere(topology):
    # That no leaf is a bias: test_parameters_are_those_that_the_equations_read. That none hides
    # as a constant: a stream of zeros stays zero.
    model = small(topology=topology, norm_epsilon=1e-5)
    params = random_params(model, gains=True)
    params["embedding"]["table"][:] = 0
    assert not np.asarray(apply(model, params, all_tokens(model))).any()


@pytest.mark.parametrize(
    ("topology", "output_init"),
    [
        ("keel", "same"),
        ("pre_ln", "same"),
        ("pre_ln", "over_sqrt_depth"),
        ("deepnorm", "over_sqrt_depth"),
    ],
)
def test_initial_weights(topology, output_init):
    # N(0, 0.02^2) at any depth; DeepNorm's (8N)^(-1/4) on v, out and the FFN, not on q and k;
    # GPT-2's (2N)^(-1/2) on the last matrix of each branch.
    model = config.ModelConfig(
        topology=topology,
        output_init=output_init,
        num_blocks=4,
        d_model=64,
        d_ffn=96,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=128,
    )
    params = jit(lambda model: lm.init(lm.LanguageModel(model), jax.random.key(3)))(model)
    params = jax.device_get(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if _is_gain(path):
            assert (leaf == 1).all()
            continue
        scaled = topology == "deepnorm" and name in ("value", "out", "gate", "up", "down")
        want = 0.02 * (8 * 4) ** -0.25 if scaled else 0.02
        if output_init == "over_sqrt_depth" and name in ("out", "down"):
            want *= (2 * 4) ** -0.5
        # At least 8192 numbers: the standard error of their std is 0.8 %.
        assert leaf.std() == pytest.approx(want, rel=0.03), path
        assert abs(leaf.mean()) < 0.04 * want, path
        if leaf.ndim == 3:
            assert np.abs(np.corrcoef(leaf.reshape(4, -1)) - np.eye(4)).max() < 0.1, path


# --- 2. One block alone --------------------------------------------------------------------------


@pytest.mark.parametrize("k", (1, 3))
def test_block_k_is_ln_of_x_plus_f_over_alpha(k):
    # LN(alpha x + F) = LN(x + F / alpha) once epsilon is negligible: Keel is a normalized stream
    # with a 1/L branch. All other blocks are silenced and have gain 1, so they hold x still.
    model = small(num_blocks=4)
    params = with_branches_only_in(reading_the_stream(random_params(model)), k)
    own = reference.random_params(model, 5)["block"]
    for half in ("attention", "ffn"):
        params["block"][half]["inner_norm"][k] = own[half]["inner_norm"][k]
    params["block"]["attention"]["outer_norm"][k] = own["attention"]["outer_norm"][k]
    got_VD = np.asarray(apply(model, params, all_tokens(model)))[0]

    w_attn, w_ffn = (
        {name: leaf[k].astype(float) for name, leaf in params["block"][half].items()}
        for half in ("attention", "ffn")
    )
    ln = functools.partial(reference.rms_norm, epsilon=0.0)
    x = ln(params["embedding"]["table"].astype(float), 1.0)[None]
    f = reference.attention(model, w_attn, ln(x, w_attn["inner_norm"]), np.ones((1, 16), int))
    x = ln(x + f / 8, w_attn["outer_norm"])
    x = ln(x + reference.swiglu(w_ffn, ln(x, w_ffn["inner_norm"])) / 8, 1.0)
    np.testing.assert_allclose(got_VD, x[0], rtol=0, atol=1e-5)  # fp32, entries up to 4


# --- 3. Silent branches --------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", (1, 2, 7))
def test_without_branches_the_stream_is_constant_after_block_0(num_blocks):
    model = small(num_blocks=num_blocks)
    params = with_branches_only_in(reading_the_stream(random_params(model)))
    got_VD = np.asarray(apply(model, params, all_tokens(model)))[0]
    want_VD = reference.rms_norm(params["embedding"]["table"].astype(float), 1.0, 0.0)
    np.testing.assert_allclose(got_VD, want_VD, rtol=2e-6)  # a few fp32 roundoffs a block


# --- 4. The residual path ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "alpha", "num_blocks", "low", "high"),
    (
        ("keel", None, 32, 0.95, 1.05),  # (a / sqrt(a^2 + 1))^62 = 0.992 at a = L = 64
        ("keel", 8.0, 32, 0.55, 0.70),  # 0.62: alpha = sqrt(L) is not enough, at any L
        ("deepnorm", None, 32, 0.018, 0.038),  # (8/9)^31 = 0.026
        ("post_ln", None, 8, 2**-7.7, 2**-6.3),  # 2^(-14/2)
    ),
)
def test_gain_of_the_residual_path(monkeypatch, topology, alpha, num_blocks, low, high):
    # The factor on a gradient that travels down to block 0's output along the stream alone, no
    # gradient through F, with |F| = |x|. (The total gradient of a random Post-LN stack does not
    # vanish, so it would show nothing.) Block 0 is silenced: it then hands on LN(e).
    model = small(
        topology=topology, alpha=alpha, num_blocks=num_blocks, d_model=64, d_ffn=64, vocab_size=64
    )
    params = reading_the_stream(random_params(model))
    residual_sum = equation.residual_sum

    def path_only(x, f, gains, inputs, *args, **kwargs):
        size = jnp.sqrt(jnp.mean(f * f, -1, keepdims=True) / jnp.mean(x * x, -1, keepdims=True))
        f = jnp.where(inputs.block == 0, 0.0, f / size)
        return residual_sum(x, jax.lax.stop_gradient(f), gains, inputs, *args, **kwargs)

    monkeypatch.setattr(equation, "residual_sum", path_only)
    x_VD = np.asarray(residual.rms_norm(params["embedding"]["table"], None, TINY))

    def stream(x):
        tree = params | {"embedding": {"table": x}}
        return lm.LanguageModel(model).apply({"params": tree}, all_tokens(model))[0]

    out_VD, pull_back = jax.vjp(stream, x_VD)
    v_VD = np.random.default_rng(1).standard_normal(x_VD.shape).astype(np.float32)
    # LN has no radial derivative.
    v_VD -= out_VD * np.mean(out_VD * v_VD, axis=-1, keepdims=True)
    (back_VD,) = pull_back(v_VD)
    gain = np.linalg.norm(back_VD, axis=-1) / np.linalg.norm(v_VD, axis=-1)
    assert low < np.exp(np.log(gain).mean()) < high


# --- 5. What reaches the branches ----------------------------------------------------------------


def branch_gradient(model: config.ModelConfig) -> float:
    """Mean over blocks 1.. of |d loss / d down_k|, for a loss linear in the stream at the end."""
    params = reading_the_stream(random_params(model))
    down_NFD = gradients(model, params, direction(model))["block"]["ffn"]["down"]
    return float(jnp.mean(jnp.linalg.norm(down_NFD[1:], axis=(1, 2))))


def test_branch_gradients_fall_as_one_over_alpha():
    # One block's weights, not the norm over all of them, which falls as 1/sqrt(L) only. At fixed
    # depth nothing but alpha differs, and the law is exact up to the next order, F / alpha.
    at = {alpha: branch_gradient(small(num_blocks=3, alpha=alpha)) for alpha in (128.0, 512.0)}
    assert at[128.0] / at[512.0] == pytest.approx(4, rel=0.03)


def test_branch_gradients_halve_when_depth_doubles():
    # Other weights and other depths, so the law holds on the average over blocks only: measured
    # 2.00 to 2.03 over three draws; Pre-LN, which has no such law, 0.49.
    at = {n: branch_gradient(small(num_blocks=n)) for n in (32, 64)}
    assert at[32] / at[64] == pytest.approx(2, rel=0.15)


# --- 6. Limits -----------------------------------------------------------------------------------


def test_alpha_1_without_inner_norm_is_post_ln():
    # Block 0, Keel's exception, is silenced: then both hand on LN(e) from it.
    keel = small(topology="keel_no_inner_norm", alpha=1.0)
    post = small(topology="post_ln")
    params = with_branches_only_in(random_params(keel, gains=True), 1, 2)
    params["block"]["attention"]["outer_norm"][0] = 1
    want = np.asarray(apply(post, params, all_tokens(post)))
    np.testing.assert_allclose(apply(keel, params, all_tokens(keel)), want, rtol=0, atol=2e-5)
    other = np.asarray(apply(small(topology="keel_no_inner_norm"), params, all_tokens(keel)))
    assert np.abs(other - want).max() > 0.1


def test_alpha_1_without_outer_norm_is_pre_ln(monkeypatch):
    pre = small(topology="pre_ln")
    params = random_params(pre, gains=True)
    want = np.asarray(apply(pre, params, all_tokens(pre)))
    published = residual.topology

    def without_outer_norm(model):
        keel = published(model)
        return dataclasses.replace(keel, outer_norm=np.zeros_like(keel.outer_norm))

    monkeypatch.setattr(residual, "topology", without_outer_norm)
    model = lm.LanguageModel(small(alpha=1.0))
    got = model.apply({"params": params}, all_tokens(pre))  # not `apply`, which keeps its traces
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_first_block_of_v1_is_pre_ln():
    keel = small(num_blocks=1, keel_first_block="v1")
    pre = small(num_blocks=1, topology="pre_ln")
    params = random_params(keel, gains=True)
    np.testing.assert_array_equal(
        apply(keel, params, all_tokens(keel)), apply(pre, params, all_tokens(pre))
    )


# --- 7. The stream's precision -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream_dtype", "num_sublayers", "branch_rms", "low", "high"),
    (
        ("float32", 512, 0.1, 0.999, 1.0 + 1e-9),
        ("float32", 1024, 0.1, 0.999, 1.0 + 1e-9),
        ("bfloat16", 512, 0.1, 0.0, 0.5),
        ("bfloat16", 512, 1.0, 0.77, 0.81),
        ("bfloat16", 64, 1.0, 0.98, 1.0),
    ),
)
def test_the_stored_update_is_the_true_one(stream_dtype, num_sublayers, branch_rms, low, high):
    # One sub-layer moves the stream by about F / alpha; beside x of size 1, bf16 resolves 2^-8.
    # measured: fp32 1 - 1.4e-7 or better; bf16 0.26, 0.802, 0.9945, in the order of the table.
    model = config.ModelConfig(num_blocks=num_sublayers // 2, stream_dtype=stream_dtype)
    topology = residual.topology(model)
    inputs = jax.tree.map(lambda leaf: leaf[1], depth.block_inputs(model))
    rng = np.random.default_rng(0)
    x_TD = residual.rms_norm(rng.standard_normal((64, 1024)), None, 0.0).astype(stream_dtype)
    f_TD = branch_rms * rng.standard_normal((64, 1024)).astype(np.float32)
    stored_TD = equation.residual_sum(
        x_TD,
        f_TD,
        {"outer_norm": jnp.ones(1024)},
        inputs,
        topology,
        residual.FFN,
        epsilon=model.norm_epsilon,
    )
    assert stored_TD.dtype == model.stream_dtype

    x64_TD = np.asarray(x_TD, np.float64)
    exact_TD = reference.rms_norm(num_sublayers * x64_TD + f_TD, 1.0, model.norm_epsilon)
    true, stored = exact_TD - x64_TD, np.asarray(stored_TD, np.float64) - x64_TD
    cosine = np.sum(true * stored) / (np.linalg.norm(true) * np.linalg.norm(stored))
    assert low <= cosine <= high


@pytest.mark.parametrize("stream_dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("topology", ("keel", "peri_ln"))
def test_every_sublayer_reads_and_writes_the_streams_dtype(topology, stream_dtype):
    model = small(topology=topology, compute_dtype="bfloat16", stream_dtype=stream_dtype)
    seen = []

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        is_sublayer = isinstance(context.module, (layers.Attention, layers.Ffn))
        if is_sublayer and context.method_name == "__call__":
            seen.append((type(context.module), args[0].dtype, jax.tree.leaves(out)[0].dtype))
        return out

    params = jax.tree.map(jnp.asarray, random_params(model))
    with nn.intercept_methods(record):
        jax.eval_shape(lambda: lm.LanguageModel(model).apply({"params": params}, all_tokens(model)))
    dtype = jnp.dtype(stream_dtype)
    assert set(seen) == {(layers.Attention, dtype, dtype), (layers.Ffn, dtype, dtype)}


def _is_gain(path) -> bool:
    return path[-1].key.endswith("norm") or path[-1].key == "beta"
