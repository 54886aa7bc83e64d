"""What the CUDA compiler makes of the real step, for GPUs that are not there."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import compile
from keel_jax import config
from keel_jax.parallel import gpus, topology
from keel_jax.planning import chips, compile_step
from keel_jax.runtime import compiler_options, exit_codes
from tests import test_plan

pytestmark = [pytest.mark.slow, pytest.mark.cuda, pytest.mark.usefixtures("cuda_compiler")]


@pytest.mark.parametrize("kind", gpus.GPUS)
def test_the_compiler_takes_every_description(kind):
    target = topology.parse(f"{kind}:2")
    target.configure_jax()
    devices = target.devices
    assert [device.device_kind for device in devices] == 2 * [gpus.GPUS[kind].device_kind]
    assert chips.require_chip(devices[0])
    x = jax.ShapeDtypeStruct(
        (256, 256), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(devices[0])
    )
    lowered = jax.jit(lambda x: x @ x).trace(x).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile(compiler_options.options(devices[0]))
    assert compiled.memory_analysis().argument_size_in_bytes == 2 * 256 * 256


@pytest.mark.parametrize("name", ["h100:8", "a100:8", "h100:8x2"])
def test_a_step_and_what_is_known_of_it(name):
    """The paper's width. The cost model's FLOPs, exactly: recomputation and kernels are counted."""
    target = topology.parse(name)
    num_devices = math.prod(target.sizes)
    cfg = config.from_config_dict(
        dict(
            model=dict(num_blocks=4, vocab_size=4096, recompute=dict(plan="block")),
            train=dict(num_steps=1000, batch_size=4 * num_devices, seq_len=2048),
        )
    )
    target.configure_jax()
    report = compile_step.plan_step(cfg, target)
    compiled, estimate = report.compiled, report.compiled.estimate
    assert report.fits and report.cfg.model.attention == "cudnn"
    assert not compiled.executed.uncounted and not compiled.unknown_loops
    assert compiled.executed.total == pytest.approx(report.prediction.executed_flops, rel=1e-6)
    expected = report.prediction.temporaries.total
    assert compiled.memory.temporaries == pytest.approx(expected, rel=0.35)
    assert compiled.memory.vmem == compiled.memory.host == 0
    assert not compiled.cycle_parts
    assert estimate and report.band_seconds
    assert report.band_seconds[0] <= estimate.step_seconds <= report.band_seconds[1]
    assert (estimate.dcn_seconds > 0) == (name == "h100:8x2")
    limit = 0.75 * gpus.GPUS[target.kind].memory_bytes
    assert report.limit_bytes == pytest.approx(limit)


def test_a_gpu_s_program_does_not_grow_with_depth():
    plan_ = config.RecomputeConfig(plan="block")
    topology.parse("h100:8").configure_jax()
    less, more = (compile.measure(n, plan_, "h100:8") for n in (16, 512))
    print(less, more, sep="\n")
    assert abs(more["instructions"] - less["instructions"]) < 0.05 * less["instructions"]


def test_a_plan_from_the_command_line(tmp_path):
    """One that fits, and one whose state alone exceeds an L4."""
    for flags, code in (
        (("--topology=h100:2",), exit_codes.DONE),
        (("--topology=l4:1", "--config.model.d_ffn=5000000"), exit_codes.DOES_NOT_FIT),
    ):
        path = tmp_path / str(code)
        done = test_plan.run(
            *test_plan.TINY, "--config.model.compute_dtype=bfloat16", *flags, f"--json={path}"
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1, done.stderr
        value = json.loads(path.read_text())
        test_plan.is_plan(value)
        assert value["fits"] == (code == exit_codes.DONE)
        assert len(value["estimate"]["band_seconds"]) == 2
    assert "XLA_CLIENT_MEM_FRACTION" in done.stdout and "does not fit" in done.stdout
