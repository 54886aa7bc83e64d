"""Programs that are right pass; those that are wrong, cheat or attack do not, and leave nothing.

Every attack runs under limits far below what the machine has. Where only the process's user would
stop an attack (root's files from nobody), what it attacks is made accessible to everybody, so that
it meets the confinement itself.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

from keel_jax.tasks import confinement

LIMITS = confinement.Limits(seconds=20, memory_bytes=256 << 20, file_bytes=4 << 20)
SHORT = confinement.Limits(seconds=0.3, memory_bytes=128 << 20, file_bytes=1 << 20)
IS_ROOT = os.geteuid() == 0


def _run(program: str, limits=LIMITS) -> confinement.Verdict:
    verdict = confinement.run(textwrap.dedent(program), limits, allow_root=IS_ROOT)
    assert not _inside()
    return verdict


def _inside() -> list[int]:
    """Processes that run in a scratch directory, which is their working directory."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if "/keel_confined_" in os.readlink(process / "cwd"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture
def outside():
    """A directory in which every user may do everything, with a file that every user may write."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="keel_outside_"))
    directory.chmod(0o777)
    (directory / "file").write_text("as it was")
    (directory / "file").chmod(0o666)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    "program",
    [
        "def add(a, b):\n    return a + b\nassert add(1, 2) == 3\n",
        "",
        # Names are found where the standard library looks for them.
        """
        from __future__ import annotations
        import dataclasses, pickle, typing
        @dataclasses.dataclass
        class Point:
            x: int
            y: typing.ClassVar[Point | None] = None
        assert typing.get_type_hints(Point)["x"] is int
        assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
        """,
        # Files of its own.
        """
        import os, tempfile
        with open("a.txt", "w") as file:
            file.write("é" * 1000)
        assert open("a.txt").read() == "é" * 1000 and os.listdir() == ["a.txt"]
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        os.remove("a.txt")
        """,
        """
        import threading
        found = []
        threads = [threading.Thread(target=found.append, args=[i]) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert sorted(found) == list(range(8))
        """,
        "for _ in range(100_000): print('x' * 100)",
        "import sys\nassert sys.stdin.read() == ''",
        # The environment is empty, and no descriptor is inherited.
        """
        import os
        assert set(os.environ) == {"PYTHONHASHSEED", "TMPDIR", "LANG"}
        """,
        "import json, re, math, collections, decimal, random, hashlib, datetime, heapq, statistics",
        f"x = {'a' * 200_000!r}",  # longer than a pipe
        # Who hides what the end is reported with, hides it from himself alone.
        """
        import builtins, os, sys
        os.write = os._exit = builtins.exec = sys.exit = None
        """,
        # What cannot be started does no harm to who goes on without it.
        """
        import os
        for _ in range(100):
            try:
                os.fork()
            except PermissionError:
                pass
        """,
    ],
)
def test_right_programs_pass(program):
    assert _run(program) == confinement.Verdict(True, "passed")


def test_a_thread_that_never_ends_is_not_waited_for():
    begin = time.monotonic()
    program = "import threading\nthreading.Thread(target=threading.Event().wait).start()"
    assert _run(program, confinement.Limits(seconds=60)).passed
    assert time.monotonic() - begin < 50


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "def add(a, b):\n    return a - b\nassert add(1, 2) == 3",
            "AssertionError: assert add(1, 2) == 3 (line 3)",
        ),
        ("x = 1\nassert x == 2, 'x is 1'", "AssertionError: x is 1 (line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (line 2)"),
        ("import builtins\nbuiltins.AssertionError = ValueError\nassert False", "AssertionError"),
        ("\0", "source code string cannot contain null bytes"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt (line 1)"),
        ("import numpy", "No module named 'numpy'"),
        ("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "cannot be printed"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_wrong_program_fails_with_its_error(program, reason):
    verdict = _run(program)
    assert not verdict.passed and reason in verdict.reason


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os, atexit\natexit.register(os._exit, 0)\nraise SystemExit(0)",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os, threading, time\nthreading.Thread(target=os._exit, args=[0]).start()\n"
        "time.sleep(9)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        # What the end would report, without the secret, to every descriptor.
        """
        import os
        for message in (b"ready\\n", b"0" * 32):
            for number in range(64):
                try: os.write(number, message)
                except OSError: pass
        os._exit(0)
        """,
        # What this process has already been told, told again.
        """
        import sys
        frame = sys._getframe()
        while frame.f_back: frame = frame.f_back
        for number in range(64):
            try: frame.f_globals["os"].write(number, frame.f_globals["_secret"]())
            except (EOFError, OSError): pass
        frame.f_globals["os"]._exit(0)
        """,
        # Bytes that become others when they are joined.
        """
        import sys
        class Evil:
            def encode(self, errors): return self
            def __getitem__(self, place): return self
            def __radd__(self, other): return b"passed "
        frame = sys._getframe()
        while frame.f_back: frame = frame.f_back
        frame.f_globals["_reason"] = lambda *_: Evil()
        1 / 0
        """,
        # A handler that runs in the frame which reports.
        """
        import signal, time
        signal.signal(signal.SIGALRM, lambda _, frame: frame.f_locals.update(error=None))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.01)
        time.sleep(0.3)
        raise SystemExit
        """,
        # A trace function could make a frame jump over the tests.
        "import sys\nsys.settrace(lambda *_: None)\nassert True",
        "import sys\nsys.setprofile(lambda *_: None)\nassert True",
        "import threading, sys\nthreading.settrace(print)\nt = threading.Thread(target=print)\n"
        "t.start()\nt.join()\nimport os\nos._exit(0)",
        # The hook that refuses these, with another code.
        """
        import gc, sys
        [hook] = [f for f in gc.get_objects() if getattr(f, "__name__", "") == "_refuse"]
        hook.__globals__["_refuse"] = None
        hook.__code__ = (lambda event, arguments: None).__code__
        """,
    ],
)
def test_a_program_that_ends_early_or_forges_its_end_fails(program):
    assert not _run(program).passed


def test_the_secret_is_in_no_object_that_a_program_can_find():
    """In no frame, in nothing that the collector knows, and not in what those refer to."""
    verdict = _run(
        """
        import gc, sys
        # Line tables are bytes, too.
        is_secret = lambda x: type(x) is bytes and len(x) == 32 and not x.isascii()
        places, frame = list(gc.get_objects()), sys._getframe()
        while frame:
            places += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
            frame = frame.f_back
        found = [x for x in gc.get_referents(*places) if is_secret(x)]
        for place in places:
            if type(place) in (dict, list, tuple):
                values = place.values() if type(place) is dict else place
                found += [x for x in values if is_secret(x)]
        assert not found, found
        """
    )
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "while True: print('x' * 10_000)",
        "import os\nos.kill(os.getpid(), 19)",  # SIGSTOP
        """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        while True:
            try:
                while True: signal.alarm(0)
            except BaseException:
                pass
        """,
        # One digit after another, in C.
        "10 ** 10 ** 10",
    ],
)
def test_what_runs_for_ever_is_stopped(program):
    begin = time.monotonic()
    assert _run(program, SHORT) == confinement.Verdict(False, "did not end within 0.3 s")
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        # Memory.
        ("x = [0] * 10 ** 10", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
        ("import mmap\nmmap.mmap(-1, 10 << 30)", "Cannot allocate memory"),
        ("import faulthandler\nfaulthandler._sigsegv()", "was ended by SIGSEGV"),
        # Raw memory: ctypes, and an extension module of the program's own.
        ("import ctypes", "_ctypes is not available here"),
        (
            """
            import importlib.machinery as m, importlib.util, os
            open("x.so", "wb").write(b"\\x7fELF")
            loader = m.ExtensionFileLoader("x", os.path.abspath("x.so"))
            importlib.util.module_from_spec(importlib.util.spec_from_loader("x", loader))
            """,
            "x is not available here",
        ),
        # Processes.
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import os\nif os.fork() == 0:\n  os.setsid()\n  os.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['/bin/true'])", "PermissionError"),
        ("import os\nos.posix_spawn('/bin/true', ['true'], {})", "PermissionError"),
        ("import os\nos.system('true') == 0 or 1 / 0", "ZeroDivisionError"),
        (
            "import multiprocessing as m\np = m.get_context('fork').Process()\np.start()",
            "PermissionError",
        ),
        (
            "import threading\n"
            "while True: threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "can't start new thread",
        ),
        # Disk.
        ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "File too large"),
        ("import os\nos.truncate(os.open('x', 66), 10 << 30)", "File too large"),
        ("i = 0\nwhile True:\n  i += 1\n  open(str(i), 'w').write('x')", "made more than 32 files"),
        (
            "for i in range(20):\n  open(str(i), 'wb').write(bytes(1 << 20))\nwhile True: pass",
            "wrote more than 4194304 bytes",
        ),
        ("import os\nos.mkdir('x')", "PermissionError"),
        ("import os\nos.symlink('/etc', 'x')", "PermissionError"),
        ("import os\nos.mkfifo('x')", "PermissionError"),
        # Sockets.
        ("import socket\nsocket.socket()", "PermissionError"),
        ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
        ("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "PermissionError"),
        ("import socket\nsocket.socketpair()", "PermissionError"),
        ("import urllib.request as u\nu.urlopen('http://127.0.0.1:9', timeout=1)", "not permitted"),
        # Other processes.
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("import os\nos.kill(-1, 0)", "PermissionError"),
        ("import os\nos.kill(0, 9)", "PermissionError"),
        ("import os\nos.killpg(os.getpgid(0), 9)", "PermissionError"),
        ("import os\nos.pidfd_open(os.getppid())", "PermissionError"),
        ("import os, fcntl\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())", "PermissionError"),
        ("import os, resource as r\nr.prlimit(os.getppid(), r.RLIMIT_NOFILE)", "PermissionError"),
        ("import os\nos.setpriority(os.PRIO_USER, 0, 19)", "PermissionError"),
        ("import os\nos.sched_setaffinity(os.getppid(), [0])", "PermissionError"),
        ("import os\nopen(f'/proc/{os.getppid()}/environ')", "PermissionError"),
        ("open('/proc/self/mem', 'rb')", "PermissionError"),
        ("open('/proc/self/maps')", "PermissionError"),
        ("import os\nos.memfd_create('x')", "PermissionError"),
        ("open('/etc/passwd')", "PermissionError"),
        ("import os\nos.setuid(0)\nopen('/root/x', 'w')", "PermissionError"),
        ("import os\nos.listdir('/')", "PermissionError"),
    ],
)
def test_attacks_are_stopped_and_scored_wrong(program, reason):
    verdict = _run(program)
    assert not verdict.passed and reason in verdict.reason


@pytest.mark.parametrize(
    "attack",
    [
        "open(f'{there}/file', 'w')",
        "open(f'{there}/file', 'a')",
        "open(f'{there}/file', 'r+')",
        "open(f'{there}/new', 'w')",
        "os.open(f'{there}/file', os.O_RDONLY | os.O_TRUNC)",
        "os.truncate(f'{there}/file', 0)",
        "os.unlink(f'{there}/file')",
        "os.rename(f'{there}/file', f'{there}/moved')",
        "os.rename(f'{there}/file', 'moved')",
        "os.link(f'{there}/file', 'linked')",
        "os.symlink('file', f'{there}/new')",
        "os.mkdir(f'{there}/new')",
        "os.chmod(f'{there}/file', 0)",
        "os.utime(f'{there}/file', (0, 0))",
        "os.setxattr(f'{there}/file', 'user.x', b'1')",
        "os.unlink(f'../{os.path.basename(there)}/file')",
        "shutil.rmtree(there)",
        "open(f'{there}/file').read()",
    ],
)
def test_nothing_outside_of_the_scratch_directory_is_touched_or_read(outside, attack):
    if attack.startswith(("os.chmod", "os.utime", "os.setxattr")) and IS_ROOT:
        # These need the file's owner.
        os.chown(outside / "file", confinement._NOBODY, -1)
    before = (outside / "file").stat()
    verdict = _run(f"import os, shutil\nthere = {str(outside)!r}\n{attack}")
    # Of a link between directories, Landlock says that they are on different devices.
    assert verdict.reason.startswith(("PermissionError", "OSError: [Errno 18]"))
    assert [path.name for path in outside.iterdir()] == ["file"]
    after = (outside / "file").stat()
    assert (outside / "file").read_text() == "as it was"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@pytest.mark.parametrize("where", ["/tmp", "/dev/shm", "/var/tmp"])
def test_the_places_where_everybody_may_write_are_closed(where):
    name = f"{where}/keel_confined_test_{os.getpid()}"
    assert "PermissionError" in _run(f"open({name!r}, 'w')").reason
    assert not os.path.exists(name)


def test_nobody_connects_to_a_server_on_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert "PermissionError" in _run(program).reason
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_scratch_directory_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for program in ("open('x', 'w').write('x')", "open('x', 'w')\nwhile True: pass", "1 / 0"):
        _run(program, SHORT)
        assert not list(tmp_path.iterdir())


def test_a_program_does_not_outlive_who_scores_it():
    code = (
        "from keel_jax.tasks import confinement\n"
        "limits = confinement.Limits(seconds=60)\n"
        f"confinement.run('while True: pass', limits, allow_root={IS_ROOT})"
    )
    scorer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not _inside():
        assert scorer.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    scorer.send_signal(signal.SIGKILL)
    scorer.wait()
    while _inside():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for left in pathlib.Path(tempfile.gettempdir()).glob("keel_confined_*"):
        shutil.rmtree(left)  # the killed scorer could not


def test_where_programs_cannot_be_confined_they_are_not_run(monkeypatch, outside):
    program = "1 / 0"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(ValueError, match="cannot be confined on darwin"):
            confinement.run(program)
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "riscv64")
        with pytest.raises(ValueError, match="riscv64.*on Linux on x86_64 or aarch64"):
            confinement.run(program)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        with pytest.raises(ValueError, match="not run as root.*as user 65534"):
            confinement.run(program)
    # A kernel that refuses the filter.
    monkeypatch.setattr("keel_jax.tasks.syscall_filter.program", lambda *_: b"\xff" * 8)
    with pytest.raises(ValueError, match="could not be confined, and was not run: OSError"):
        confinement.run(program, allow_root=IS_ROOT)


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_root_runs_programs_as_nobody():
    program = "import os\nassert os.getresuid() == os.getresgid() == (65534,) * 3\n"
    verdict = _run(program + "assert os.getgroups() == []\n")
    assert verdict.passed, verdict.reason
