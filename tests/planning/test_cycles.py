"""Cycles by kind of work, on a program written by hand and on what the TPU compiler makes."""

import re

import pytest

from experiments.configs import peers
from keel_jax import config
from keel_jax.parallel import topology
from keel_jax.planning import compile_step, cycles, hlo, report_json

# Two blocks: a loop whose body has one operation of each kind, and an update outside. Behind @
# stand the operation's name in the traced program and its estimate.
_TEXT = """
HloModule step

%product (a: f32[8,8], b: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %c = f32[8,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  ROOT %s = f32[8,8]{1,0} multiply(%c, %a)
}

%turned (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %t = f32[8,8]{0,1} transpose(%a), dimensions={1,0}
  ROOT %b = f32[8,8]{1,0} bitcast(%t)
}

%row (a: f32[2,8,8], i: s32[]) -> f32[1,8,8] {
  %a = f32[2,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %d = f32[1,8,8]{2,1,0} dynamic-slice(%a, %i, %zero, %zero), dynamic_slice_sizes={1,8,8}
}

%norm (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %m = f32[8,8]{1,0} multiply(%a, %a)
}

%body (p: (s32[], f32[8,8], f32[2,8,8])) -> (s32[], f32[8,8], f32[2,8,8]) {
  %p = (s32[], f32[8,8], f32[2,8,8]) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[2,8,8]{2,1,0} get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  %r = f32[1,8,8]{2,1,0} fusion(%w, %n), calls=%row, @jit(f)/jvp(M)/depth/dynamic_slice@3
  %y = f32[8,8]{1,0} fusion(%x, %x), calls=%product, @jit(f)/jvp(M)/depth/dot@100
  %z = f32[8,8]{1,0} fusion(%y), calls=%turned, @jit(f)/transpose(jvp(M))/depth/transpose@20
  %v = f32[8,8]{1,0} copy(%z), @@7
  %u = f32[8,8]{1,0} fusion(%v), calls=%norm, @transpose(jvp(M))/depth/rematted_computation/mul@5
  ROOT %t = (s32[], f32[8,8], f32[2,8,8]) tuple(%next, %u, %w)
}

%condition (p: (s32[], f32[8,8], f32[2,8,8])) -> pred[] {
  %p = (s32[], f32[8,8], f32[2,8,8]) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  ROOT %less = pred[] compare(%n, %two), direction=LT
}

ENTRY %main (x: f32[8,8], w: f32[2,8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %w = f32[2,8,8]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,8], f32[2,8,8]) tuple(%zero, %x, %w)
  %loop = (s32[], f32[8,8], f32[2,8,8]) while(%start), condition=%condition, body=%body
  %h = f32[8,8]{1,0} get-tuple-element(%loop), index=1
  %l = f32[8,8]{1,0} fusion(%h, %h), calls=%product, @jit(f)/jvp()/dot@50
  ROOT %o = f32[8,8]{1,0} fusion(%l), calls=%norm, @jit(f)/mul@11
}
"""


_PROGRAM = re.sub(
    r"@(.*)@(\d+)$",
    r'metadata={op_name="\1"}, backend_config={"estimated_cycles":"\2"}',
    _TEXT,
    flags=re.MULTILINE,
)


def test_cycles_by_hand():
    parts = cycles.parts(hlo.parse(_PROGRAM))
    assert {(p.region, p.pass_, p.kind): p.cycles for p in parts} == {
        ("blocks", "forward", "multiplication"): 2 * 100,
        ("blocks", "forward", "stack"): 2 * 3,
        # The copy has no name: it goes where most of the loop's cycles go.
        ("blocks", "forward", "layout"): 2 * 7,
        ("blocks", "backward", "layout"): 2 * 20,
        ("blocks", "recompute", "elementwise"): 2 * 5,
        ("embedding and loss", "forward", "multiplication"): 50,
        ("optimizer", "update", "elementwise"): 11,
    }
    assert cycles.sum_of(parts, region="blocks", kind="layout") == 2 * 27
    assert cycles.sum_of(parts) == 2 * 135 + 61


def test_a_program_without_estimates_has_no_parts():
    assert cycles.parts(hlo.parse(_PROGRAM.replace("estimated_cycles", "other"))) == []


@pytest.mark.slow
def test_keel_costs_what_pre_ln_costs_on_a_tpu():
    """The shape of docs/performance.md, whose figures these bounds are not far above."""
    target = topology.parse("v5e:4x4")
    reports = {}
    for name in ("keel", "pre_ln"):
        raw = peers.get_config()
        raw.model.topology, raw.model.num_blocks = name, 16
        raw.model.recompute.plan = "block"
        reports[name] = compile_step.plan_step(config.from_config_dict(raw), target)
    values = {name: report_json.to_json(report)["cycles"] for name, report in reports.items()}
    for name, report in reports.items():
        assert values[name]["total"] == sum(part["cycles"] for part in values[name]["parts"])
        of_blocks = [p for p in report.compiled.cycle_parts if p.region == "blocks"]
        assert {p.pass_ for p in of_blocks} == {"forward", "recompute", "backward"}
    keel, pre_ln = reports["keel"].compiled, reports["pre_ln"].compiled
    # Not one product more than Pre-LN, whose recomputation leaves out each block's last.
    assert keel.executed.matmul == pytest.approx(pre_ln.executed.matmul, rel=1e-6)
    assert values["keel"]["per_block"] < 1.05 * values["pre_ln"]["per_block"], values
    moved = cycles.sum_of(keel.cycle_parts, region="blocks", pass_="backward", kind="layout")
    # A copy of queries, or of what attention returns, would be 122 thousand.
    assert moved / reports["keel"].blocks < 20_000
