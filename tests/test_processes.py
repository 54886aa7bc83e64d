"""Several processes are one program: equal to one process, and bounded when one of them is lost.

Every test starts real processes (tests/processes.py) that talk over the loopback interface.
"""

import dataclasses
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from keel_jax import config, evaluate, train
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes, files
from keel_jax.training import events, logs, telemetry_records, trained
from tests import conftest, processes

NUM_STEPS = 5
# What a process may end with after a peer was lost: 76, or an abort in C++ (docs/processes.md).
LOST = {exit_codes.HUNG, -signal.SIGABRT}
_ENDLESS = 10**6


def _config(token_dir, cache_dir, **sections):
    sections["model"] = {"num_blocks": 2, "vocab_size": 0, **sections.get("model", {})}
    sections["data"] = {"path": str(token_dir), **sections.get("data", {})}
    sections["train"] = {
        "num_steps": NUM_STEPS,
        "checkpoint_every_steps": 2,
        "eval_every_steps": 2,
        "eval_num_batches": 2,
        **sections.get("train", {}),
    }
    sections["optim"] = {"schedule": "constant", **sections.get("optim", {})}
    sections["runtime"] = {"compilation_cache_dir": cache_dir, **sections.get("runtime", {})}
    return conftest.tiny_config(**sections)


def _with_steps(cfg, num_steps):
    return dataclasses.replace(
        cfg, train=dataclasses.replace(cfg.train, num_steps=num_steps, num_tokens=0)
    )


def _with_mesh(cfg, **sizes):
    return dataclasses.replace(cfg, mesh=config.MeshConfig(**sizes))


def _numbers(workdir):
    """The rows of metrics.jsonl without the clock's."""
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in logs.read(workdir)
    ]


def _params(workdir, step=None):
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    params, _ = trained.load_params(workdir, mesh, step)
    return jax.device_get(params)


def _assert_same_log(one, other, last_step=NUM_STEPS):
    """Up to `last_step`.

    The program and its data are the same. But gloo adds up over processes in another order than
    one process over its devices: seen 5e-7 in the log's numbers after 5 steps on 8 devices.
    """
    log, other_log = (
        [row for row in _numbers(workdir) if row["step"] <= last_step] for workdir in (one, other)
    )
    assert [row["step"] for row in log] == [row["step"] for row in other_log]
    for row, other_row in zip(log, other_log, strict=True):
        assert row == pytest.approx(other_row, rel=1e-5)


def _assert_same_run(one, other):
    """Same log and same last weights."""
    _assert_same_log(one, other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
        _params(one),
        _params(other),
    )


def _status(workdir):
    return files.read_json(workdir / "status.json")


def _train(cfg, workdir, **options):
    """Trains to the end in the processes that `options` say."""
    with processes.start(
        "keel_jax.train", processes.train_flags(cfg, workdir), workdir.parent, **options
    ) as program:
        codes = program.codes()
        assert set(codes) == {exit_codes.DONE}, f"{codes}:\n{program.told()}"


@pytest.fixture(scope="module")
def alone(token_dir, cache_dir, tmp_path_factory):
    """The run of one process on eight devices that the others are compared with."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    cfg = _config(token_dir, cache_dir)
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)],
)
def test_two_processes_are_one_and_one_signal_stops_both(number, asked, alone, tmp_path):
    """The curve is that of one process; both save one step, and one process goes on from there."""
    cfg, workdir = alone
    endless = _with_steps(cfg, _ENDLESS)
    run = tmp_path / "run"
    flags = processes.train_flags(endless, run)
    two = dict(num_processes=2, devices_each=4)
    with processes.start("keel_jax.train", flags, tmp_path, **two) as program:
        program.wait_for_step(run, NUM_STEPS)
        program.processes[asked].send_signal(number)
        codes = program.codes()
    assert codes == [exit_codes.PREEMPTED] * 2, program.told()
    _assert_same_log(run, workdir, NUM_STEPS - 1)
    status = _status(run)
    assert status["state"] == "preempted" and status["step"] >= NUM_STEPS
    assert (run / "checkpoints" / str(status["step"])).is_dir()
    assert train.train(_with_steps(cfg, status["step"] + 1), run) == exit_codes.DONE
    steps = [row["step"] for row in logs.read(run) if "tokens" in row]
    assert steps == list(range(1, status["step"] + 2))


def test_a_process_that_never_joins_ends_the_wait(alone, tmp_path):
    cfg, _ = alone
    flags = [*processes.train_flags(cfg, tmp_path / "run"), "--initialization_timeout_seconds=2"]
    with processes.start(
        "keel_jax.train", flags, tmp_path, num_processes=2, devices_each=1, started=(1,)
    ) as program:
        assert program.codes() == [exit_codes.HUNG], program.told()
    assert "process 1 of 2 waited 2 s for the others: the lead, process 0, does not" in (
        program.told()
    )
    assert not (tmp_path / "run").exists()


# --- Slow ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_processes_are_one_and_two_and_one_go_on(alone, token_dir, tmp_path):
    """Written by 4, continued by 2 and then by 1, each to the curve of the run never moved; also
    where a file is damaged that the second of two processes looks at."""
    cfg, workdir = alone
    run = tmp_path / "run"
    _train(_with_steps(cfg, 2), run, num_processes=4, devices_each=2)
    assert len(list((run / "checkpoints" / "2").glob("digests.?-of-4.json"))) == 4
    _train(_with_steps(cfg, 4), run, num_processes=2, devices_each=4)
    newest = run / "checkpoints" / "4"
    share = files.read_json(newest / "digests.1-of-2.json")["sha256"]
    name = max(share, key=lambda name: (newest / name).stat().st_size)
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    _train(_with_steps(cfg, 4), run, num_processes=2, devices_each=4)
    [record] = _status(run)["damaged_checkpoints"]
    assert record["step"] == 4 and f"{name} has sha256" in record["damage"][0]
    assert train.train(cfg, run) == exit_codes.DONE
    # A run that ends at step 2 or 4 validates there, as the other does anyway.
    _assert_same_run(run, workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        dict(data=4, fsdp=1),
        dict(data=1, fsdp=4),
        dict(data=1, fsdp=1, tensor=4),
        dict(data=1, fsdp=1, context=4),
        dict(data=2, fsdp=1, context=2),
        dict(data=1, fsdp=2, tensor=2),
        dict(data=1, fsdp=1, stage=2, tensor=2),
    ],
    ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()),
)
def test_every_axis_over_four_processes(sizes, token_dir, cache_dir, tmp_path):
    """Each process reads the rows that its device holds, whichever axis divides the processes."""
    cfg = _config(
        token_dir,
        cache_dir,
        mesh=sizes,
        train=dict(num_steps=3),
        model=dict(num_blocks=2, num_heads=4, num_kv_heads=4),
    )
    _train(cfg, tmp_path / "one", num_processes=1, devices_each=4)
    _train(cfg, tmp_path / "four", num_processes=4)
    _assert_same_run(tmp_path / "four", tmp_path / "one")


@pytest.mark.slow
def test_trials_over_processes(token_dir, cache_dir, tmp_path):
    """A trial per process, one of which diverges; stopped and continued by one process.

    Each process looks at the steps that are due and at the diverging one, which is not.
    """
    cfg = _config(
        token_dir,
        cache_dir,
        trials=dict(peak_lr=(1e-2, 1e30), seed=(3, 4)),
        mesh=dict(trial=2, fsdp=1),
        telemetry=dict(every_steps=4),
    )
    _train(cfg, tmp_path / "one", num_processes=1, devices_each=2)
    _train(cfg, tmp_path / "two", num_processes=2)
    for trial, state in (("000", "done"), ("001", "diverged")):
        one, two = (tmp_path / name / "trials" / trial for name in ("one", "two"))
        assert _numbers(two) == _numbers(one)
        assert _status(two)["state"] == _status(one)["state"] == state
        assert _status(two)["step"] == _status(one)["step"]
        seen = [telemetry_records.load(workdir) for workdir in (one, two)]
        assert seen[0]["step"].tolist() == ([1, 4, 5] if state == "done" else [1, 3])
        assert set(seen[0]) == set(seen[1])
        for name, values in seen[0].items():
            np.testing.assert_allclose(seen[1][name], values, rtol=1e-4, atol=1e-9, err_msg=name)
        reports = [
            files.read_json(workdir / telemetry_records.DIVERGENCE) for workdir in (one, two)
        ]
        assert reports[0] == reports[1] and (reports[0] is None) == (state == "done")
    longer = _with_steps(cfg, NUM_STEPS + 1)
    _train(longer, tmp_path / "two", num_processes=2)
    assert logs.read(tmp_path / "two/trials/000")[-1]["step"] == NUM_STEPS + 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_nothing_is_lost(victim, alone, tmp_path):
    """kill -9 of the lead, or of another; the restart is the run never killed."""
    cfg, workdir = alone
    run = tmp_path / "run"
    flags = [
        *processes.train_flags(_with_steps(cfg, _ENDLESS), run),
        "--heartbeat_timeout_seconds=10",
    ]
    two = dict(num_processes=2, devices_each=4)
    with processes.start("keel_jax.train", flags, tmp_path, **two) as program:
        program.wait_until((run / "checkpoints/2").is_dir)
        program.processes[victim].kill()
        begin = time.monotonic()
        assert program.code(1 - victim) in LOST, program.told()
        assert time.monotonic() - begin < processes.LIMIT_SECONDS / 2
    # Further than the log of the reference goes: cut back to where both are.
    for step in (run / "checkpoints").iterdir():
        if step.name.isdecimal() and int(step.name) > 4:
            shutil.rmtree(step)
    _train(cfg, run, num_processes=2, devices_each=4)
    _assert_same_run(run, workdir)


@pytest.mark.slow
def test_a_stopped_process_is_noticed(alone, tmp_path):
    """SIGSTOP, as a machine that froze: its heart stops, and the others end."""
    cfg, _ = alone
    run = tmp_path / "run"
    flags = [
        *processes.train_flags(_with_steps(cfg, _ENDLESS), run),
        "--heartbeat_timeout_seconds=10",
    ]
    with processes.start("keel_jax.train", flags, tmp_path, num_processes=2) as program:
        program.wait_for_step(run, 3)
        program.processes[1].send_signal(signal.SIGSTOP)
        assert program.code(0) in LOST, program.told()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("moment", ["compile", "evaluation"])
def test_sigterm_is_honoured_while_compiling_and_validating(
    moment, num_processes, token_dir, tmp_path
):
    """Long before the end of either: with 75, and the state saved if there was a step."""
    cfg = _config(
        token_dir,
        str(tmp_path / "cache"),  # so that the step is compiled
        train=dict(num_steps=_ENDLESS, eval_every_steps=1, eval_num_batches=0, batch_size=8),
        telemetry=dict(every_steps=0 if moment == "evaluation" else 1),
    )
    run = tmp_path / "run"
    flags = processes.train_flags(cfg, run)
    with processes.start("keel_jax.train", flags, tmp_path, num_processes=num_processes) as program:
        if moment == "compile":
            program.wait_until(lambda: "recompute: " in program.told())
        else:
            program.wait_for_step(run, 1)
        program.processes[-1].send_signal(signal.SIGTERM)
        assert program.codes() == [exit_codes.PREEMPTED] * num_processes, program.told()
    status = _status(run)
    assert status["state"] == "preempted"
    if moment == "compile":
        assert status["step"] == 0 and "compiled telemetry" not in program.told()
    else:
        assert status["step"] >= 1 and (run / "checkpoints" / str(status["step"])).is_dir()
    assert events.read(run)[0][-1]["exit_code"] == exit_codes.PREEMPTED


@pytest.mark.slow
@pytest.mark.parametrize(("stuck", "limits"), [(1, (8.0, 8.0)), (1, (0.0, 8.0)), (0, (8.0, 0.0))])
def test_a_process_that_hangs_with_a_beating_heart_is_noticed(stuck, limits, alone, tmp_path):
    """One waits for its data for ever, the other for the first: both tell where they were.

    So they do if only one of them has a limit: it tells the other.
    """
    cfg, _ = alone
    run = tmp_path / "run"
    flags = [*processes.train_flags(_with_steps(cfg, _ENDLESS), run), f"--stuck_process={stuck}"]
    with processes.start(
        "tests.hanging_train",
        flags,
        tmp_path,
        num_processes=2,
        flags_of={
            number: [f"--config.runtime.step_timeout_seconds={limit}"]
            for number, limit in enumerate(limits)
        },
    ) as program:
        codes = program.codes()
    assert codes == [exit_codes.HUNG] * 2, program.told()
    for number, output in enumerate(program.outputs):
        told = output.read_text()
        report = (run / f"hangs/process_{number}.txt").read_text()
        activity = "data_wait" if number == stuck else "a step"
        for text in (told, report):
            assert f"{activity} showed no sign of life for" in text
            assert " after step " in text and "(most recent call first)" in text
            assert ("in _stuck" in text) == (number == stuck), "the stack of the culprit"
        assert f"process {number} of 2" in report
        if not limits[number]:
            assert f"process {1 - number} hangs: " in report
        assert "no report came" not in told
    status = _status(run)
    assert status["state"] == "failed" and status["exit_code"] == exit_codes.HUNG
    assert "showed no sign of life" in status["error"]
    assert events.read(run)[0][-1] == events.read(run)[0][-1] | {"event": "stop", "exit_code": 76}


@pytest.mark.slow
def test_an_error_of_one_process_is_not_the_others(alone, tmp_path):
    """The one that cannot read its tokens says so and ends with 1; the other with a lost peer."""
    cfg, _ = alone
    flags = [*processes.train_flags(cfg, tmp_path / "run"), "--heartbeat_timeout_seconds=10"]
    with processes.start("keel_jax.train", flags, tmp_path, num_processes=2, started=(0,)) as first:
        address = next(f for f in first.processes[0].args if f.startswith("--coordinator"))
        broken = [
            *flags,
            "--config.data.path=/nowhere",
            address,
            "--num_processes=2",
            "--process_id=1",
        ]
        codes = processes.run("keel_jax.train", broken, tmp_path, num_processes=1)
        assert codes == [exit_codes.ERROR]
        assert first.code(0) in LOST, first.told()


@pytest.mark.slow
def test_evaluation_in_two_processes(alone, tmp_path):
    cfg, workdir = alone
    flags = [f"--workdir={workdir}", f"--json={tmp_path / 'found.json'}"]
    with processes.start(
        "keel_jax.evaluate", flags, tmp_path, num_processes=2, devices_each=2
    ) as program:
        assert program.codes() == [0, 0], program.told()
    found = json.loads((tmp_path / "found.json").read_text())
    here = evaluate.evaluate(workdir)
    assert found["num_tokens"] == here["num_tokens"]
    # Four devices here, eight there: another order of float32 sums over the batch.
    assert found["loss_nats_per_token"] == pytest.approx(here["loss_nats_per_token"], rel=1e-6)


@pytest.mark.slow
def test_a_mesh_that_cannot_is_refused_before_anything_is_touched(alone, tmp_path):
    """By every process, with exit code 1."""
    cfg, workdir = alone
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for sizes, message in (
        (dict(data=3, fsdp=-1), "do not multiply to the 8 devices"),
        (dict(data=1, fsdp=1, tensor=8), "is not a multiple of the 8 devices"),
    ):
        flags = processes.train_flags(_with_mesh(_with_steps(cfg, 9), **sizes), copy)
        two = dict(num_processes=2, devices_each=4)
        with processes.start("keel_jax.train", flags, tmp_path, **two) as program:
            assert program.codes() == [exit_codes.ERROR] * 2, program.told()
        assert message in program.told()
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
