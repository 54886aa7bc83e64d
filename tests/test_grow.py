"""`keel_jax.grow`: the new model evaluates as its source did, starts runs, tells its origin."""

import shutil

import jax
import numpy as np
import pytest

from keel_jax import config, evaluate, grow, train
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes, files
from keel_jax.training import ancestry, checkpoint, trained
from tests import conftest


def _config(token_dir, cache_dir, num_blocks=3, **train_options):
    return conftest.tiny_config(
        model=dict(num_blocks=num_blocks, vocab_size=0),
        data=dict(path=str(token_dir)),
        train=dict(num_steps=4, **train_options),
        runtime=dict(compilation_cache_dir=cache_dir),
    )


def _params(workdir, step=None):
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    return jax.device_get(trained.load_params(workdir, mesh, step)[0])


@pytest.fixture(scope="module")
def source(token_dir, cache_dir, tmp_path_factory):
    """A run of 3 blocks with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("source")
    cfg = _config(token_dir, cache_dir, checkpoint_every_steps=2)
    assert train.train(cfg, workdir) == exit_codes.DONE
    return workdir


@pytest.fixture(scope="module")
def grown(source, tmp_path_factory):
    """Its growth to 5 blocks."""
    output = tmp_path_factory.mktemp("grown") / "deeper"
    grow.grow(source, output, num_blocks=5, method="identity")
    return output


def test_a_grown_directory_evaluates_as_its_source(source, grown):
    found = [evaluate.evaluate(directory) for directory in (source, grown)]
    assert found[0]["step"] == found[1]["step"] == 4
    # Float32 sums over the split.
    assert found[1]["loss_nats_per_token"] == pytest.approx(
        found[0]["loss_nats_per_token"], rel=1e-6
    )


def test_any_checkpoint_grows(source, tmp_path):
    grow.grow(source, tmp_path / "new", num_blocks=6, method="stack", step=2)
    for before, after in zip(
        jax.tree.leaves(_params(source, 2)), jax.tree.leaves(_params(tmp_path / "new")), strict=True
    ):
        if before.ndim == 3:  # a block's matrices
            np.testing.assert_array_equal(after, np.concatenate([before, before]))


def test_a_run_starts_from_it_knows_where_it_came_from_and_resumes(
    source, grown, token_dir, cache_dir, tmp_path
):
    cfg = _config(
        token_dir, cache_dir, num_blocks=5, init_from=str(grown), checkpoint_every_steps=1
    )
    assert train.train(cfg, tmp_path / "run") == exit_codes.DONE
    way = ancestry.read(tmp_path / "run")
    assert [step["action"] for step in way] == ["grow", "init_from"]
    assert way[0]["source"] == str(source) and way[1]["source"] == str(grown)
    assert (way[0]["num_blocks"], way[0]["num_blocks_after"]) == (3, 5)
    assert (way[0]["alpha"], way[0]["alpha_after"]) == (6, 10)
    assert way[0]["method"] == "identity" and way[0]["step"] == 4 and way[0]["keeps_function"]
    assert way[0]["versions"]["jax"] == jax.__version__
    assert files.read_json(tmp_path / "run/status.json")["ancestry"] == way

    # Interrupted, it goes on without the directory that it began from.
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    shutil.rmtree(copy / "checkpoints/4")
    shutil.move(grown, tmp_path / "aside")
    try:
        assert train.train(cfg, copy) == exit_codes.DONE
    finally:
        shutil.move(tmp_path / "aside", grown)
    jax.tree.map(np.testing.assert_array_equal, _params(copy), _params(tmp_path / "run"))
    assert ancestry.read(copy) == way

    # And grows again, with the whole way.
    grow.grow(copy, tmp_path / "twice", num_blocks=6, method="interleave", keep_alpha=True)
    assert ancestry.read(tmp_path / "twice")[:2] == way
    assert ancestry.read(tmp_path / "twice")[2]["alpha_after"] == 10
    assert checkpoint.load_config(tmp_path / "twice").model.alpha == 10


def test_a_run_of_its_own_weights_has_no_ancestors(source):
    assert ancestry.read(source) == []
    assert files.read_json(source / "status.json")["ancestry"] == []


def test_nothing_is_overwritten(source, grown):
    before = {path: path.stat().st_mtime_ns for path in grown.rglob("*")}
    with pytest.raises(ValueError, match=r"deeper is not empty \(ancestry.json, checkpoi"):
        grow.grow(source, grown, num_blocks=7, method="stack")
    with pytest.raises(ValueError, match="is not empty"):
        grow.grow(source, source, num_blocks=7, method="stack")
    assert {path: path.stat().st_mtime_ns for path in grown.rglob("*")} == before


def test_a_refused_growth_leaves_no_directory(source, tmp_path):
    with pytest.raises(ValueError, match="num_blocks=2 is not more than the 3 blocks"):
        grow.grow(source, tmp_path / "new", num_blocks=2, method="stack")
    assert not (tmp_path / "new").exists()


def test_a_grown_directory_is_no_run_to_go_on_with(grown, token_dir, cache_dir):
    cfg = _config(token_dir, cache_dir, num_blocks=5)
    before = sorted(grown.rglob("*"))
    with pytest.raises(ValueError, match="only holds weights, written by keel_jax.grow"):
        train.train(cfg, grown)
    assert sorted(grown.rglob("*")) == before


def test_a_growth_without_its_last_file_is_taken_for_nothing(grown, tmp_path):
    """Killed on the way."""
    shutil.copytree(grown, tmp_path / "half", ignore=shutil.ignore_patterns("config.json"))
    with pytest.raises(ValueError, match="is not a work directory of a run"):
        evaluate.evaluate(tmp_path / "half")
