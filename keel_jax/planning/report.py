"""The plan of one compiled step: measured, told to people, and as JSON."""

import collections
import dataclasses
import tempfile
import time

import jax
import rich.box
import rich.console
import rich.table

from keel_jax import config
from keel_jax.model import recompute
from keel_jax.parallel import pipeline
from keel_jax.planning import (
    buffers,
    chips,
    cost_model,
    cycles,
    estimate,
    flops,
    hlo,
    memory,
    recompute_choice,
    resolve,
    traffic,
)
from keel_jax.runtime import compiler_options

_GIB = memory.GIB


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one step on one topology; bytes and FLOPs are one device's."""

    cfg: config.Config
    topology: str
    num_slices: int
    num_devices: int
    mesh: dict[str, int]
    shards: cost_model.Shards
    # The plan of recomputation, what it was expected to take, and whether "auto" was asked for.
    prediction: recompute_choice.Prediction
    is_chosen: bool
    # Bytes of the host's link in one direction, a second; None: not known.
    host_bytes_per_second: float | None
    # Bytes; None: no limit is known (a CPU).
    limit_bytes: float | None
    # What the compiler says it needs, where it refused; the rest is then None or empty.
    refused_bytes: int | None
    memory: memory.Memory | None
    # `memory_analysis()`'s temporaries, to compare with others' tables.
    reported_temporaries: int | None
    executed: flops.Executed | None
    collectives: tuple[traffic.Collective, ...]
    unknown_loops: int
    estimate: estimate.Estimate | None
    peak_flops_per_second: float | None
    compile_seconds: float
    # Where the compiler says that cycles go; [] where it does not.
    cycle_parts: tuple[cycles.Part, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.memory.total if self.memory else self.refused_bytes

    @property
    def fits(self) -> bool:
        within = self.limit_bytes is None or self.total_bytes <= self.limit_bytes
        return self.refused_bytes is None and within

    @property
    def model_flops(self) -> float:
        """Of one step on one device, causal attention counted at half."""
        tokens = self.cfg.train.tokens_per_step * self.cfg.num_trials
        per_token = self.cfg.model.flops_per_token(self.cfg.train.seq_len)
        return tokens * per_token / self.num_devices

    @property
    def tokens_per_second(self) -> float:
        tokens = self.cfg.train.tokens_per_step * self.cfg.num_trials
        return tokens / self.estimate.step_seconds

    @property
    def stages(self) -> int:
        return self.mesh.get(pipeline.AXIS, 1)

    @property
    def stage_microbatches(self) -> int:
        return pipeline.num_microbatches(self.cfg.mesh.stage_microbatches, self.stages)

    @property
    def blocks(self) -> int:
        """Blocks of one device."""
        return self.cfg.model.num_blocks // self.stages

    @property
    def trips(self) -> tuple[int, ...]:
        """Of the loops over a device's blocks, outermost first."""
        return recompute.kept_carries(
            recompute.segment_sizes(self.cfg.model.recompute, self.blocks), self.blocks
        )

    @property
    def host_seconds(self) -> float | None:
        """Of the link to the host, to it and back; nothing hides it all, and it need not show."""
        if not (self.memory and self.host_bytes_per_second):
            return None
        return 2 * self.memory.host * self.cfg.train.accumulation_steps / self.host_bytes_per_second

    @property
    def cost(self) -> float:
        """What a search makes small: estimated seconds; on a CPU, bytes sent."""
        if self.estimate:
            return self.estimate.step_seconds
        return sum(c.bytes for c in self.collectives) if self.memory else float("inf")

    @property
    def advice(self) -> str | None:
        """Where it does not fit, what may."""
        if self.fits:
            return None
        sizes = {axis: self.mesh.get(axis, 1) for axis in config.MESH_AXES}
        return cost_model.advice(self.cfg, sizes, self.shards, self.total_bytes, self.limit_bytes)

    def to_json(self) -> dict:
        """The contract of `plan --json`."""
        m = self.memory
        by_key = collections.defaultdict(lambda: [0, 0.0])
        for c in self.collectives:
            entry = by_key[c.kind, "+".join(c.axes), c.network]
            entry[0] += c.count
            entry[1] += c.bytes
        return {
            "fits": self.fits,
            "topology": self.topology,
            "num_slices": self.num_slices,
            "num_devices": self.num_devices,
            "hbm_bytes": {
                "limit": self.limit_bytes,
                "arguments": m.arguments if m else self.shards.total,
                # Of a refusal, what is left of what the compiler says it needs in all.
                "temporaries": m.temporaries if m else self.refused_bytes - self.shards.total,
                "total": self.total_bytes,
                "missing": max(0, self.total_bytes - (self.limit_bytes or self.total_bytes)),
                "parameters": self.shards.parameters,
                "optimizer": self.shards.optimizer,
                "batch": self.shards.batch,
                "temporaries_by_kind": m.by_kind if m else None,
                "temporaries_reported": self.reported_temporaries,
                "outputs": m.outputs if m else None,
                "code": m.code if m else None,
                "largest": [dataclasses.asdict(b) for b in m.largest] if m else [],
            },
            "other_bytes": {"vmem": m.vmem, "host": m.host} if m else None,
            "host_link_seconds": self.host_seconds,
            "flops": {
                "model": self.model_flops,
                "executed": self.executed.total if self.executed else None,
                "uncounted_custom_calls": list(self.executed.uncounted) if self.executed else [],
                "unknown_loops": self.unknown_loops,
            },
            "collectives": [
                {"kind": kind, "axis": axis, "network": network, "count": count, "bytes": size}
                for (kind, axis, network), (count, size) in sorted(by_key.items())
            ],
            "advice": self.advice,
            "compile_seconds": self.compile_seconds,
            "estimate": self._estimate_json(),
            "cycles": {
                "source": cycles.SOURCE,
                "total": cycles.sum_of(self.cycle_parts),
                "per_block": cycles.sum_of(self.cycle_parts, region="blocks") / self.blocks,
                "parts": [part.to_json() for part in self.cycle_parts],
            }
            if self.cycle_parts
            else None,
            "plan": {
                "mesh": self.mesh,
                # Trips of the loops over depth, outermost first.
                "segments": list(self.trips),
                "recompute": self.prediction.to_json(is_chosen=self.is_chosen),
                "accumulation_steps": self.cfg.train.accumulation_steps,
                "attention_kernel": self.cfg.model.attention,
                "stage_microbatches": self.stage_microbatches,
                "bubble_fraction": pipeline.bubble_fraction(self.stages, self.stage_microbatches),
            },
        }

    def _estimate_json(self) -> dict | None:
        if self.estimate is None:
            return None
        return {
            "step_seconds": self.estimate.step_seconds,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            **dataclasses.asdict(self.estimate),
        }

    @property
    def mfu(self) -> float:
        return self.model_flops / self.estimate.step_seconds / self.peak_flops_per_second


def compile_and_measure(
    lowered: jax.stages.Lowered,
    cfg: config.Config,
    mesh: jax.sharding.Mesh,
    chip: chips.Chip | None,
    topology: str,
    num_slices: int,
    *,
    is_chosen: bool,
) -> Report:
    """Compiles `lowered` and reads the program that comes out, or the compiler's refusal.

    Args:
      cfg: resolved, as `lowered` was made of it.
      is_chosen: whether its plan of recomputation was left to "auto".
    """
    options = compiler_options.options(mesh.devices.flat[0])
    limit = chip.usable_hbm_bytes if chip else None
    shards = resolve.shards(cfg, mesh)
    common = dict(
        cfg=cfg,
        topology=topology,
        num_slices=num_slices,
        num_devices=mesh.size,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        shards=shards,
        prediction=resolve.predict(cfg, mesh),
        is_chosen=is_chosen,
        host_bytes_per_second=chip and chip.host_bytes_per_second,
        peak_flops_per_second=chip and chip.flops_per_second,
    )
    with tempfile.TemporaryDirectory() as directory:
        begin = time.monotonic()
        try:
            compiled = lowered.compile(
                compiler_options={**options, **buffers.dump_options(directory)}
            )
        except jax.errors.JaxRuntimeError as error:
            over = memory.out_of_memory(str(error))
            if over is None:
                raise
            return Report(
                **common,
                limit_bytes=limit or over[1],
                refused_bytes=over[0],
                memory=None,
                reported_temporaries=None,
                executed=None,
                collectives=(),
                unknown_loops=0,
                estimate=None,
                compile_seconds=time.monotonic() - begin,
            )
        seconds = time.monotonic() - begin
        allocations = buffers.read_dump(directory)
    program = hlo.parse(compiled.as_text())
    stats = compiled.memory_analysis()
    measured = memory.measure(
        allocations, program, shards.param_shapes, stats.generated_code_size_in_bytes
    )
    simulated = num_slices if chip is None else None
    travels = traffic.collectives(program, mesh, simulated)
    executed = flops.executed(program)
    return Report(
        **common,
        limit_bytes=limit,
        refused_bytes=None,
        memory=measured,
        reported_temporaries=stats.temp_size_in_bytes,
        executed=executed,
        collectives=tuple(travels),
        unknown_loops=len(program.unknown_loops),
        estimate=chip
        and estimate.roofline(chip, executed.total, estimate.hbm_bytes(program), travels),
        compile_seconds=seconds,
        cycle_parts=tuple(cycles.parts(program)),
    )


def show(report: Report, console: rich.console.Console) -> None:
    """Prints the report for people."""
    value = report.to_json()
    m, model = report.memory, report.cfg.model
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items()) or "one device"
    slices = f" x {report.num_slices} slices" if report.num_slices > 1 else ""
    console.print(
        f"{model.topology}, {model.num_blocks} blocks = {model.num_sublayers} sub-layers, on "
        f"{report.topology}{slices}: {report.num_devices} devices ({mesh}); "
        f"{report.cfg.train.batch_size} x {report.cfg.train.seq_len} tokens a step; attention "
        f"kernel {model.attention}; compiled in {report.compile_seconds:.0f} s"
    )
    if report.stages > 1:
        count = report.stage_microbatches
        console.print(
            f"{report.stages} stages, {count} microbatches each time: a stage is idle for "
            f"{pipeline.bubble_fraction(report.stages, count):.1%} of the ticks, computing in vain "
            "(in the executed FLOPs)"
        )
    plan = recompute_choice.describe(report.prediction, report.cfg, is_chosen=report.is_chosen)
    console.print(f"recompute: {plan}, by closed forms")
    table = rich.table.Table(title="HBM of one device, GiB", box=rich.box.SIMPLE)
    table.add_column("")
    table.add_column("GiB", justify="right")
    rows = [
        ("parameters", report.shards.parameters),
        ("optimizer", report.shards.optimizer),
        ("batch", report.shards.batch),
    ]
    if m:
        rows.append(("arguments' padding", m.arguments - report.shards.total))
        rows += [(f"temporaries: {kind}", size) for kind, size in m.by_kind.items()]
        rows += [("other outputs", m.outputs), ("constants and code", m.constants + m.code)]
    rows += [("total", report.total_bytes)]
    if report.limit_bytes:
        rows += [("limit", report.limit_bytes)]
    for name, size in rows:
        table.add_row(name, f"{size / _GIB:.3f}")
    console.print(table)
    console.print(_verdict(report))
    if not m:
        return
    if report.host_seconds:
        console.print(
            f"In the host's memory: {m.host / _GIB:.2f} GiB; its link is busy for "
            f"{report.host_seconds:.3g} s of a step, there and back"
        )
    table = rich.table.Table(title="Largest temporaries", box=rich.box.SIMPLE)
    for head in ("GiB", "kind", "shape", "from"):
        table.add_column(head, overflow="fold")
    for b in m.largest:
        table.add_row(f"{b.bytes / _GIB:.3f}", b.kind, b.shape, b.op_name[-60:])
    console.print(table)
    table = rich.table.Table(title="Sent by one device in a step", box=rich.box.SIMPLE)
    for head in ("collective", "axis", "network", "count", "GiB"):
        table.add_column(head)
    for c in value["collectives"]:
        table.add_row(
            c["kind"], c["axis"], c["network"], str(c["count"]), f"{c['bytes'] / _GIB:.4f}"
        )
    console.print(table)
    if report.cycle_parts:
        console.print(_cycles_table(report))
    executed = report.executed.total
    console.print(
        f"FLOPs of one device and step: model {report.model_flops:.4g}, executed {executed:.4g}, "
        f"ratio {executed / report.model_flops:.3f} (causal attention counted at half in model "
        "FLOPs)"
    )
    if report.executed.uncounted:
        console.print(f"Not counted, as they do not say: {', '.join(report.executed.uncounted)}")
    if report.unknown_loops:
        console.print(f"{report.unknown_loops} loops of unknown length are counted as one trip.")
    if e := report.estimate:
        console.print(
            f"Estimate, not a measurement: {e.step_seconds:.3g} s a step (compute "
            f"{e.compute_seconds:.3g}, HBM {e.hbm_seconds:.3g}, exposed ICI "
            f"{e.exposed_ici_seconds:.3g}, DCN {e.dcn_seconds:.3g}), "
            f"{report.tokens_per_second:,.0f} tokens/s, MFU {report.mfu:.1%}"
        )


def _cycles_table(report: Report) -> rich.table.Table:
    """Thousands of cycles a block, by kind and pass; below, millions of the rest of the step."""
    parts = report.cycle_parts
    title = f"Thousands of cycles a block ({cycles.SOURCE})"
    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    passes = cycles.PASSES[:3]
    for head in ("", *passes, "all"):
        table.add_column(head, justify="right" if head else "left")
    thousands = lambda **wanted: (  # noqa: E731
        f"{cycles.sum_of(parts, region='blocks', **wanted) / report.blocks / 1e3:,.0f}"
    )
    for kind in cycles.KINDS:
        each = [thousands(kind=kind, pass_=pass_) for pass_ in passes]
        table.add_row(kind, *each, thousands(kind=kind))
    table.add_row("all", *(thousands(pass_=pass_) for pass_ in passes), thousands())
    rest = ", ".join(
        f"{region} {cycles.sum_of(parts, region=region) / 1e6:,.1f}" for region in cycles.REGIONS
    )
    table.caption = f"millions in the step: {rest}"
    return table


def _verdict(report: Report) -> str:
    total, limit = report.total_bytes / _GIB, (report.limit_bytes or 0) / _GIB
    if report.limit_bytes is None:
        return f"{total:.3f} GiB; a CPU has no limit that the compiler knows."
    if report.fits:
        return f"fits: {total:.2f} of {limit:.2f} GiB, {limit - total:.2f} GiB to spare"
    return (
        f"does not fit: {total:.2f} GiB needed, {total - limit:.2f} GiB more than {limit:.2f}; "
        f"{report.advice}"
    )
