"""kubectl with JobSet's resources; `jobset.json` holds the statuses that it answers in turn."""

import json
import os
import sys

from standins import state


def kubectl(argv: list[str]) -> None:
    argv = [arg for arg in argv if not arg.startswith(("--namespace=", "--context="))]
    verb, rest = argv[0], argv[1:]
    with state.JsonFile("resources", {}) as resources:
        if verb == "create" and rest[0] == "configmap":
            files = [arg for arg in rest[1:] if arg.startswith("--from-file=")]
            words, _ = state.parse_flags([arg for arg in rest[1:] if arg not in files], set())
            for arg in files:
                assert os.path.exists(arg.partition("=")[2]), arg
            _create(resources, "configmap", words[0])
        elif verb == "create":
            assert rest == ["-f", "-"], rest
            manifest = json.loads(sys.stdin.read())
            assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
            _create(resources, "jobset", manifest["metadata"]["name"])
        elif verb == "get" and rest[0] == "pods":
            state.parse_flags(rest[1:], {"--selector", "--output"})
            with state.JsonFile("pods", []) as codes:
                print("\n".join(map(str, codes)))
        elif verb == "get":
            _get(resources, rest)
        elif verb == "logs":
            state.parse_flags(
                rest,
                {"--selector", "--tail", "--max-log-requests"},
                {"--prefix", "--ignore-errors"},
            )
            print("[pod/a/train] step 1")
        elif verb == "delete":
            words, _ = state.parse_flags(rest, set(), {"--ignore-not-found"})
            for kind in words[0].split(","):
                resources.pop(f"{kind}/{words[1]}", None)
        else:
            raise state.Refused(1, f"error: unknown command {verb!r}")


def _create(resources: dict, kind: str, name: str) -> None:
    if f"{kind}/{name}" in resources:
        raise state.Refused(
            1, f'Error from server (AlreadyExists): {kind}s "{name}" already exists'
        )
    resources[f"{kind}/{name}"] = {}
    print(f"{kind}/{name} created")


def _get(resources: dict, argv: list[str]) -> None:
    words, flags = state.parse_flags(argv, {"--output"}, {"--ignore-not-found"})
    keys = [f"{kind}/{words[1]}" for kind in words[0].split(",")]
    existing = [key for key in keys if key in resources]
    if not existing and "--ignore-not-found" not in flags:
        raise state.Refused(1, f'Error from server (NotFound): jobsets "{words[1]}" not found')
    if flags.get("--output") == "json":
        with state.JsonFile("jobset", []) as statuses:
            status = statuses[0]
            if len(statuses) > 1:
                statuses.pop(0)
        print(json.dumps({"status": status}))
    else:
        print("\n".join(existing))
