"""What the compiled step sends between devices: what the design says, and nothing else.

On eight CPU devices for the laws, and by the TPU's and the CUDA compiler for the whole table: only
there an all-reduce of which each device keeps a part is compiled as the reduce-scatter that it is.
"""

import math
import re

import jax
import pytest

from keel_jax import config
from keel_jax.model import attention, layers
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding, tensor_parallel, topology
from keel_jax.planning import hlo, hlo_text, resolve, traffic
from keel_jax.training import step as step_lib
from tests import conftest

# Numbers that no other dimension has.
BLOCKS, BATCH = 6, 48
# What may be summed whole on every device: gains and scalars, of all blocks.
SMALL_BYTES = 64 * 1024


def _config(mesh: dict, train=(), **model) -> config.Config:
    stages = {"stage_microbatches": 4} if "stage" in mesh else {}
    return conftest.tiny_config(
        model=dict(num_blocks=BLOCKS, recompute=dict(plan="block"), **model),
        train=dict(batch_size=BATCH, seq_len=16, loss_chunk=2) | dict(train),
        mesh={"fsdp": 1, **mesh, **stages},
    )


def _collectives(cfg: config.Config, devices=None) -> list[traffic.Collective]:
    mesh = mesh_lib.make(cfg.mesh, devices)
    return traffic.collectives(
        hlo.read_program(step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)), mesh
    )


def _gathers_the_batch(found: list[traffic.Collective]) -> bool:
    """Whether any device receives activations of all rows."""
    return any(BATCH in shape.dims and len(shape.dims) > 2 for c in found for shape in c.shapes)


def _gathers_the_stack(found: list[traffic.Collective], blocks: int) -> bool:
    """Whether any device receives a matrix of several blocks at once."""
    return any(
        c.kind == "all-gather" and len(shape.dims) == 3 and shape.dims[0] == blocks
        for c in found
        for shape in c.shapes
    )


# Mesh -> the axes over which each kind goes. On a CPU a reduce-scatter may be an all-reduce.
_DESIGN = {
    "fsdp": {"all-gather": {"fsdp"}, "sum": {"fsdp"}},
    "data": {"sum": {"data"}},
    "tensor": {"all-gather": {"tensor"}, "sum": {"tensor"}},
    # The ring's turns, and the zigzag order; positions are gathered, a few integers; weights and
    # their gradients as over fsdp.
    "context": {"collective-permute": {"context"}, "all-gather": {"context"}, "sum": {"context"}},
    # Hand over, share out at the end, and embedding and output, which all stages hold together.
    "stage": {"collective-permute": {"stage"}, "all-gather": {"stage"}, "sum": {"stage"}},
}


def _outside_the_design(found: list[traffic.Collective], mesh: dict) -> list[traffic.Collective]:
    kinds = {"all-reduce": "sum", "reduce-scatter": "sum"}

    def allowed(c):
        kind = kinds.get(c.kind, c.kind)
        return set().union(*(_DESIGN[axis].get(kind, set()) for axis in mesh))

    return [c for c in found if not c.axes or not set(c.axes) <= allowed(c)]


@pytest.mark.parametrize(
    "mesh",
    [
        dict(fsdp=8),
        dict(data=8),
        dict(data=2, fsdp=4),
        dict(fsdp=4, tensor=2),
        dict(fsdp=2, context=4),
        dict(stage=2, fsdp=4),
        dict(stage=2, fsdp=2, tensor=2),
    ],
    ids=str,
)
def test_weights_travel_and_the_batch_stays(mesh):
    found = _collectives(_config(mesh), jax.devices()[: math.prod(mesh.values())])
    assert not _outside_the_design(found, mesh)
    assert not _gathers_the_batch(found)
    assert not _gathers_the_stack(found, BLOCKS // mesh.get("stage", 1))
    assert any(c.kind == "all-gather" for c in found) == (mesh != dict(data=8))


def test_the_test_bites_where_products_are_left_to_the_partitioner(monkeypatch):
    """Without the hidden layers' place it moves activations about."""
    real, mesh = sharding.constrain, dict(fsdp=4, tensor=2)
    hidden = (layers.FFN_AXES, attention.QUERY_AXES, attention.KEY_AXES)
    monkeypatch.setattr(sharding, "constrain", lambda x, a: x if a in hidden else real(x, a))
    monkeypatch.setattr(tensor_parallel, "_is_split_evenly", lambda x_BT: False)
    outside = _outside_the_design(_collectives(_config(mesh)), mesh)
    assert {c.kind for c in outside} == {"collective-permute"}


def test_the_test_bites_with_depth_split_over_fsdp(monkeypatch):
    """A rule that puts blocks where the scan cannot read them one at a time."""
    monkeypatch.setitem(sharding.RULES, "blocks", ("fsdp",))
    for axis in ("embed", "heads_row", "ffn_row"):
        monkeypatch.setitem(sharding.RULES, axis, ())
    found = _collectives(_config(dict(fsdp=2)), jax.devices()[:2])
    assert _gathers_the_stack(found, BLOCKS)


# --- By the TPU's compiler -----------------------------------------------------------------------


def _is_remainder(permute: traffic.Collective, found: list[traffic.Collective]) -> bool:
    """Whether it is the compiler's own, of the rows by which the parts of a scatter are uneven."""
    scattered = [
        shape.bytes
        for c in found
        if c.kind == _SCATTER and c.axes == permute.axes
        for shape in c.shapes
    ]
    return (
        permute.kind == _PERMUTE
        and not permute.op_name
        and bool(scattered)
        and max(shape.bytes for shape in permute.shapes) <= max(scattered) / 2
    )


_GATHER, _SCATTER, _SUM = "all-gather", "reduce-scatter", "all-reduce"
_PERMUTE = "collective-permute"
# Every (kind, axes, network) whose arrays are not small: on v5e:4x4 for 16 devices, on v5e:2x4, and
# on two slices of it.
_TABLE = {
    "fsdp 16": (
        dict(fsdp=16),
        1,
        {
            (_GATHER, ("fsdp",), "ici"),
            (_SCATTER, ("fsdp",), "ici"),
        },
    ),
    "fsdp 8": (
        dict(fsdp=8),
        1,
        {
            (_GATHER, ("fsdp",), "ici"),
            (_SCATTER, ("fsdp",), "ici"),
        },
    ),
    "fsdp 4, tensor 2": (
        dict(fsdp=4, tensor=2),
        1,
        {
            (_GATHER, ("fsdp",), "ici"),
            (_SCATTER, ("fsdp",), "ici"),
            (_GATHER, ("tensor",), "ici"),
            (_SCATTER, ("tensor",), "ici"),
            # The gradient of what the logits read: each device has its part of the vocabulary.
            (_SUM, ("tensor",), "ici"),
        },
    ),
    "fsdp 2, context 4": (
        dict(fsdp=2, context=4),
        1,
        {
            (_GATHER, ("fsdp", "context"), "ici"),
            (_SCATTER, ("fsdp", "context"), "ici"),
            (_PERMUTE, ("context",), "ici"),
        },
    ),
    "stage 2, fsdp 4": (
        dict(stage=2, fsdp=4),
        1,
        {
            (_GATHER, ("fsdp",), "ici"),
            (_SCATTER, ("fsdp",), "ici"),
            (_PERMUTE, ("stage",), "ici"),
            # The last stage's output, shared out; back, its gradient, and the first stage's.
            (_SCATTER, ("stage",), "ici"),
            (_GATHER, ("stage",), "ici"),
            (_SUM, ("stage",), "ici"),
            # Embedding and output.
            (_GATHER, ("stage", "fsdp"), "ici"),
            (_SCATTER, ("stage", "fsdp"), "ici"),
        },
    ),
    "2 slices, fsdp 8": (
        dict(fsdp=8),
        2,
        {
            (_GATHER, ("fsdp",), "ici"),
            (_SCATTER, ("fsdp",), "ici"),
            # Of each device's part of the gradients, once a step.
            (_SUM, ("data",), "dcn"),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _TABLE)
def test_a_tpu_sends_what_the_design_says(name):
    mesh, num_slices, expected = _TABLE[name]
    cfg = _config(
        mesh,
        train=dict(batch_size=BATCH * num_slices, seq_len=512, loss_chunk=128),
        d_model=1024,
        d_ffn=3072,
        num_heads=16,
        num_kv_heads=8,
        vocab_size=4096,
        compute_dtype="bfloat16",
    )
    slice_name = "v5e:4x4" if math.prod(mesh.values()) == 16 else "v5e:2x4"
    target = topology.parse(slice_name, num_slices)
    target.configure_jax()
    found = _collectives(cfg, target.devices)
    large = [c for c in found if max(shape.bytes for shape in c.shapes) > SMALL_BYTES]
    unexpected = [
        f"{c.kind} over {c.axes}, {c.count} x {[s.dims for s in c.shapes]}: {c.op_name}"
        for c in large
        if (c.kind, c.axes, c.network) not in expected and not _is_remainder(c, found)
    ]
    assert not unexpected, "\n".join(unexpected)
    assert {_GATHER, _SCATTER} <= {c.kind for c in large}
    # What blocks gather and scatter, they gather and scatter in the compute dtype.
    in_blocks = [
        c
        for c in large
        if "/depth/" in c.op_name and c.kind in (_GATHER, _SCATTER) and "stage" not in c.axes
    ]
    assert in_blocks
    if name == "fsdp 16":
        assert {shape.dtype for c in in_blocks for shape in c.shapes} == {"bf16"}
    assert not _gathers_the_batch(found)
    assert not _gathers_the_stack(found, BLOCKS // mesh.get("stage", 1))


# --- By the CUDA compiler ------------------------------------------------------------------------

_GPU_TABLE = {
    "fsdp 8": (
        dict(fsdp=8),
        "h100:8",
        {
            (_GATHER, ("fsdp",), "nvlink"),
            (_SCATTER, ("fsdp",), "nvlink"),
        },
    ),
    "fsdp 4, tensor 2": (
        dict(fsdp=4, tensor=2),
        "a100:8",
        {
            (_GATHER, ("fsdp",), "nvlink"),
            (_SCATTER, ("fsdp",), "nvlink"),
            (_GATHER, ("tensor",), "nvlink"),
            (_SCATTER, ("tensor",), "nvlink"),
        },
    ),
    "2 hosts, fsdp 8": (
        dict(fsdp=8),
        "h100:8x2",
        {
            (_GATHER, ("fsdp",), "nvlink"),
            (_SCATTER, ("fsdp",), "nvlink"),
            # Of each device's part of the gradients, once a step.
            (_SUM, ("data",), "network"),
        },
    ),
}


def _multiplies(program: hlo.Program, instruction: hlo_text.Instruction) -> bool:
    inside = [
        inner.opcode
        for name in instruction.called_computations
        for inner in program.computations[name].instructions.values()
    ]
    return "dot" in inside or bool(re.search(r"__cublas|__cudnn\$fmha", instruction.attributes))


def _exposed_gathers(program: hlo.Program) -> list[str]:
    """Gathers in loops between whose start and end nothing multiplies."""
    exposed = []
    for name, times in program.run_counts.items():
        instructions = list(program.computations[name].instructions.values())
        order = [instruction.name for instruction in instructions]
        for end, instruction in enumerate(instructions):
            if instruction.opcode == f"{_GATHER}-done" and times > 1:
                beside = instructions[order.index(instruction.operands[0]) : end]
                if not any(_multiplies(program, each) for each in beside):
                    exposed.append(f"{instruction.name}, {times} x: {instruction.op_name}")
    return exposed


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.usefixtures("cuda_compiler")
@pytest.mark.parametrize("name", _GPU_TABLE)
def test_a_gpu_sends_what_the_design_says(name):
    """Weights and gradients in bf16, gathers beside products, and of sums only small ones."""
    mesh_sizes, topology_name, expected = _GPU_TABLE[name]
    target = topology.parse(topology_name)
    cfg = _config(
        mesh_sizes,
        train=dict(batch_size=BATCH * target.num_slices, seq_len=512, loss_chunk=128),
        d_model=1024,
        d_ffn=3072,
        num_heads=16,
        num_kv_heads=8,
        vocab_size=4096,
        compute_dtype="bfloat16",
    )
    target.configure_jax()
    mesh = target.mesh(cfg.mesh)
    compiled = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    program = hlo.read_program(compiled)
    networks = ("nvlink", "network")
    found = traffic.collectives(program, mesh, target.simulated_slices, networks)
    large = [c for c in found if max(shape.bytes for shape in c.shapes) > SMALL_BYTES]
    unexpected = [
        f"{c.kind} over {c.axes}, {c.count} x {[s.dims for s in c.shapes]}: {c.op_name}"
        for c in large
        if (c.kind, c.axes, c.network) not in expected
    ]
    assert not unexpected, "\n".join(unexpected)
    assert {(c.kind, c.axes, c.network) for c in large} == expected
    weights = [
        c
        for c in large
        if "/depth/" in c.op_name and c.kind in (_GATHER, _SCATTER) and c.axes == ("fsdp",)
    ]
    assert weights and {shape.dtype for c in weights for shape in c.shapes} == {"bf16"}
    assert not _gathers_the_batch(found)
    assert not _gathers_the_stack(found, BLOCKS)
    if name == "fsdp 8":
        # In a loop all begin early; the first and the last of a pipelined loop stand outside of it.
        assert all(c.is_async for c in weights if c.count > 1)
        assert not _exposed_gathers(program), _exposed_gathers(program)
