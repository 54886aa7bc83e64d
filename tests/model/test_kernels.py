"""Every attention kernel equals the reference; the choice among them; nested in other transforms.

What runs here of the kernels of other machines: splash by Pallas's interpreter, and cuDNN's call,
with the arguments that it would get, by XLA. That JAX takes them for a GPU, and that the TPU's
compiler takes splash, is seen in what they lower and compile to.
"""

import functools
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from keel_jax import config
from keel_jax.model import attention
from keel_jax.model.kernels import splash
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding
from keel_jax.runtime import files
from keel_jax.training import workdir
from tests import attention_cases as cases
from tests import conftest

KERNELS = ("splash", "cudnn", "ring")


@pytest.fixture
def anywhere(monkeypatch):
    """Kernels that this machine has not, by stand-ins; the list of implementations asked for."""
    monkeypatch.setattr(splash, "attend", functools.partial(splash.attend, interpret=True))
    compute, asked = jax.nn.dot_product_attention, []

    def by_xla(*args, implementation, **options):
        asked.append(implementation)
        return compute(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    return asked


def _mesh(devices=None, **sizes):
    sizes = {"fsdp": 1, "data": 1, **sizes}
    num_devices = int(np.prod(list(sizes.values())))
    return mesh_lib.make(config.MeshConfig(**sizes), (devices or jax.devices())[:num_devices])


# --- Equal to the reference ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernel, num_tokens, kv_heads, dtype",
    [
        ("splash", 7, 2, "float32"),
        pytest.param("splash", 129, 4, "float32", marks=pytest.mark.slow),
        pytest.param("splash", 200, 1, "float32", marks=pytest.mark.slow),
        ("splash", 200, 2, "bfloat16"),
        ("cudnn", 7, 2, "bfloat16"),
        ("cudnn", 130, 4, "bfloat16"),
        pytest.param("ring", 200, 2, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_equals_the_reference(anywhere, kernel, num_tokens, kv_heads, dtype):
    arrays = cases.inputs((2, num_tokens, 4, 16), kv_heads, dtype)
    found = cases.run(kernel, *arrays)
    assert anywhere == (["cudnn"] if kernel == "cudnn" else [])
    cases.assert_equal(found, cases.run("reference", *arrays), dtype)


def test_the_reference_is_attention():
    """Against the definition, in float64, token by token."""
    q, k, v, segments, weights = cases.inputs((2, 9, 4, 8), 2)
    output = cases.run("reference", q, k, v, segments, weights)[0]
    for b, t, n in np.ndindex(2, 9, 4):
        seen = (segments[b] == segments[b, t]) & (np.arange(9) <= t)
        scores = k[b, seen, n // 2].astype(np.float64) @ q[b, t, n] / np.sqrt(8)
        expected = np.exp(scores) / np.exp(scores).sum() @ v[b, seen, n // 2]
        np.testing.assert_allclose(output[b, t, n], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_masks_by_gradient(anywhere, kernel):
    """Across splash's blocks of 128 too: of 150 tokens, 100 to 149 are the third document."""
    cases.assert_masked(kernel, 150, 130)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_are_float32(anywhere, kernel):
    """Scores of 256 and 256.5: in bfloat16, whose neighbours there are 2 apart, they are equal."""
    q = jnp.full((1, 2, 1, 4), 16.0, jnp.bfloat16)
    # q k / sqrt(4) is 256; 1/16 more in one component, which bf16 holds exactly, adds 0.5.
    k = jnp.full((1, 2, 1, 4), 8.0, jnp.bfloat16).at[0, 1, 0, 0].set(8.0625)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones_like(q)
    output, *_ = cases.run(kernel, q, k, v, np.zeros((1, 2), np.int32), np.ones(q.shape))
    # The output is rounded to bfloat16; a half would be 20% off.
    np.testing.assert_allclose(output[0, 1], 1 / (1 + np.exp(-0.5)), rtol=2**-8)


def test_blocks_divide_what_is_filled_up():
    sizes = {padded: splash.block_size(padded) for padded in range(128, 4097, 128)}
    assert all(padded % size == 0 and size % 128 == 0 for padded, size in sizes.items())
    assert sizes[128] == 128 and sizes[2048] == sizes[4096] == 512 and sizes[1152] == 384


# --- Inside other transforms ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, sizes",
    [
        ("splash", dict(trial=2, fsdp=2, tensor=2)),
        ("ring", dict(trial=2, context=2, tensor=2)),
    ],
)
def test_trials_scan_and_recomputation(anywhere, kernel, sizes):
    """A trial's gradients through two rounds of attention, of which only the inputs are kept."""
    q, k, v, segments, weights = cases.inputs((2, 8, 4, 8), 2)
    index = np.broadcast_to(np.arange(8), segments.shape)
    trials = jnp.asarray([1.0, 0.5])

    def gradient(kernel, scale):
        def attend(q, _):
            return attention.attend(
                q,
                k * scale,
                v,
                kernel=kernel,
                query_index_BT=index,
                key_index_BS=index,
                query_segment_ids_BT=segments,
                key_segment_ids_BS=segments,
            ), None

        def loss(q, scale):
            rounds = jax.lax.scan(jax.checkpoint(attend, prevent_cse=False), q, length=2)
            return (rounds[0] * weights).sum()

        return jax.grad(loss)(q, scale)

    with jax.set_mesh(_mesh(**sizes)):
        over_trials = jax.vmap(functools.partial(gradient, kernel), spmd_axis_name="trial")
        found = jax.jit(over_trials)(trials)
    for trial, scale in enumerate(trials):
        expected = jax.jit(functools.partial(gradient, "reference"))(scale)
        np.testing.assert_allclose(found[trial], expected, rtol=1e-4, atol=1e-5)


def test_within_a_stage(anywhere):
    """In a shard_map over the stages the kernel's own takes the other axes."""
    q, k, v, segments, weights = cases.inputs((2, 8, 4, 8), 2)
    index = np.broadcast_to(np.arange(8), segments.shape)
    stages = np.asarray([1.0, 0.5], np.float32)

    def loss(kernel, q, scale):
        o = attention.attend(
            q,
            k * scale,
            v,
            kernel=kernel,
            query_index_BT=index,
            key_index_BS=index,
            query_segment_ids_BT=segments,
            key_segment_ids_BS=segments,
        )
        return (o * weights).sum()

    expected = [jax.grad(functools.partial(loss, "reference"))(q, scale) for scale in stages]
    blocks, whole = sharding.spec(("blocks",)), sharding.spec(())
    for kernel, sizes in (
        ("splash", dict(stage=2, fsdp=2, tensor=2)),
        ("ring", dict(stage=2, context=4)),
    ):
        with jax.set_mesh(_mesh(**sizes)):
            found = jax.jit(
                jax.shard_map(
                    lambda q, scale, kernel=kernel: jax.grad(functools.partial(loss, kernel))(
                        q, scale[0]
                    )[None],
                    in_specs=(whole, blocks),
                    out_specs=blocks,
                    axis_names={"stage"},
                    check_vma=False,
                )
            )(q, stages)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=kernel)


# --- What it becomes on its own machine ----------------------------------------------------------


def _lower(kernel, mesh, shape, kv_heads, trials=(), platform=None):
    """The lowered gradients of bfloat16 q, k and v of `shape`, placed as the step would."""

    def loss(q, k, v, segments):
        index = jnp.broadcast_to(jnp.arange(shape[1]), segments.shape)
        return (
            attention.attend(
                q,
                k,
                v,
                kernel=kernel,
                query_index_BT=index,
                key_index_BS=index,
                query_segment_ids_BT=segments,
                key_segment_ids_BS=segments,
            )
            .astype(jnp.float32)
            .sum()
        )

    def whole(shape, axes, dtype):
        axes, shape = (("trial",) if trials else ()) + axes, (*trials, *shape)
        place = sharding.sharding(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    if trials:
        gradient = jax.vmap(gradient, spmd_axis_name="trial")
    kv = whole((*shape[:2], kv_heads, shape[3]), attention.KEY_AXES, "bfloat16")
    with jax.set_mesh(mesh):
        return (
            jax.jit(gradient)
            .trace(
                whole(shape, attention.QUERY_AXES, "bfloat16"),
                kv,
                kv,
                whole(shape[:2], attention.TOKEN_AXES, "int32"),
            )
            .lower(lowering_platforms=platform and (platform,))
        )


@pytest.fixture
def tpus(monkeypatch):
    """Four chips of a v5e that is not here."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def test_on_a_tpu_no_scores_are_written(tpus):
    """Forward, dq, and dk with dv: three kernels, on each device's rows and heads."""
    mesh = _mesh(tpus, fsdp=2, tensor=2)
    kernel = attention.choose(conftest.tiny_config(), mesh)
    shape = (4, 2048, 8, 64)
    scores = r"\[[\d,]*2048,2048\]"
    compiled = _lower(kernel, mesh, shape, 4).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert not re.search(scores, text)
    assert not re.search(r"(all-gather|all-reduce|all-to-all|collective-permute)", text)
    # The reference holds the scores of this device's 2 rows and 4 heads in float32.
    reference = _lower("reference", mesh, shape, 4).compile()
    scores_bytes = 4 * 2 * 4 * 2048 * 2048
    assert re.search(scores, reference.as_text())
    assert reference.memory_analysis().temp_size_in_bytes >= scores_bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores_bytes / 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, kv_heads, sizes",
    [
        ((4, 1000, 16, 80), 8, dict(fsdp=4)),
        ((4, 129, 4, 32), 1, dict(data=2, fsdp=2)),
        ((4, 2048, 4, 128), 4, dict(tensor=4)),
        ((4, 512, 4, 256), 2, dict(stage=2, fsdp=2)),
        ((2, 512, 4, 64), 2, dict(trial=2, tensor=2)),
    ],
    ids=str,
)
def test_the_tpu_compiler_takes_any_shape(tpus, shape, kv_heads, sizes):
    trials = (sizes["trial"],) if "trial" in sizes else ()
    compiled = _lower("splash", _mesh(tpus, **sizes), shape, kv_heads, trials).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3


def test_on_a_gpu_documents_are_a_bias_and_causality_is_a_mask(monkeypatch):
    """What JAX hands to cuDNN, which is not here to say that it takes it."""
    from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

    monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91000)
    mesh = _mesh(fsdp=2, tensor=2)
    text = _lower("cudnn", mesh, (2, 33, 4, 64), 2, platform="cuda").as_text()
    for name in ("fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"):
        [call] = [line for line in text.splitlines() if f"@__cudnn${name}(" in line]
        assert r"\22mask_type\22: \22CAUSAL\22" in call
        # A device's row, its two query heads and one key/value head, filled up to an even length;
        # and the bias.
        for operand in ("1x34x2x64xbf16", "1x34x1x64xbf16", "1x1x34x34xbf16"):
            assert operand in call, operand


# --- The choice ----------------------------------------------------------------------------------


def _devices(platform, context=1):
    return mock.NonCallableMock(
        jax.sharding.Mesh,
        devices=np.array([types.SimpleNamespace(platform=platform)]),
        shape={"context": context},
    )


@pytest.mark.parametrize(
    "platform, context, options, kernel",
    [
        ("cpu", 1, dict(), "reference"),
        ("cpu", 2, dict(), "ring"),
        ("cpu", 2, dict(attention="reference"), "reference"),
        ("cpu", 1, dict(attention="ring"), "ring"),
        ("tpu", 1, dict(), "splash"),
        ("tpu", 2, dict(), "ring"),
        ("tpu", 1, dict(attention="reference"), "reference"),
        ("gpu", 1, dict(compute_dtype="bfloat16", head_dim=64), "cudnn"),
        ("gpu", 1, dict(compute_dtype="float32", head_dim=64), "reference"),
        ("gpu", 1, dict(compute_dtype="bfloat16", head_dim=4), "reference"),
        ("gpu", 1, dict(compute_dtype="bfloat16", head_dim=256), "reference"),
        ("gpu", 1, dict(compute_dtype="bfloat16", head_dim=256, attention="cudnn"), "cudnn"),
        ("gpu", 4, dict(compute_dtype="bfloat16", head_dim=64), "ring"),
    ],
)
def test_the_kernel_is_chosen_by_the_devices_of_the_mesh(platform, context, options, kernel):
    cfg = conftest.tiny_config(model=options)
    assert attention.choose(cfg, _devices(platform, context)) == kernel


@pytest.mark.parametrize(
    "platform, context, options, message",
    [
        ("cpu", 1, dict(attention="splash"), "'splash' runs on a tpu, .* platform 'cpu'"),
        ("tpu", 1, dict(attention="cudnn"), "'cudnn' runs on a gpu, .* platform 'tpu'"),
        ("tpu", 2, dict(attention="splash"), "reads whole sequences, and mesh.context=2"),
        ("gpu", 1, dict(attention="cudnn"), "they are 'float32' and 4"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(platform, context, options, message):
    cfg = conftest.tiny_config(model=options)
    with pytest.raises(ValueError, match=message):
        attention.choose(cfg, _devices(platform, context))


def test_trials_on_a_gpu_take_the_reference():
    """JAX does not batch cuDNN's bias of one head."""
    options = dict(compute_dtype="bfloat16", head_dim=64)
    trials = dict(peak_lr=(1e-3, 1e-2))
    cfg = conftest.tiny_config(model=options, trials=trials)
    assert attention.choose(cfg, _devices("gpu")) == "reference"
    cfg = conftest.tiny_config(model=dict(options, attention="cudnn"), trials=trials)
    with pytest.raises(ValueError, match="cannot compute the 2 trials"):
        attention.choose(cfg, _devices("gpu"))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="model.attention='flash' is not known"):
        conftest.tiny_config(model=dict(attention="flash"))


def test_a_started_run_may_change_its_kernel(tmp_path):
    """It changes no parameter and, up to rounding, no number."""
    cfg = conftest.tiny_config()
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    files.write_json(tmp_path / "config.json", config.to_dict(cfg))
    with workdir.opened(tmp_path, conftest.tiny_config(model=dict(attention="ring"))):
        pass
    with pytest.raises(ValueError, match="model.num_heads"):
        with workdir.opened(tmp_path, conftest.tiny_config(model=dict(num_heads=8))):
            pass
