"""gcloud compute tpus, and storage cp (SDK 528.0.0, lib/surface/compute/tpus).

A worker is a directory `hosts/NODE-w-I`: its home. ssh runs the given command there, so that
worker.sh and supervise.sh are the real ones.
"""

import os
import signal
import sys
import time

from standins import state

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


def gcloud(argv: list[str]) -> None:
    if argv[:2] == ["storage", "cp"]:
        words, _ = state.parse_flags(argv[2:], set(), {"--quiet"})
        target = state.path("buckets", words[1].removeprefix("gs://"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _copy(words[0], target)
        return
    assert argv[:2] == ["compute", "tpus"], argv
    kind, verb, rest = argv[2], argv[3], argv[4:]
    if kind == "tpu-vm" and verb in ("ssh", "scp"):
        _connect(verb, rest)
        return
    switches = {"--quiet", "--spot", "--reserved", "--force"}
    words, flags = state.parse_flags(rest, _PLACE | _CREATE[kind], switches)
    state.require_flags(flags, "--zone")
    (name,) = words
    error = f"ERROR: (gcloud.compute.tpus.{kind}.{verb})"
    path = "nodes" if kind == "tpu-vm" else "queuedResources"
    resource = f"'projects/p/locations/{flags['--zone']}/{path}/{name}'"
    with state.JsonFile("resources", {}) as resources:
        key = f"{kind}/{name}"
        if verb == "create":
            if key in resources:
                raise state.Refused(
                    1, f"{error} ALREADY_EXISTS: Resource {resource} already exists"
                )
            resources[key] = _create(kind, name, flags, error)
        elif key not in resources:
            raise state.Refused(1, f"{error} NOT_FOUND: Resource {resource} was not found")
        elif verb == "describe":
            states = resources[key]["states"]
            print(states[0] if "--format" in flags else f"name: {name}\nstate: {states[0]}")
            if len(states) > 1 and "--format" in flags:
                states.pop(0)
        elif verb == "delete":
            if kind == "queued-resources" and "--force" not in flags:
                raise state.Refused(1, f"{error} FAILED_PRECONDITION: has nodes; use --force")
            _end_hosts(resources.pop(key)["nodes"])
        else:
            raise state.Refused(2, f"{error} Invalid choice: {verb!r}")


def _create(kind: str, name: str, flags: dict[str, str], error: str) -> dict:
    """The new resource: its states, the first the present one, and its nodes."""
    version = "--version" if kind == "tpu-vm" else "--runtime-version"
    state.require_flags(flags, "--accelerator-type", version)
    nodes = [name]
    if kind == "queued-resources":
        if ("--node-id" in flags) == ("--node-count" in flags):
            raise state.Refused(2, f"{error} Exactly one of (--node-id | --node-count) …")
        if "--node-count" in flags:
            count = int(flags["--node-count"])
            if count <= 1:
                raise state.Refused(2, f"{error} Node count must be greater than 1")
            nodes = [f"{flags['--node-prefix']}-{i}" for i in range(count)]
    with state.JsonFile("states", {}) as states:
        pending = states.get(kind, [])
    for node in nodes:
        for worker in range(state.NUM_WORKERS):
            os.makedirs(state.path("hosts", f"{node}-w-{worker}"))
    return {"states": [*pending, _STATES[kind][0]], "nodes": nodes}


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        new.write(old.read())


def _hosts(node: str) -> list[str]:
    names = os.listdir(state.path("hosts"))
    return sorted(name for name in names if name.startswith(f"{node}-w-"))


def _end_hosts(nodes: list[str]) -> None:
    """A deleted machine's processes end, and its disk is gone."""
    for node in nodes:
        for host in _hosts(node):
            pid = state.path("hosts", host, "keel/pid")
            try:
                os.killpg(int(state.read_text(pid)), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
            # Renamed rather than removed, which would take longer than all the rest.
            gone = state.path("gone", f"{host}-{time.monotonic_ns()}")
            os.rename(state.path("hosts", host), gone)


def preempt_all() -> None:
    """Takes all machines away."""
    with state.JsonFile("resources", {}) as resources:
        for key, resource in resources.items():
            resource["states"] = [_STATES[key.split("/")[0]][1]]
            _end_hosts(resource["nodes"])


def _connect(verb: str, argv: list[str]) -> None:
    """`tpu-vm ssh` and `tpu-vm scp`, on all workers of a node."""
    words, flags = state.parse_flags(
        argv, {"--zone", "--project", "--worker", "--command"}, {"--quiet", "--internal-ip"}
    )
    state.require_flags(flags, "--zone", "--worker")
    node = words[-1].rstrip(":")
    hosts = _hosts(node)
    if not hosts:
        raise state.Refused(
            1, f"ERROR: (gcloud.compute.tpus.tpu-vm.{verb}) NOT_FOUND: nodes/{node}"
        )
    codes = []
    for worker, host in enumerate(hosts):
        if verb == "scp":
            _copy(words[0], state.path("hosts", host, os.path.basename(words[0])))
            continue
        fault = state.next_fault(f"on {host}: {flags['--command']}")
        code = fault.get("code")
        if not fault:
            code = _run_on_host(flags["--command"], host)
        codes.append(code)
        if code:
            print(
                f"##### Command execution on worker {worker} failed with exit status {code}. "
                "Continuing.",
                file=sys.stderr,
            )
    if any(codes):
        raise state.Refused(next(code for code in codes if code), "")


def _run_on_host(command: str, host: str) -> int:
    """Runs a command in a worker's home."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.chdir(state.path("hosts", host))
        os.environ.update(HOME=os.getcwd(), KEEL_TEST_HOST=host)
        os.execvp("bash", ["bash", "-c", command])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
