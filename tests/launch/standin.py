"""Stand-ins for gcloud, kubectl, xpk and Slurm, for the launchers' tests.

Each answers as the real one does (its flags, its words, its exit codes), keeps what it created in
`resources.json` of the directory STANDIN, and writes every call to `calls.jsonl`. What is to go
wrong stands in `faults.json`, a list of

    {"match": regex on the command line, "times": N, "after": calls to let pass first,
     "code": exit code, "stderr": …, "stdout": …, "effect": whether it does its work all the same,
     "preempt": true to take all machines away before, "sleep": seconds}

A worker is a directory `hosts/NODE-w-I`: its home. ssh runs what it is given there, so that
worker.sh and supervise.sh are the real ones.

This file runs some thousand times in a test run: without site-packages, and with few imports, the
dearer ones only where they are needed.
"""

import fcntl
import json
import os
import re
import signal
import sys
import time

ROOT = os.environ["STANDIN"]
WORKERS = int(os.environ.get("STANDIN_WORKERS", "1"))


class Refused(Exception):
    """Ends the command: exit code and what it says."""

    def __init__(self, code: int, stderr: str):
        super().__init__(stderr)
        self.code, self.stderr = code, stderr


def _path(*parts: str) -> str:
    return os.path.join(ROOT, *parts)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


class _file:  # noqa: N801  (used like a function: with _file(name, default) as value)
    """A JSON file's value, written back at the end; one process at a time."""

    def __init__(self, name: str, default):
        self._path, self._value = _path(f"{name}.json"), default

    def __enter__(self):
        self._lock = open(self._path + ".lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if os.path.exists(self._path):
            self._value = json.loads(_read(self._path))
        return self._value

    def __exit__(self, *_):
        with open(self._path, "w") as file:
            json.dump(self._value, file)
        self._lock.close()


def main(program: str) -> int:
    argv = sys.argv[1:]
    line = " ".join([program, *argv])
    with open(_path("calls.jsonl"), "a") as calls:
        calls.write(json.dumps([program, *argv]) + "\n")
    fault = _fault(line)
    try:
        if fault.get("sleep"):
            time.sleep(fault["sleep"])
        if fault.get("preempt"):
            _preempt()
        if not fault or fault.get("effect"):
            _PROGRAMS[program](argv)
    except Refused as error:
        print(error.stderr, file=sys.stderr)
        return error.code
    print(fault.get("stdout", ""), end="")
    if fault.get("stderr"):
        print(fault["stderr"], file=sys.stderr)
    return fault.get("code", 0)


def _fault(line: str) -> dict:
    with _file("faults", []) as faults:
        for fault in faults:
            if not re.search(fault["match"], line) or fault.get("times", 1) < 1:
                continue
            if fault.get("after", 0) > 0:
                fault["after"] -= 1
                continue
            fault["times"] = fault.get("times", 1) - 1
            return fault
    return {}


def _parse(argv, flags: set[str], switches: set[str] = frozenset()) -> tuple[list[str], dict]:
    """Words and flags; refuses what the real program does not know."""
    words, found = [], {}
    for arg in argv:
        name, equals, value = arg.partition("=")
        if not arg.startswith("-"):
            words.append(arg)
        elif (name in flags and equals) or (name in switches and not equals):
            found[name] = value
        else:
            raise Refused(2, f"ERROR: unrecognized arguments: {arg}")
    return words, found


def _need(found: dict, *names: str):
    for name in names:
        if name not in found:
            raise Refused(2, f"ERROR: argument {name}: Must be specified.")


# --- gcloud: SDK 528.0.0, lib/surface/compute/tpus ------------------------------------------------

_PLACE = {"--zone", "--project", "--format"}
_CREATE = {
    "tpu-vm": {"--accelerator-type", "--version", "--network"},
    "queued-resources": {
        "--accelerator-type",
        "--runtime-version",
        "--node-id",
        "--node-count",
        "--node-prefix",
        "--network",
    },
}
_STATES = {"tpu-vm": ("READY", "PREEMPTED"), "queued-resources": ("ACTIVE", "SUSPENDED")}


def gcloud(argv):
    if argv[:2] == ["storage", "cp"]:
        words, _ = _parse(argv[2:], set(), {"--quiet"})
        target = _path("buckets", words[1].removeprefix("gs://"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _copy(words[0], target)
        return
    assert argv[:2] == ["compute", "tpus"], argv
    kind, verb, rest = argv[2], argv[3], argv[4:]
    if kind == "tpu-vm" and verb in ("ssh", "scp"):
        _remote(verb, rest)
        return
    switches = {"--quiet", "--spot", "--reserved", "--force"}
    words, found = _parse(rest, _PLACE | _CREATE[kind], switches)
    _need(found, "--zone")
    (name,) = words
    error = f"ERROR: (gcloud.compute.tpus.{kind}.{verb})"
    path = "nodes" if kind == "tpu-vm" else "queuedResources"
    resource = f"'projects/p/locations/{found['--zone']}/{path}/{name}'"
    with _file("resources", {}) as resources:
        key = f"{kind}/{name}"
        if verb == "create":
            _need(
                found,
                "--accelerator-type",
                "--version" if kind == "tpu-vm" else "--runtime-version",
            )
            if key in resources:
                raise Refused(1, f"{error} ALREADY_EXISTS: Resource {resource} already exists")
            nodes = [name]
            if kind == "queued-resources":
                if ("--node-id" in found) == ("--node-count" in found):
                    raise Refused(2, f"{error} Exactly one of (--node-id | --node-count) …")
                if "--node-count" in found:
                    count = int(found["--node-count"])
                    if count <= 1:
                        raise Refused(2, f"{error} Node count must be greater than 1")
                    nodes = [f"{found['--node-prefix']}-{i}" for i in range(count)]
            with _file("states", {}) as states:
                coming = states.get(kind, [])
            resources[key] = {"states": [*coming, _STATES[kind][0]], "nodes": nodes}
            for node in nodes:
                for worker in range(WORKERS):
                    os.makedirs(_path("hosts", f"{node}-w-{worker}"))
        elif key not in resources:
            raise Refused(1, f"{error} NOT_FOUND: Resource {resource} was not found")
        elif verb == "describe":
            states = resources[key]["states"]
            print(states[0] if "--format" in found else f"name: {name}\nstate: {states[0]}")
            if len(states) > 1 and "--format" in found:
                states.pop(0)
        elif verb == "delete":
            if kind == "queued-resources" and "--force" not in found:
                raise Refused(1, f"{error} FAILED_PRECONDITION: has nodes; use --force")
            _end_hosts(resources.pop(key)["nodes"])
        else:
            raise Refused(2, f"{error} Invalid choice: {verb!r}")


def _copy(source: str, target: str):
    with open(source, "rb") as old, open(target, "wb") as new:
        new.write(old.read())


def _hosts(node: str) -> list[str]:
    names = os.listdir(_path("hosts"))
    return sorted(name for name in names if name.startswith(f"{node}-w-"))


def _end_hosts(nodes):
    """A deleted machine's processes end, and its disk is gone."""
    for node in nodes:
        for host in _hosts(node):
            pid = _path("hosts", host, "keel/pid")
            try:
                os.killpg(int(_read(pid)), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
            # Not removed: that would take longer than all the rest.
            os.rename(_path("hosts", host), _path("gone", f"{host}-{time.monotonic_ns()}"))


def _preempt():
    with _file("resources", {}) as resources:
        for key, resource in resources.items():
            resource["states"] = [_STATES[key.split("/")[0]][1]]
            _end_hosts(resource["nodes"])


def _remote(verb, rest):
    words, found = _parse(
        rest, {"--zone", "--project", "--worker", "--command"}, {"--quiet", "--internal-ip"}
    )
    _need(found, "--zone", "--worker")
    node = words[-1].rstrip(":")
    hosts = _hosts(node)
    if not hosts:
        raise Refused(1, f"ERROR: (gcloud.compute.tpus.tpu-vm.{verb}) NOT_FOUND: nodes/{node}")
    codes = []
    for worker, host in enumerate(hosts):
        if verb == "scp":
            _copy(words[0], _path("hosts", host, os.path.basename(words[0])))
            continue
        fault = _fault(f"on {host}: {found['--command']}")
        code = fault.get("code")
        if not fault:
            code = _bash(found["--command"], host)
        codes.append(code)
        if code:
            print(
                f"##### Command execution on worker {worker} failed with exit status {code}. "
                "Continuing.",
                file=sys.stderr,
            )
    if any(codes):
        raise Refused(next(code for code in codes if code), "")


def _bash(command: str, host: str) -> int:
    """Runs a command in a worker's home."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.chdir(_path("hosts", host))
        os.environ.update(HOME=os.getcwd(), KEEL_TEST_HOST=host)
        os.execvp("bash", ["bash", "-c", command])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- kubectl and xpk ------------------------------------------------------------------------------


def kubectl(argv):
    argv = [arg for arg in argv if not arg.startswith(("--namespace=", "--context="))]
    verb, rest = argv[0], argv[1:]
    with _file("resources", {}) as resources:
        if verb == "create" and rest[0] == "configmap":
            words, _ = _parse(
                [arg for arg in rest[1:] if not arg.startswith("--from-file=")], set()
            )
            for arg in rest[1:]:
                if arg.startswith("--from-file="):
                    assert os.path.exists(arg.partition("=")[2]), arg
            _create(resources, "configmap", words[0], {})
        elif verb == "create":
            assert rest == ["-f", "-"], rest
            manifest = json.loads(sys.stdin.read())
            assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
            _create(resources, "jobset", manifest["metadata"]["name"], {"looks": 0})
        elif verb == "get" and rest[0] == "pods":
            _parse(rest[1:], {"--selector", "--output"})
            with _file("pods", []) as codes:
                print("\n".join(map(str, codes)))
        elif verb == "get":
            words, found = _parse(rest, {"--output"}, {"--ignore-not-found"})
            keys = [f"{kind}/{words[1]}" for kind in words[0].split(",")]
            there = [key for key in keys if key in resources]
            if not there and "--ignore-not-found" not in found:
                raise Refused(1, f'Error from server (NotFound): jobsets "{words[1]}" not found')
            if found.get("--output") == "json":
                with _file("jobset", []) as statuses:
                    status = statuses[0]
                    if len(statuses) > 1:
                        statuses.pop(0)
                print(json.dumps({"status": status}))
            else:
                print("\n".join(there))
        elif verb == "logs":
            _parse(
                rest,
                {"--selector", "--tail", "--max-log-requests"},
                {"--prefix", "--ignore-errors"},
            )
            print("[pod/a/train] step 1")
        elif verb == "delete":
            words, _ = _parse(rest, set(), {"--ignore-not-found"})
            for kind in words[0].split(","):
                resources.pop(f"{kind}/{words[1]}", None)
        else:
            raise Refused(1, f"error: unknown command {verb!r}")


def _create(resources, kind, name, value):
    if f"{kind}/{name}" in resources:
        raise Refused(1, f'Error from server (AlreadyExists): {kind}s "{name}" already exists')
    resources[f"{kind}/{name}"] = value
    print(f"{kind}/{name} created")


def xpk(argv):
    """AI-Hypercomputer/xpk: src/xpk/parser/workload.py, core/workload.py."""
    assert argv[0] == "workload", argv
    shared = {"--cluster", "--zone", "--project"}
    with _file("resources", {}) as resources:
        if argv[1] == "create":
            _, found = _parse(
                argv[2:],
                shared
                | {
                    "--workload",
                    "--tpu-type",
                    "--num-slices",
                    "--base-docker-image",
                    "--script-dir",
                    "--max-restarts",
                    "--restart-on-exit-codes",
                    "--command",
                },
                {"--spot"},
            )
            _need(found, "--cluster", "--workload", "--command", "--tpu-type")
            if f"workload/{found['--workload']}" in resources:
                print(
                    f"[XPK] {found['--workload']} already exists, XPK will not create this "
                    "workload. Please pick a new workload name"
                )
                raise Refused(1, "")
            resources[f"workload/{found['--workload']}"] = {}
        elif argv[1] == "list":
            _, found = _parse(
                argv[2:],
                shared
                | {
                    "--wait-for-job-completion",
                    "--timeout",
                    "--filter-by-status",
                    "--filter-by-job",
                },
            )
            if "--filter-by-status" in found:
                print("Jobset Name   Created Time   Priority")
                return
            if f"workload/{found['--wait-for-job-completion']}" not in resources:
                raise Refused(1, "")
        elif argv[1] == "delete":
            _, found = _parse(argv[2:], shared | {"--workload"}, {"--force"})
            _need(found, "--workload")  # without it xpk deletes them all
            resources.pop(f"workload/{found['--workload']}", None)
        else:
            raise Refused(2, f"xpk: invalid choice {argv[1]!r}")


# --- Slurm ----------------------------------------------------------------------------------------


def sbatch(argv):
    words, _ = _parse(argv, set(), {"--parsable"})
    script = _read(words[0])
    name = re.search(r"^#SBATCH --job-name=(.+)$", script, re.MULTILINE)[1]
    with _file("resources", {}) as resources:
        resources[f"job/{name}"] = {"id": 77}
    print("77;cluster")


def sacct(argv):
    _parse(argv, {"--jobs", "--format"}, {"--allocations", "--noheader", "--parsable2"})
    with _file("sacct", ["COMPLETED|0:0"]) as states:
        print(states[0])
        if len(states) > 1:
            states.pop(0)
    if "PENDING" not in states[0] and "RUNNING" not in states[0]:
        with _file("resources", {}) as resources:
            resources.clear()


def squeue(argv):
    _, found = _parse(argv, {"--name", "--format"}, {"--me", "--noheader"})
    with _file("resources", {}) as resources:
        if f"job/{found['--name']}" in resources:
            print("RUNNING")


def scancel(argv):
    """Deletes a job; or signals all processes of a step, as the real one does."""
    words, found = _parse(argv, {"--name", "--signal"}, {"--me"})
    if "--signal" in found:
        assert words == [f"{os.environ['SLURM_JOB_ID']}.0"], words
        with _file("step", []) as groups:
            for group in groups:
                os.killpg(group, getattr(signal, f"SIG{found['--signal']}"))
        return
    with _file("resources", {}) as resources:
        resources.pop(f"job/{found['--name']}", None)


def scontrol(argv):
    assert argv[0] == "requeue", argv


def srun(argv):
    """Runs the tasks; the highest exit code. On SIGTERM it kills them ("forcing termination")."""
    while argv[0].startswith("--"):
        _parse([argv.pop(0)], {"--kill-on-bad-exit", "--wait", "--output", "--open-mode"})
    tasks = []
    for task in range(WORKERS):
        tasks.append(os.fork())
        if tasks[-1] == 0:
            os.setpgid(0, 0)
            os.environ["SLURM_PROCID"] = str(task)
            os.execvp(argv[0], argv)
    with _file("step", []) as groups:
        groups[:] = tasks
    signal.signal(signal.SIGTERM, lambda *_: [os.killpg(task, signal.SIGKILL) for task in tasks])
    code = max(os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks)
    if code:
        raise Refused(code, f"srun: error: task exited with exit code {code}")


_PROGRAMS = {
    function.__name__: function
    for function in (gcloud, kubectl, xpk, sbatch, sacct, squeue, scancel, scontrol, srun)
}
