"""A report as JSON: the contract of `plan --json`."""

import collections
import dataclasses
from typing import Any

from keel_jax.planning import cycles
from keel_jax.planning import report as report_lib


def to_json(report: report_lib.Report) -> dict[str, Any]:
    """All of the report. What only a compiled program has is null or empty in a refusal's."""
    compiled = None if report.is_refused else report.compiled
    return {
        "fits": report.fits,
        "topology": report.topology.name,
        "num_slices": report.topology.num_slices,
        "num_devices": report.num_devices,
        "hbm_bytes": _hbm_bytes(report, compiled),
        "other_bytes": (
            {"vmem": compiled.memory.vmem, "host": compiled.memory.host} if compiled else None
        ),
        "host_link_seconds": report.host_seconds,
        "flops": {
            "model": report.model_flops,
            "executed": compiled.executed.total if compiled else None,
            "uncounted_custom_calls": list(compiled.executed.uncounted) if compiled else [],
            "unknown_loops": compiled.unknown_loops if compiled else 0,
        },
        "collectives": collectives(compiled) if compiled else [],
        "advice": report.advice,
        "compile_seconds": report.compile_seconds,
        "estimate": _estimate(report, compiled),
        "cycles": _cycles(report, compiled),
        "plan": {
            "mesh": report.mesh,
            "segments": list(report.loop_trips),
            "recompute": report.prediction.to_json(is_chosen=report.is_chosen),
            "accumulation_steps": report.cfg.train.accumulation_steps,
            "attention_kernel": report.cfg.model.attention,
            "stage_microbatches": report.stage_microbatches,
            "bubble_fraction": report.bubble_fraction,
        },
    }


def collectives(compiled: report_lib.CompiledProgram) -> list[dict[str, Any]]:
    """The program's collectives, those of one kind, axes and network in one entry."""
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    sent: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for c in compiled.collectives:
        key = c.kind, "+".join(c.axes), c.network
        counts[key] += c.count
        sent[key] += c.bytes
    return [
        {"kind": kind, "axis": axis, "network": network, "count": count, "bytes": sent[key]}
        for key, count in sorted(counts.items())
        for kind, axis, network in [key]
    ]


def _hbm_bytes(
    report: report_lib.Report, compiled: report_lib.CompiledProgram | None
) -> dict[str, Any]:
    memory, shards = compiled.memory if compiled else None, report.shards
    return {
        "limit": report.limit_bytes,
        "arguments": memory.arguments if memory else shards.total,
        # Of a refusal, what is left of what the compiler says it needs in all.
        "temporaries": memory.temporaries if memory else report.total_bytes - shards.total,
        "total": report.total_bytes,
        "missing": report.missing_bytes,
        "parameters": shards.parameters,
        "optimizer": shards.optimizer,
        "batch": shards.batch,
        "temporaries_by_kind": memory.by_kind if memory else None,
        "temporaries_reported": compiled.reported_temporaries if compiled else None,
        "outputs": memory.outputs if memory else None,
        "code": memory.code if memory else None,
        "largest": [dataclasses.asdict(b) for b in memory.largest] if memory else [],
    }


def _estimate(
    report: report_lib.Report, compiled: report_lib.CompiledProgram | None
) -> dict[str, Any] | None:
    if not compiled or not compiled.estimate:
        return None
    band = {"band_seconds": list(report.band_seconds)} if report.band_seconds else {}
    return {
        "step_seconds": compiled.estimate.step_seconds,
        "tokens_per_second": report.tokens_per_second,
        "mfu": report.mfu,
        **dataclasses.asdict(compiled.estimate),
        **band,
    }


def _cycles(
    report: report_lib.Report, compiled: report_lib.CompiledProgram | None
) -> dict[str, Any] | None:
    if not compiled or not compiled.cycle_parts:
        return None
    parts = compiled.cycle_parts
    return {
        "source": cycles.SOURCE,
        "total": cycles.sum_of(parts),
        "per_block": cycles.sum_of(parts, region="blocks") / report.blocks,
        "parts": [part.to_json() for part in parts],
    }
