"""How an entry point ends: exit codes, and whose mistake is told how; each in its own process."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from keel_jax.runtime import exit_codes

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = """
import json
from absl import flags
from keel_jax import config, errors
from keel_jax.runtime import cli
STEPS = flags.DEFINE_integer("steps", 1, "")
RATE = flags.DEFINE_float("rate", 1.0, "")

def main(_):
    {body}

cli.run(main)
"""


def _run(body: str, *flags: str, **env: str):
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(body=body), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", exit_codes.DONE),
        ("return 75", exit_codes.PREEMPTED),
        ("return 3", exit_codes.DIVERGED),
    ],
)
def test_the_code_is_what_main_returns(body, code):
    done = _run(body)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise errors.UserError('Give a path.')", "error: Give a path.\n"),
        ("config.from_config_dict(dict(seed=-1))", "error: seed=-1 must lie in [0, 2^32).\n"),
        ("open('/nowhere/file')", "error: [Errno 2] No such file or directory: '/nowhere/file'\n"),
    ],
)
def test_the_users_mistake_is_told_without_a_traceback(body, message):
    done = _run(body)
    assert (done.returncode, done.stderr) == (exit_codes.ERROR, message)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        # In a library of Python and in one of C, called from our own code.
        ("json.loads('{')", "JSONDecodeError"),
        ("int('x')", "ValueError: invalid literal"),
        ("raise KeyError('ours')", "KeyError: 'ours'"),
        ("raise ValueError('ours')", "ValueError: ours"),
    ],
)
def test_our_mistake_keeps_its_traceback(body, kind):
    done = _run(body)
    assert done.returncode == exit_codes.ERROR
    assert "Traceback" in done.stderr and kind in done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--stesp=2", "Unknown command line flag 'stesp'"),
        ("--steps=x", "--steps"),
        ("--rate=nan", "--rate=nan must be a finite number"),
        ("--rate=-inf", "--rate=-inf must be a finite number"),
        ("steps=2", "Unexpected argument 'steps=2'"),
    ],
)
def test_a_wrong_flag_is_told_without_a_traceback(flag, message):
    done = _run("pass", flag)
    assert done.returncode == exit_codes.ERROR
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_what_a_terminal_cannot_show_is_printed_as_an_escape(env):
    done = _run(r"print('\u03b1 \udcff'); raise errors.UserError('\u03b1 \udcff')", **env)
    assert done.returncode == exit_codes.ERROR
    assert done.stdout in ("\\u03b1 \\udcff\n", "α \\udcff\n")  # C may be coerced to UTF-8
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


_CONFIG_SCRIPT = """
from keel_jax import config
from keel_jax.runtime import cli
CONFIG = cli.define_config()
cli.run(lambda _: print(config.from_config_dict(CONFIG.value).model.head_dim))
"""
_GOOD_CONFIG = """
from keel_jax import config

def get_config():
    c = config.default()
    c.train.num_steps = 1000
    return c
"""


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            "def get_config():\n    return (\n",
            (),
            "error: The config file {} is not Python, line 2: SyntaxError: '(' was never closed.",
        ),
        (
            "def get_config():\n    return dict(a=1)['b']\n",
            (),
            "error: The config file {} fails in line 2: KeyError: 'b'.",
        ),
        (
            "import nowhere\n",
            (),
            "error: The config file {} fails in line 1: ModuleNotFoundError: ",
        ),
        ("x = 1\n", (), "error: The config file {} has no function get_config(), which"),
        (None, (), "error: There is no config file {}: --config names a Python file"),
        (
            _GOOD_CONFIG,
            ("--config.model.head_dim=None",),
            "error: --config.model.head_dim=None: this option has no None; leave the flag out",
        ),
        (
            _GOOD_CONFIG,
            ("--config.optim.peek_lr=1",),
            'error: \'peek_lr\' Did you mean "peak_lr" instead of "peek_lr"?',
        ),
        (
            _GOOD_CONFIG,
            ("--config.optim.peak_lr=inf",),
            "error: --config.optim.peak_lr=inf must be a finite number.",
        ),
        (
            _GOOD_CONFIG.replace("c.train.num_steps = 1000", "c.model.head_dim = None"),
            (),
            "error: model.head_dim=None: expected int.",
        ),
    ],
)
def test_a_mistake_in_a_config_is_told_without_a_traceback(text, flags, message, tmp_path):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", _CONFIG_SCRIPT, f"--config={path}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_codes.ERROR
    assert done.stderr.startswith(message.format(path)), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 2


_LOOP = """
import time
from keel_jax.runtime import cli, exit_codes, stop

def main(_):
    with stop.StopRequest() as request:
        print("ready", flush=True)
        while not request.asked() or {stubborn}:
            time.sleep(0.01)
    return exit_codes.PREEMPTED

cli.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stubborn", [False, True])
def test_one_signal_asks_and_a_second_ends_at_once(number, stubborn):
    process = subprocess.Popen(
        [sys.executable, "-c", _LOOP.format(stubborn=stubborn)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        # The blank line, and then that it was heard: the second signal is a second one.
        told = process.stderr.readline() + process.stderr.readline()
        assert told == f"\n{number.name}: saving, then exiting; once more to exit at once.\n"
        if stubborn:
            time.sleep(1.2)  # sooner it would pass for an echo of the first
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-number if stubborn else exit_codes.PREEMPTED), errors
    assert "Traceback" not in errors


_ENDING = """
import atexit, time
from keel_jax.runtime import cli, exit_codes, stop

def wait():
    print("ready", flush=True)
    for _ in range(600):  # a signal just before a sleep does not end it
        time.sleep(0.1)

def main(_):
    with stop.StopRequest() as request:
        request.saved(exit_codes.PREEMPTED)
        {where}
    return exit_codes.PREEMPTED

cli.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["wait()", "atexit.register(wait)"])
def test_a_signal_after_everything_is_saved_keeps_the_exit_code(number, where):
    """While figures are drawn, and while the interpreter cleans up."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDING.format(where=where)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, errors) == (exit_codes.PREEMPTED, "")


def test_an_error_of_the_disk_in_a_thread_has_no_traceback():
    body = (
        "import threading; t = threading.Thread(target=open, args=['/none/x']); t.start(); t.join()"
    )
    done = _run(body)
    assert done.returncode == exit_codes.DONE
    assert done.stderr == "error: [Errno 2] No such file or directory: '/none/x'\n"


def test_what_the_storage_library_logs_and_raises_is_said_once():
    body = (
        "import logging, threading, _thread, time, sys\n"
        "    def log(path):\n"
        "        record = logging.LogRecord('absl', logging.ERROR, path, 1, 'said', (), None)\n"
        "        try:\n"
        "            raise ValueError('full')\n"
        "        except ValueError:\n"
        "            record.exc_info = sys.exc_info()\n"
        "        logging.getLogger().handle(record)\n"
        "    log('/site-packages/orbax/checkpoint/future.py')\n"
        "    log('/elsewhere/future.py')\n"
        "    class Failing:\n"
        "        def __init__(self, text): self.text = text\n"
        "        def __del__(self): raise RuntimeError(self.text)\n"
        "    for text in ('Event loop is closed', 'something else'): Failing(text)\n"
    )
    done = _run(body)
    assert done.returncode == exit_codes.DONE
    assert done.stderr.count("ValueError: full") == 1
    assert "Event loop" not in done.stderr and "RuntimeError: something else" in done.stderr
