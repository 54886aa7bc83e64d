"""Where every leaf of state and batch lies, for named models on named meshes: a golden file.

A change of the rule table shows as a change of `placements.txt`, leaf by leaf. To accept it:

    JAX_PLATFORMS=cpu python -m tests.parallel.test_placements
"""

import pathlib

import jax
import pytest

from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

GOLDEN = pathlib.Path(__file__).with_name("placements.txt")

MODELS = {
    # The paper's 512 sub-layers.
    "keel": dict(topology="keel"),
    # Every other parameter that a topology can have.
    "peri_ln, tied, qk_norm": dict(topology="peri_ln", tie_embeddings=True, qk_norm=True),
    "keel_scaled_inner_norm": dict(topology="keel_scaled_inner_norm"),
}
# (devices of a slice, slices, options)
MESHES = {
    "16 chips: fsdp": (16, 1, dict()),
    "16 chips: data 2, fsdp 8": (16, 1, dict(data=2)),
    "16 chips: fsdp 4, tensor 4": (16, 1, dict(tensor=4)),
    "64 chips: stage 4, fsdp 8, context 2": (64, 1, dict(stage=4, context=2)),
    "2 slices of 16 chips: data 2, fsdp 16": (16, 2, dict()),
    "2 slices of 16 chips: stage 2, fsdp 16": (16, 2, dict(dcn_stage=2)),
}


def placements(model: dict, slice_devices: int, num_slices: int, mesh: dict) -> list[str]:
    """One line a leaf: its name, shape, placement, and the shape of one device's part."""
    values = dict(num_blocks=256, d_model=1024, d_ffn=3072, vocab_size=32768, **model)
    cfg = config.from_config_dict(
        dict(model=values, train=dict(num_steps=1000, batch_size=512, seq_len=2048), mesh=mesh)
    )
    sizes = mesh_lib.resolve_sizes(cfg.mesh, slice_devices, num_slices)
    abstract_mesh = jax.sharding.AbstractMesh(
        tuple(ici * dcn for ici, dcn in sizes.values()),
        tuple(sizes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
    )
    tree = dict(
        state=state_lib.abstract(cfg, abstract_mesh),
        batch=step_lib.abstract_batch(cfg, abstract_mesh),
    )
    lines = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        part = leaf.sharding.shard_shape(leaf.shape)
        axes = [entry if isinstance(entry, tuple) else (entry,) for entry in leaf.sharding.spec]
        spec = ", ".join("*".join(name or "-" for name in dim) for dim in axes)
        lines.append(f"{name}  {leaf.shape}  {spec}  {part}")
    return lines


def _all() -> str:
    text = []
    for mesh_name, mesh in MESHES.items():
        for model_name, model in MODELS.items():
            text += [f"== {model_name} on {mesh_name}", *placements(model, *mesh), ""]
    return "\n".join(text)


def test_every_leaf_lies_where_the_golden_file_says():
    there, now = GOLDEN.read_text().splitlines(), _all().splitlines()
    changed = [line for line in now if line not in there]
    assert there == now, "\n".join(["not in placements.txt:", *changed[:20]])


@pytest.mark.parametrize("mesh", MESHES)
def test_nothing_large_is_whole_anywhere(mesh):
    """Of 3.3 G parameters and their moments a device holds its share, and 1 % at most beside it.

    Gains are the exception: they are split over stages only.
    """
    slice_devices, num_slices, options = MESHES[mesh]
    lines = placements(MODELS["keel"], slice_devices, num_slices, options)
    whole = held = 0
    for line in lines:
        if line.startswith("state/"):
            _, shape, *_, part = line.split("  ")
            whole += _size(shape)
            held += _size(part)
    shares = slice_devices * num_slices
    if "data" in mesh:
        shares //= 2  # replicas
    assert whole > 3 * 3.2e9
    assert held < 1.01 * whole / shares


def _size(shape: str) -> int:
    size = 1
    for number in shape.strip("()").split(","):
        size *= int(number) if number.strip() else 1
    return size


if __name__ == "__main__":
    GOLDEN.write_text(_all())
