"""Damage to a checkpoint is found before it is used, and the newest one that is whole is."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from keel_jax import errors
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import files
from keel_jax.training import checkpoint, checkpoint_meta, manifest, set_aside
from keel_jax.training import state as state_lib
from tests import conftest

STEPS = (4, 8, 12)
CFG = conftest.tiny_config(model=dict(num_blocks=2), train=dict(keep_checkpoints=len(STEPS)))


def _mesh():
    return mesh_lib.make(CFG.mesh)


def _state(step: int) -> state_lib.TrainState:
    """A state that differs from that of any other step in every parameter."""
    state = state_lib.create(CFG, _mesh())
    params = jax.tree.map(lambda p: p + step, state.params)
    return dataclasses.replace(state, params=params, step=jnp.full_like(state.step, step))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with checkpoint.Checkpoints(workdir, CFG.train) as checkpoints:
        for step in STEPS:
            checkpoints.save(_state(step), checkpoint_meta.Meta(step, "data", "tokenizer"))
        checkpoints.wait()
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "run")


def _continue(workdir, train=CFG.train) -> int:
    """Opens the directory as a run that continues does; the step whose state it gets."""
    with checkpoint.Checkpoints(workdir, train) as checkpoints:
        checkpoints.set_damaged_aside()
        step = checkpoints.latest_step()
        state, meta = checkpoints.restore(state_lib.abstract(CFG, _mesh()))
    wanted = _state(step)
    jax.tree.map(np.testing.assert_array_equal, state, wanted)
    assert meta.step == step
    return step


def _files(workdir, step):
    """One file of each kind, the largest ones of arrays among them."""
    directory = workdir / "checkpoints" / str(step)
    arrays = sorted((path for path in directory.rglob("d/*")), key=lambda path: path.stat().st_size)
    names = (
        "manifest.json",
        "_CHECKPOINT_METADATA",
        "meta/metadata",
        "params/_METADATA",
        "params/manifest.ocdbt",
        "progress/array_metadatas/process_0",
    )
    return [*(directory / name for name in names), arrays[-1], arrays[0]]


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _replace(path):
    """By the same file of the checkpoint before, or by one of its arrays where that is the same."""
    root = path.parents[[parent.name for parent in path.parents].index("12")]
    older = root.with_name("8")
    same = older / path.relative_to(root)
    if not same.exists() or same.read_bytes() == path.read_bytes():
        same = max((older / "params" / "d").iterdir())
    path.write_bytes(same.read_bytes())


DAMAGES = {
    "flipped": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "replaced": _replace,
}


NUM_KINDS = 8
TABLE = [
    # The fast part has every kind of file and every damage; the slow part, all pairs.
    pytest.param(kind, damage, marks=() if kind % len(DAMAGES) == number else pytest.mark.slow)
    for kind in range(NUM_KINDS)
    for number, damage in enumerate(DAMAGES)
]


@pytest.mark.parametrize(("kind", "damage"), TABLE)
def test_a_damaged_newest_checkpoint_is_set_aside_and_named(workdir, capsys, kind, damage):
    path = _files(workdir, 12)[kind]
    before = path.read_bytes()
    DAMAGES[damage](path)
    if path.exists() and path.read_bytes() == before:
        pytest.fail(f"{damage} does not change {path}")
    is_harmless = path.name == "_CHECKPOINT_METADATA" and damage in ("flipped", "replaced")
    if is_harmless or (path.name == "manifest.json" and damage == "deleted"):
        # A time stamp in it, or a checkpoint as earlier versions wrote it: still that of step 12.
        assert _continue(workdir) in (8, 12)
        return
    assert _continue(workdir) == 8
    output = capsys.readouterr().out
    assert f"{workdir}/checkpoints/12 is damaged: " in output
    assert str(path.relative_to(workdir / "checkpoints" / "12")) in output
    assert "Continuing from step 8" in output and "up to 4 steps are computed again" in output
    [record] = set_aside.listed(workdir)
    assert record["step"] == 12 and record["damage"]
    moved = workdir / set_aside.DIRECTORY / "12" / path.relative_to(workdir / "checkpoints/12")
    assert damage == "deleted" or moved.exists(), "nothing is deleted"
    assert _continue(workdir) == 8


def test_without_any_whole_checkpoint_the_run_is_refused_and_all_stay(workdir):
    for step in STEPS:
        _flip(_files(workdir, step)[-2])
    with pytest.raises(errors.UserError, match=r"No checkpoint in .* is whole \(step 12: .*sha256"):
        _continue(workdir)
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == list(STEPS)


def test_an_empty_directory_with_a_number_is_no_checkpoint(workdir, capsys):
    for step in (13, 999):
        (workdir / "checkpoints" / str(step)).mkdir()
    assert _continue(workdir) == 12
    output = capsys.readouterr().out
    assert "checkpoints/999 is damaged: meta/ is missing" in output
    assert "up to 0 steps are computed again" in output, "nobody has taken 999 steps"


def test_the_parts_of_a_checkpoint_belong_together(workdir, capsys):
    newest, older = workdir / "checkpoints" / "12", workdir / "checkpoints" / "8"
    shutil.rmtree(newest / "params")
    shutil.copytree(older / "params", newest / "params")
    assert _continue(workdir) == 8
    assert "params/" in capsys.readouterr().out
    older.rename(workdir / "checkpoints" / "16")
    assert _continue(workdir) == 4
    assert "manifest.json is that of step 8" in capsys.readouterr().out


def test_a_checkpoint_without_progress_is_damaged_and_not_one_that_grow_wrote(workdir, capsys):
    shutil.rmtree(workdir / "checkpoints" / "12" / "progress")
    assert _continue(workdir) == 8
    assert "written by" not in capsys.readouterr().out


def test_weights_alone_are_no_run_to_continue(tmp_path):
    with checkpoint.Checkpoints(tmp_path, CFG.train) as checkpoints:
        checkpoints.save_weights(_state(3).params, checkpoint_meta.Meta(3, "data", "tokenizer"))
    with pytest.raises(errors.UserError, match="only holds weights, written by keel_jax.grow"):
        _continue(tmp_path)


def test_checkpoints_of_versions_without_manifests_are_checked_for_their_step(
    workdir, capsys, monkeypatch
):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / manifest.FILE).unlink()
    path = workdir / "checkpoints" / "12" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 8}))
    shutil.rmtree(workdir / "checkpoints" / "8" / "meta")
    assert _continue(workdir) == 4
    output = capsys.readouterr().out
    assert "meta/metadata is that of step 8" in output and "meta/ is missing" in output
    assert "checkpoints/4 has no manifest.json" in said[0]


def test_sizes_are_the_quick_check(workdir):
    sizes = dataclasses.replace(CFG.train, verify_checkpoints="sizes")
    path = workdir / "checkpoints" / "12" / "params" / "_sharding"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert _continue(workdir, sizes) == 12
    path.write_bytes(path.read_bytes()[:-1])
    assert _continue(workdir, sizes) == 8


@pytest.mark.parametrize("content", ["[]", "3", '{"item_handlers": [], "metrics": 3}'])
def test_orbax_reads_nothing_of_a_step_that_has_not_been_verified(workdir, content, capsys):
    for step in (4, 12):
        path = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
        path.write_text(content)
    assert _continue(workdir) == 8
    assert "_CHECKPOINT_METADATA is not what was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        dict(step=None),
        dict(items="params"),
        dict(arrays={"params['a']": 3}),
        dict(num_bytes={"params/_METADATA": "many"}),
        dict(num_bytes={"params/_METADATA": True}),
        dict(sha256={"params/_METADATA": 1}),
        dict(sha256=None),
    ],
)
def test_a_manifest_of_other_kinds_of_values_is_damage(workdir, changes, capsys):
    """Whoever wrote it, with whatever checksum."""
    path = workdir / "checkpoints" / "12" / manifest.FILE
    files.write_checked_json(path, files.read_json(path) | changes)
    assert _continue(workdir) == 8
    assert "manifest.json is not what was written" in capsys.readouterr().out


def test_a_reader_uses_the_newest_whole_checkpoint_and_moves_nothing(workdir, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    path = next((workdir / "checkpoints" / "12" / "params" / "d").iterdir())
    _flip(path)
    wanted = state_lib.abstract(CFG, _mesh()).params
    with checkpoint.Checkpoints(workdir) as checkpoints:
        params, meta = checkpoints.restore_params(wanted)
        jax.tree.map(np.testing.assert_array_equal, params, _state(8).params)
        assert meta.step == 8
        with pytest.raises(errors.UserError, match=rf"step 12: params/d/{path.name} has sha256"):
            checkpoints.restore_params(wanted, step=12)
    [text] = said
    assert "checkpoints/12 is damaged" in text and "step 8 is used" in text
    assert path.exists()


def test_a_reader_needs_no_progress(workdir):
    shutil.rmtree(workdir / "checkpoints" / "12" / "progress")
    with checkpoint.Checkpoints(workdir) as checkpoints:
        _, meta = checkpoints.restore_params(state_lib.abstract(CFG, _mesh()).params)
    assert meta.step == 12


def test_arrays_of_another_type_or_shape_are_refused(workdir):
    """Orbax would convert them without a word."""
    wanted = state_lib.abstract(CFG, _mesh()).params
    other = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding), wanted
    )
    with checkpoint.Checkpoints(workdir) as checkpoints:
        with pytest.raises(errors.UserError, match=r"is float32\[.*\] there, bfloat16\[.*\] in"):
            checkpoints.restore_params(other)


def test_a_file_that_cannot_be_read_is_not_damage(workdir, monkeypatch):
    """The disk or the network may be back tomorrow: nothing is set aside."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest.integrity, "file_sha256", refuse)
    with pytest.raises(PermissionError):
        _continue(workdir)
    assert not (workdir / set_aside.DIRECTORY).exists()


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(errors.UserError, match=r"could be written there and not be read back"):
        checkpoint.Checkpoints(tmp_path / name, CFG.train)
    assert not (tmp_path / name).exists()


def test_permanent_steps_outlive_the_newest(tmp_path):
    train = dataclasses.replace(CFG.train, keep_checkpoints=1, keep_every_steps=8)
    with checkpoint.Checkpoints(tmp_path, train) as checkpoints:
        for step in (4, 8, 12, 16, 20):
            checkpoints.save(_state(step), checkpoint_meta.Meta(step, "data", "tokenizer"))
    left = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert left == [8, 16, 20]


def test_a_failed_save_names_the_newest_complete_step(workdir, monkeypatch):
    """Orbax counts the step that it has begun to write, and in several processes goes on to."""
    with checkpoint.Checkpoints(workdir, CFG.train) as checkpoints:

        def fail(*args):
            raise ValueError("a peer was lost")

        (workdir / "checkpoints/16.orbax-checkpoint-tmp/params").mkdir(parents=True)
        (workdir / "checkpoints/20/params").mkdir(parents=True)
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
        monkeypatch.setattr(checkpoints._manager, "latest_step", lambda: 16)
        with pytest.raises(OSError, match="a peer was lost. The newest complete one is step 12"):
            checkpoints.wait()
        monkeypatch.undo()
    assert manifest.newest_step(checkpoints.directory / "4") is None
    assert manifest.newest_step(checkpoints.directory / "no") is None


def test_the_first_save_is_read_back(tmp_path, monkeypatch):
    """A storage that swallows files is noticed at once and not at the end of the run."""
    original = manifest.write

    def swallow(directory, *args, **kwargs):
        original(directory, *args, **kwargs)
        next((directory / "params" / "d").iterdir()).unlink()

    monkeypatch.setattr(manifest, "write", swallow)
    with pytest.raises(OSError, match=r"step 4 was written, and params/d/\w+ is missing"):
        with checkpoint.Checkpoints(tmp_path, CFG.train) as checkpoints:
            checkpoints.save(_state(4), checkpoint_meta.Meta(4, "data", "tokenizer"))
            checkpoints.wait()


def test_what_was_set_aside_is_listed_even_if_its_record_is_damaged(workdir):
    _flip(_files(workdir, 12)[-1])
    _continue(workdir)
    path = workdir / set_aside.DIRECTORY / "12" / "why.json"
    assert files.read_json(path)["step"] == 12
    path.write_text("{")
    [record] = set_aside.listed(workdir)
    assert "unknown" in record["damage"][0]
