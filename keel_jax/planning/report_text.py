"""Prints reports for people."""

from collections.abc import Iterator, Sequence

import rich.box
import rich.console
import rich.table

from keel_jax import config
from keel_jax.planning import cycles, memory, recompute_choice, report_json, search
from keel_jax.planning import report as report_lib

_GIB = memory.GIB
# Names of links and networks in sentences.
_NETWORKS = {"ici": "ICI", "dcn": "DCN", "nvlink": "NVLink", "pcie": "PCIe", "network": "network"}


def print_front(
    reports: Sequence[report_lib.Report], cfg: config.Config, console: rich.console.Console
) -> None:
    """Prints the plans that a search for `cfg` kept, a line each."""
    table = rich.table.Table(box=rich.box.SIMPLE)
    for head in ("fits", "HBM GiB", "estimated step s", "tokens/s", "overrides"):
        table.add_column(head, overflow="fold")
    for report in reports:
        estimate = None if report.is_refused else report.compiled.estimate
        table.add_row(
            "yes" if report.fits else "no",
            f"{report.total_bytes / _GIB:.2f}",
            f"{estimate.step_seconds:.3g}" if estimate else "-",
            f"{report.tokens_per_second:,.0f}" if estimate else "-",
            " ".join(search.overrides(cfg, report.cfg)),
        )
    console.print(table)


def print_report(report: report_lib.Report, console: rich.console.Console) -> None:
    """Prints all of one report."""
    for line in _what_was_compiled(report):
        console.print(line)
    console.print(_memory_table(report))
    console.print(_fit(report))
    if report.is_refused:
        return
    compiled = report.compiled
    if report.host_seconds:
        console.print(
            f"In the host's memory: {compiled.memory.host / _GIB:.2f} GiB; its link is busy for "
            f"{report.host_seconds:.3g} s of a step, there and back"
        )
    console.print(_largest_table(compiled))
    console.print(_collectives_table(compiled))
    if compiled.cycle_parts:
        console.print(_cycles_table(report))
    elif report.topology.is_gpu:
        console.print("Cycles: none, as a GPU's compiler writes no estimate of them.")
    for line in _flops_and_estimate(report):
        console.print(line)


def _what_was_compiled(report: report_lib.Report) -> Iterator[str]:
    model, train = report.cfg.model, report.cfg.train
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items()) or "one device"
    num_slices = report.topology.num_slices
    is_named = report.topology.is_gpu  # the topology's name has the hosts
    slices = f" x {num_slices} slices" if num_slices > 1 and not is_named else ""
    yield (
        f"{model.topology}, {model.num_blocks} blocks = {model.num_sublayers} sub-layers, on "
        f"{report.topology.name}{slices}: {report.num_devices} devices ({mesh}); "
        f"{train.batch_size} x {train.seq_len} tokens a step; attention "
        f"kernel {model.attention}; compiled in {report.compile_seconds:.0f} s"
    )
    if report.stages > 1:
        yield (
            f"{report.stages} stages, {report.stage_microbatches} microbatches each time: a stage "
            f"is idle for {report.bubble_fraction:.1%} of the ticks, in which it computes what "
            "nobody reads (counted in the executed FLOPs)"
        )
    plan = recompute_choice.describe(report.prediction, report.cfg, is_chosen=report.is_chosen)
    yield f"recompute: {plan}, by the cost model"


def _memory_table(report: report_lib.Report) -> rich.table.Table:
    table = rich.table.Table(title="HBM of one device, GiB", box=rich.box.SIMPLE)
    table.add_column("")
    table.add_column("GiB", justify="right")
    rows: list[tuple[str, float]] = [
        ("parameters", report.shards.parameters),
        ("optimizer", report.shards.optimizer),
        ("batch", report.shards.batch),
    ]
    if not report.is_refused:
        m = report.compiled.memory
        rows.append(("arguments' padding", m.arguments - report.shards.total))
        rows += [(f"temporaries: {kind}", size) for kind, size in m.by_kind.items()]
        rows += [("other outputs", m.outputs), ("constants and code", m.constants + m.code)]
    rows.append(("total", report.total_bytes))
    if report.limit_bytes:
        rows.append(("limit", report.limit_bytes))
    for name, size in rows:
        table.add_row(name, f"{size / _GIB:.3f}")
    return table


def _fit(report: report_lib.Report) -> str:
    total = report.total_bytes / _GIB
    if report.limit_bytes is None:
        return f"{total:.3f} GiB; a CPU has no limit that the compiler knows."
    limit = report.limit_bytes / _GIB
    allocator = ""
    if report.device_bytes:
        allocator = (
            f" (JAX's allocator takes {report.limit_bytes / report.device_bytes:.0%} of a GPU's "
            f"{report.device_bytes / _GIB:.1f} GiB: XLA_CLIENT_MEM_FRACTION)"
        )
    if report.fits:
        return f"fits: {total:.2f} of {limit:.2f} GiB, {limit - total:.2f} GiB to spare{allocator}"
    return (
        f"does not fit: {total:.2f} GiB needed, {total - limit:.2f} GiB more than {limit:.2f}"
        f"{allocator}; {report.advice}"
    )


def _largest_table(compiled: report_lib.CompiledProgram) -> rich.table.Table:
    table = rich.table.Table(title="Largest temporaries", box=rich.box.SIMPLE)
    for head in ("GiB", "kind", "shape", "from"):
        table.add_column(head, overflow="fold")
    for b in compiled.memory.largest:
        table.add_row(f"{b.bytes / _GIB:.3f}", b.kind, b.shape, b.op_name[-60:])
    return table


def _collectives_table(compiled: report_lib.CompiledProgram) -> rich.table.Table:
    table = rich.table.Table(title="Sent by one device in a step", box=rich.box.SIMPLE)
    for head in ("collective", "axis", "network", "count", "GiB"):
        table.add_column(head)
    for c in report_json.collectives(compiled):
        table.add_row(
            c["kind"], c["axis"], c["network"], str(c["count"]), f"{c['bytes'] / _GIB:.4f}"
        )
    return table


def _cycles_table(report: report_lib.Report) -> rich.table.Table:
    """Thousands of cycles a block, by kind and pass; below, millions of the rest of the step."""
    parts = report.compiled.cycle_parts
    title = f"Thousands of cycles a block ({cycles.SOURCE})"
    table = rich.table.Table(title=title, box=rich.box.SIMPLE)
    passes = cycles.PASSES[:3]
    for head in ("", *passes, "all"):
        table.add_column(head, justify="right" if head else "left")

    def thousands(**wanted: str) -> str:
        per_block = cycles.sum_of(parts, region="blocks", **wanted) / report.blocks
        return f"{per_block / 1e3:,.0f}"

    for kind in cycles.KINDS:
        by_pass = [thousands(kind=kind, pass_=pass_) for pass_ in passes]
        table.add_row(kind, *by_pass, thousands(kind=kind))
    table.add_row("all", *(thousands(pass_=pass_) for pass_ in passes), thousands())
    rest = ", ".join(
        f"{region} {cycles.sum_of(parts, region=region) / 1e6:,.1f}" for region in cycles.REGIONS
    )
    table.caption = f"millions in the step: {rest}"
    return table


def _flops_and_estimate(report: report_lib.Report) -> Iterator[str]:
    compiled = report.compiled
    executed = compiled.executed.total
    yield (
        f"FLOPs of one device and step: model {report.model_flops:.4g}, executed {executed:.4g}, "
        f"ratio {executed / report.model_flops:.3f} (causal attention counted at half in model "
        "FLOPs)"
    )
    if compiled.executed.uncounted:
        names = ", ".join(compiled.executed.uncounted)
        yield f"Not counted, as they do not say how many FLOPs they take: {names}"
    if compiled.unknown_loops:
        yield f"{compiled.unknown_loops} loops of unknown length are counted as one trip."
    if (e := compiled.estimate) and (chip := report.chip):
        yield (
            f"Estimate, not a measurement: {e.step_seconds:.3g} s a step (compute "
            f"{e.compute_seconds:.3g}, HBM {e.hbm_seconds:.3g}, exposed {_NETWORKS[chip.link]} "
            f"{e.exposed_ici_seconds:.3g}, {_NETWORKS[chip.network]} {e.dcn_seconds:.3g}), "
            f"{report.tokens_per_second:,.0f} tokens/s, MFU {report.mfu:.1%}"
        )
    if (band := report.band_seconds) and (chip := report.chip):
        low, high = (report.model_flops / each / chip.flops_per_second for each in reversed(band))
        yield (
            f"Band: {band[0]:.3g} s (everything at once, at peak rates) to {band[1]:.3g} s (one "
            f"after the other, at 70 % of them), MFU {low:.0%} to {high:.0%}"
        )
