"""What the TPU compiler makes of the real step; minutes, so the slow part of the suite."""

import dataclasses

import pytest

from experiments.benchmarks import compile
from keel_jax import config
from keel_jax.parallel import topology
from keel_jax.planning import compile_step, flops, hlo, resolve, traffic
from keel_jax.runtime import compiler_options
from keel_jax.training import step as step_lib

pytestmark = pytest.mark.slow


def _config(**mesh):
    """Two blocks of the paper's width on 16 chips."""
    return config.from_config_dict(
        dict(
            model=dict(num_blocks=2, vocab_size=1024),
            train=dict(num_steps=1000, batch_size=64, seq_len=512),
            mesh=mesh,
        )
    )


def _travels(lowered, mesh, options):
    program = hlo.read_program(lowered.compile(compiler_options=options))
    return program, traffic.collectives(program, mesh)


def test_no_multiplication_is_turned_into_a_ring():
    cfg = _config()
    recompute = dataclasses.replace(cfg.model.recompute, plan="block")
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, recompute=recompute))
    mesh = topology.parse("v5e:4x4").mesh(cfg.mesh)
    options = compiler_options.options(mesh.devices.flat[0])
    lowered = step_lib.lower_train_step(resolve.resolve(cfg, mesh), mesh)
    program, travels = _travels(lowered, mesh, options)
    assert {c.kind for c in travels} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert all(c.axes == ("fsdp",) and c.network == "ici" for c in travels)
    # Each weight is gathered in the forward loop and in the backward one.
    assert cfg.model.num_blocks in {c.count for c in travels if c.kind == "all-gather"}
    # The weights' count and a third more, as everything is recomputed once: but for the last
    # product of a block, which nothing asks for; and three times the product that turns the heads.
    # Splash's kernels take 2 products of scores forward, twice, and 3 + 4 backward, where the
    # formula has 6; one block of 512 tokens is computed in full.
    executed = flops.executed_flops(program)
    assert not executed.uncounted
    tokens = cfg.train.tokens_per_step / mesh.size
    weights = tokens * cfg.model.flops_per_token(0)
    attention = tokens * cfg.model.flops_per_token(512, causal=False) - weights
    assert executed.custom_calls == pytest.approx(11 / 6 * attention, rel=1e-6)
    m = cfg.model
    last = 2 * tokens * m.num_blocks * m.d_ffn * m.d_model
    turns = 2 * tokens * m.num_blocks * (m.num_heads + m.num_kv_heads) * m.head_dim**2
    assert executed.matmul == pytest.approx(4 / 3 * weights - last + 3 * turns, rel=1e-3)


def test_slices_exchange_gradients_alone():
    report = compile_step.plan_step(_config(), topology.parse("v5e:2x2", num_slices=2))
    dcn = [c for c in report.compiled.collectives if c.network == "dcn"]
    assert dcn and {c.kind for c in dcn} == {"all-reduce"}
    assert {c.axes for c in dcn} == {("data",)}
    # Every gradient once, in float32 or in bf16, and a few scalars.
    sent = sum(c.bytes for c in dcn)
    assert 0.4 * report.shards.parameters < sent < 1.1 * report.shards.parameters
    estimate = report.compiled.estimate
    assert estimate and estimate.dcn_seconds > 0


@pytest.mark.parametrize(
    "recompute", [dict(plan="block"), dict(plan="segments", segment_blocks=(4,))], ids=str
)
def test_a_tpu_s_program_does_not_grow_with_depth(recompute):
    """A few instructions differ: small arrays lie elsewhere."""
    plan_ = config.RecomputeConfig(**recompute)
    topology.parse("v5e:2x2").configure_jax()
    less, more = (compile.measure(n, plan_, "v5e:2x2") for n in (16, 1024))
    print(less, more, sep="\n")
    assert abs(more["instructions"] - less["instructions"]) < 0.05 * less["instructions"]
