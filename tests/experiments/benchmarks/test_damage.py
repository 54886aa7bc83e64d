"""The damage benchmark damages what it says, compares by value, and forgets no file."""

import pathlib
import random

import pytest

from experiments.benchmarks import damage, damage_artefacts, damage_world

PATH = pathlib.Path("/w/here/lean/checkpoints/4/params/d/a")
WHOLE = damage_artefacts.Result(kept=[b"weights"], output={"loss": float("nan")})


@pytest.mark.parametrize("name", damage_artefacts.DAMAGES)
def test_a_damage_changes_the_content(name):
    content = b'{"state": "running", "step": 4}'
    for seed in range(20):
        damaged = damage_artefacts.DAMAGES[name](content, random.Random(seed), b"of another run")
        assert damaged != content


@pytest.mark.parametrize(
    ("result", "error", "said", "expected"),
    [
        (WHOLE, None, "", "harmless"),
        (WHOLE, None, "usual: /w/here/lean/checkpoints/4", "harmless"),
        (WHOLE, None, "/w/here/lean/checkpoints/4 is damaged: step 3 is used", "fallback"),
        (damage_artefacts.Result([b"weights"], {"loss": 1.0}), None, "", "silent"),
        (
            damage_artefacts.Result([b"weights"], {"loss": 1.0}),
            None,
            "/w/here/lean/checkpoints/4/params/d/a is damaged",
            "fallback",
        ),
        # Whatever is said, a resumed run has the weights of the undisturbed one.
        (
            damage_artefacts.Result([b"others"], {"loss": float("nan")}),
            None,
            "/w/here/lean/checkpoints/4 is damaged: step 3 is used",
            "silent",
        ),
        (None, "/w/here/lean/checkpoints/4/params/d/a has 3 bytes", "", "error"),
        (None, "No checkpoint in /w/here/lean/checkpoints is whole (step 4: a)", "", "error"),
        (None, "something is wrong", "", "traceback"),
        (WHOLE, None, "Traceback (most recent call last):", "traceback"),
    ],
)
def test_a_verdict_follows_from_the_result_and_from_what_is_said(result, error, said, expected):
    usual = "usual: /w/here/lean/checkpoints/4"
    assert damage.verdict(PATH, result, error, said, WHOLE, usual)[0] == expected


def test_a_file_belongs_to_the_first_glob_that_it_matches(tmp_path):
    for name in (
        "lean/checkpoints/4/params/d/a",
        "lean/checkpoints/4/params/ocdbt.process_0/d/b",
        "lean/checkpoints/4/params/ocdbt.process_0/manifest.ocdbt",
        "lean/checkpoints/4/meta/commit_success.txt",
        "lean/checkpoints/2/meta/metadata",
        "data/train-00001.bin",
        "text/a.jsonl",
        "run/unheard_of.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = damage_artefacts.by_artefact(tmp_path)
    assert len(found["lean/checkpoints/4/params/**/d/*"]) == 2
    assert len(found["lean/checkpoints/4/params/**/manifest.ocdbt"]) == 1
    assert len(found["lean/checkpoints/4/**/commit_success.txt"]) == 1
    assert found["lean/checkpoints/**"] == [pathlib.Path("lean/checkpoints/2/meta/metadata")]
    # The text is the user's own; nobody reads the last one, which the benchmark would refuse.
    assert found[""] == [pathlib.Path("run/unheard_of.json")]


def test_every_file_meets_every_damage_before_every_reader():
    table = damage_artefacts.table()
    assert len(set(table)) == len(table) > 500
    for artefact, readers in damage_artefacts.ARTEFACTS.items():
        for reader in readers:
            met = {name for file, name, by in table if (file, by) == (artefact, reader)}
            assert met == set(damage_artefacts._ONLY.get(reader, damage_artefacts.DAMAGES))


@pytest.mark.slow
def test_some_damages_are_neither_silent_nor_tracebacks(tmp_path):
    """Of a world made anew, in which each file must be known."""
    rows = damage.measure(tmp_path, 25, seed=1)
    assert [row["seed"] for row in rows] == list(range(25))
    assert not [row for row in rows if damage.is_fault(row["verdict"])], rows
    assert len({row["verdict"] for row in rows}) >= 3
    world = damage_world.make(tmp_path.absolute())
    assert not damage_artefacts.by_artefact(world.whole)[""]
