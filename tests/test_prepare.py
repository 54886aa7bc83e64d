"""The entry point `python -m keel_jax.prepare`: its flags, exit codes and messages."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from keel_jax import prepare
from keel_jax.data.preparing import options as preparation_options

ROOT = pathlib.Path(__file__).parents[1]


def _prepare(*flags, **options):
    return subprocess.run(
        [sys.executable, "-m", "keel_jax.prepare", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"document {i} of some words"}) for i in range(50)]
    path.write_text("\n".join(["{bad", *lines]))
    return path


def test_done_then_already_done(source, tmp_path):
    flags = [
        f"--input={source}",
        f"--output={tmp_path / 'out'}",
        "--vocab_size=300",
        "--validation_fraction=0.2",
        "--workers=2",
        "--unit_bytes=1000",
    ]
    first = _prepare(*flags)
    assert first.returncode == 0, first.stderr
    assert "out: done" in first.stdout and "bytes/token" in first.stdout
    assert "1 bad documents left out" in first.stdout and "line 1: not JSON" in first.stdout
    second = _prepare(*flags, f"--json={tmp_path / 'summary.json'}")
    assert second.returncode == 0, second.stderr
    assert "out: already done" in second.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["state"] == "already done" and summary["num_documents"] == 50
    assert summary["num_tokens"] == sum(s["num_tokens"] for s in summary["splits"].values())


def test_a_damaged_shard_is_named_and_rebuilt(source, tmp_path):
    flags = [f"--input={source}", f"--output={tmp_path / 'out'}", "--vocab_size=300"]
    assert _prepare(*flags).returncode == 0
    shard = tmp_path / "out" / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    again = _prepare(*flags)
    assert again.returncode == 0, again.stderr
    assert "train-00000.bin has sha256" in again.stderr and "out: done" in again.stdout
    assert shard.read_bytes() == content


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--vocab_siz=300"], "Did you mean: vocab_size"),
        (["--input=/nonexistent/*.txt"], "matches no file"),
        (["--tokenizer_type=word"], "bpe|unigram"),
        (["stray.txt"], "stray.txt"),
        (["--vocab_size=100"], "at least 258"),
        (["--max_bad_documents=0"], "line 1: not JSON"),
    ],
)
def test_mistakes_exit_1_with_a_message_and_no_traceback(flags, message, source, tmp_path):
    defaults = [f"--input={source}"] * (not any("input" in flag for flag in flags))
    result = _prepare(*defaults, f"--output={tmp_path / 'out'}", "--vocab_size=300", *flags)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "index.json").exists()


def test_flags_are_the_options_with_their_defaults():
    values = flags.FlagValues()
    prepare.define_flags(values)
    values(["prepare", "--input=x", "--output=y"])
    assert prepare.options_from_flags(values) == preparation_options.PreparationOptions()
    given = [
        "--tokenizer_type=unigram",
        "--tokenizer_sample_bytes=7",
        "--validation_fraction=0.5",
        "--chat_template=alpaca",
        "--pack_tokens=16",
        "--long_documents=cut",
        "--input_format=text",
        "--unit_bytes=9",
        "--max_bad_documents=1",
        "--workers=3",
        "--host_index=1",
        "--host_count=2",
        "--host_wait_seconds=0.5",
    ]
    values.unparse_flags()
    values(["prepare", "--input=x", "--output=y", "--vocab_size=300", *given])
    assert prepare.options_from_flags(values) == preparation_options.PreparationOptions(
        vocab_size=300,
        tokenizer_type="unigram",
        tokenizer_sample_bytes=7,
        validation_fraction=0.5,
        chat_template="alpaca",
        pack_tokens=16,
        long_documents="cut",
        input_format="text",
        unit_bytes=9,
        max_bad_documents=1,
        num_workers=3,
        host_index=1,
        host_count=2,
        host_wait_seconds=0.5,
    )
    values = flags.FlagValues()
    prepare.define_flags(values)
    values(["prepare", "--input=x", "--output=y", "--tokenizer=a.model", "--overwrite"])
    assert prepare.options_from_flags(values) == preparation_options.PreparationOptions(
        tokenizer_model="a.model", overwrite=True
    )


def test_missing_flags_and_help(tmp_path):
    assert "--input" in _prepare("--output=x").stderr
    assert "--vocab_size" in _prepare("--help").stdout


def test_an_unwritable_output_is_one_sentence(source):
    result = _prepare(f"--input={source}", "--output=/proc/nothing", "--vocab_size=300")
    assert result.returncode == 1
    assert "/proc/nothing" in result.stderr and "Traceback" not in result.stderr


def test_ctrl_c_ends_cleanly_and_is_continued(tmp_path):
    # On a loaded machine about one run in ten went on to its end, as if Python had dropped the
    # KeyboardInterrupt, which it does inside a finalizer. A user presses again; so does the test.
    for attempt in range(3):
        output = tmp_path / f"out{attempt}"
        command = [
            sys.executable,
            "-m",
            "keel_jax.prepare",
            "--input=embedded",
            f"--output={output}",
            "--vocab_size=400",
            "--workers=2",
            "--unit_bytes=50000",  # some 200 shards: time enough between the first and the last
        ]
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        try:
            while not list(output.glob("unit-*.json")) and time.monotonic() < deadline:
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
        finally:
            child.kill()
        if child.returncode != 0:
            break
    else:
        pytest.fail("three interrupts had no effect")
    assert child.returncode == 130
    assert "Interrupted" in errors and "Traceback" not in errors
    assert not (output / "index.json").exists() and not list(output.glob("*.tmp-*"))
    subprocess.run(
        [*command, f"--json={tmp_path / 'summary.json'}"], cwd=ROOT, check=True, timeout=120
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["state"] == "done" and summary["num_units_reused"] > 0
