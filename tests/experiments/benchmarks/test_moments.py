"""A kill comes when the run is where it should be, and not before."""

import os
import random
import types

import pytest

from experiments.benchmarks import moments
from keel_jax.runtime import ownership


def test_every_moment_is_drawn_with_steps_that_come():
    rng = random.Random(0)
    drawn = [moments.draw(rng, 24, 4, 6) for _ in range(500)]
    assert {moment.name for moment in drawn} == set(moments.MOMENTS)
    for name, every in (("save", 4), ("validation", 6)):
        steps = {moment.step for moment in drawn if moment.name == name}
        assert steps == set(range(every, 25, every))


# What a run has done, in its order, and the moments that have come then.
_PROGRESS = (
    ("", {"start"}),
    ("owner", {"start", "restore"}),
    ("recompute: block\n", {"start", "restore", "compile"}),
    ("step 6/8  loss 1\n", {"start", "restore", "compile", "step", "validation"}),
    ("save", {"start", "restore", "compile", "step", "validation", "save"}),
    ("step 8/8  loss 1\n", set(moments.MOMENTS)),
    ("", set(moments.MOMENTS)),
)


@pytest.mark.parametrize("name", moments.MOMENTS)
def test_a_moment_comes_with_what_the_run_does(name, tmp_path):
    output, done = "", []
    # Of a run that was killed.
    (tmp_path / ownership.FILE).write_text("{}")
    os.utime(tmp_path / ownership.FILE, (1.0, 1.0))

    def go_on() -> None:
        """Once per look: `poll` is asked before each."""
        nonlocal output
        if len(done) == len(_PROGRESS):
            return
        what, _ = _PROGRESS[len(done)]
        done.append(what)
        if what == "owner":
            (tmp_path / ownership.FILE).write_text("{}")
            os.utime(tmp_path / ownership.FILE)
        elif what == "save":
            (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir(parents=True)
        else:
            output += what

    process = types.SimpleNamespace(poll=go_on)
    moments.wait(moments.Moment(name, 6, 0.0), process, tmp_path, lambda: output, 8)
    expected = next(i for i, (_, come) in enumerate(_PROGRESS) if name in come)
    assert len(done) - 1 == expected + 1  # the delay looks once more
