"""xpk (AI-Hypercomputer/xpk: src/xpk/parser/workload.py, core/workload.py)."""

from standins import state

_SHARED = {"--cluster", "--zone", "--project"}
_CREATE = {
    "--workload",
    "--tpu-type",
    "--num-slices",
    "--base-docker-image",
    "--script-dir",
    "--max-restarts",
    "--restart-on-exit-codes",
    "--command",
}
_LIST = {"--wait-for-job-completion", "--timeout", "--filter-by-status", "--filter-by-job"}


def xpk(argv: list[str]) -> None:
    assert argv[0] == "workload", argv
    with state.JsonFile("resources", {}) as resources:
        if argv[1] == "create":
            _, flags = state.parse_flags(argv[2:], _SHARED | _CREATE, {"--spot"})
            state.require_flags(flags, "--cluster", "--workload", "--command", "--tpu-type")
            if f"workload/{flags['--workload']}" in resources:
                print(
                    f"[XPK] {flags['--workload']} already exists, XPK will not create this "
                    "workload. Please pick a new workload name"
                )
                raise state.Refused(1, "")
            resources[f"workload/{flags['--workload']}"] = {}
        elif argv[1] == "list":
            _, flags = state.parse_flags(argv[2:], _SHARED | _LIST)
            if "--filter-by-status" in flags:
                print("Jobset Name   Created Time   Priority")
                return
            if f"workload/{flags['--wait-for-job-completion']}" not in resources:
                raise state.Refused(1, "")
        elif argv[1] == "delete":
            _, flags = state.parse_flags(argv[2:], _SHARED | {"--workload"}, {"--force"})
            state.require_flags(flags, "--workload")  # without it xpk deletes them all
            resources.pop(f"workload/{flags['--workload']}", None)
        else:
            raise state.Refused(2, f"xpk: invalid choice {argv[1]!r}")
