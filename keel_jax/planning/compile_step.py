"""Compiles the real train step for devices that may be absent, and reads what comes out."""

import tempfile
import time

import jax

from keel_jax import config, errors
from keel_jax.parallel import topology
from keel_jax.planning import (
    buffers,
    chips,
    cost_model,
    cycles,
    estimate,
    flops,
    hlo,
    memory,
    report,
    resolve,
    traffic,
)
from keel_jax.runtime import compiler_options
from keel_jax.training import step as step_lib


def plan_step(cfg: config.Config, target: topology.Topology) -> report.Report:
    """Compiles the step of `cfg`, resolved for the devices of `target`, and measures the program.

    Raises:
      UserError: no such topology, an unknown chip, no vocabulary, or sizes that do not fit.
    """
    check_vocab_size(cfg)
    mesh = target.mesh(cfg.mesh)
    chip = chips.require_chip(target.devices[0])
    is_chosen = cfg.model.recompute.plan == "auto"
    cfg = resolve.resolve(cfg, mesh)
    shards = resolve.state_shards(cfg, mesh)
    lowered = step_lib.lower_train_step(cfg, mesh)
    outcome, seconds = _compile_and_measure(lowered, mesh, target, chip, shards)
    return report.Report(
        cfg=cfg,
        topology=target,
        num_devices=mesh.size,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        chip=chip,
        shards=shards,
        prediction=resolve.predict(cfg, mesh),
        is_chosen=is_chosen,
        outcome=outcome,
        compile_seconds=seconds,
    )


def check_vocab_size(cfg: config.Config) -> None:
    """Refuses a config whose vocabulary is the tokenizer's: no data are read.

    Raises:
      UserError: `model.vocab_size` is 0.
    """
    if not cfg.model.vocab_size:
        raise errors.UserError(
            "model.vocab_size is not set, and the plan reads no data: give the tokenizer's, as in "
            "--config.model.vocab_size=32768."
        )


def _compile_and_measure(
    lowered: jax.stages.Lowered,
    mesh: jax.sharding.Mesh,
    target: topology.Topology,
    chip: chips.Chip | None,
    shards: cost_model.Shards,
) -> tuple[report.CompiledProgram | report.Refusal, float]:
    """What the compiler makes of `lowered`, and the seconds that it took."""
    options = compiler_options.options(mesh.devices.flat[0])
    with tempfile.TemporaryDirectory() as directory:
        begin = time.monotonic()
        try:
            compiled = lowered.compile({**options, **buffers.dump_options(directory)})
        except jax.errors.JaxRuntimeError as error:
            refusal = memory.out_of_memory(str(error))
            if refusal is None:
                raise
            return report.Refusal(*refusal), time.monotonic() - begin
        seconds = time.monotonic() - begin
        allocations = buffers.read_dump(directory)
    program, stats = hlo.read_program(compiled), compiled.memory_analysis()
    assert stats is not None, "XLA's compilers for CPUs, GPUs and TPUs say how much memory it takes"
    networks = {"networks": (chip.link, chip.network)} if chip else {}
    collectives = traffic.collectives(program, mesh, target.simulated_slices, **networks)
    executed = flops.executed_flops(program)
    step_estimate = None
    if chip:
        hbm_bytes = estimate.hbm_bytes(program)
        step_estimate = estimate.roofline(chip, executed.total, hbm_bytes, collectives)
    measured = report.CompiledProgram(
        memory=memory.measure_memory(
            allocations,
            program,
            shards.param_shapes,
            stats.generated_code_size_in_bytes,
            has_vmem=not target.is_gpu,
        ),
        reported_temporaries=stats.temp_size_in_bytes,
        executed=executed,
        collectives=tuple(collectives),
        unknown_loops=len(program.unknown_loops),
        estimate=step_estimate,
        cycle_parts=tuple(cycles.parts(program)),
    )
    return measured, seconds
