"""JobSets on GKE: the manifest is valid, and nothing of ours stays in the cluster."""

import json
import signal

import kubernetes_validate
import pytest

from launch import gke, verdict

# JobSet's own fields: kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go.
_JOBSET = {"apiVersion", "kind", "metadata", "spec"}
_SPEC = {
    "replicatedJobs",
    "network",
    "successPolicy",
    "failurePolicy",
    "startupPolicy",
    "suspend",
    "coordinator",
    "managedBy",
    "ttlSecondsAfterFinished",
    "volumeClaimPolicies",
}
_FAILURE_POLICY = {"maxRestarts", "restartStrategy", "rules"}
_RULE = {
    "name",
    "action",
    "onJobFailureReasons",
    "onJobFailureMessagePatterns",
    "targetReplicatedJobs",
}
_ACTIONS = {
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
}
# kubernetes/api, batch/v1/types.go: JobReasonPodFailurePolicy.
_REASONS = {"PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded"}
_REPLICATED_JOB = {"name", "groupName", "template", "replicas", "dependsOn"}
_ANNOTATIONS = {"alpha.jobset.sigs.k8s.io/exclusive-topology"}
_POD_ANNOTATIONS = {"jobset.sigs.k8s.io/job-index"}

_RUNNING = {"replicatedJobsStatus": [{"name": "slice", "ready": 1}]}
_COMPLETED = {"conditions": [{"type": "Completed", "status": "True"}]}
_FAILED = {
    "conditions": [
        {"type": "StartupPolicyCompleted", "status": "True"},
        {"type": "Failed", "status": "True"},
    ]
}


def _args(*flags: str):
    return gke.parser().parse(
        ["--config=c.py", "--workdir=gs://b/r", "--name=demo", "--topology=v5e:4x4", *flags]
    )


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--num_slices=2", "--spot", "--queue=q", "--service_account=sa"],
        ["--topology=v5e:2x4", "--chips_per_machine=8"],
        ["--topology=tpu7x:2x2x2", "--config.model.num_blocks=7"],
    ],
    ids=["one", "several", "one-machine", "tpu7x"],
)
def test_the_manifest_is_valid(flags):
    jobset = gke.jobset(_args(*flags))
    assert set(jobset) == _JOBSET
    assert set(jobset["metadata"]["annotations"]) <= _ANNOTATIONS
    spec = jobset["spec"]
    assert set(spec) <= _SPEC
    assert set(spec["failurePolicy"]) <= _FAILURE_POLICY
    for rule in spec["failurePolicy"]["rules"]:
        assert set(rule) <= _RULE and rule["action"] in _ACTIONS
        assert set(rule["onJobFailureReasons"]) <= _REASONS
    (job,) = spec["replicatedJobs"]
    assert set(job) <= _REPLICATED_JOB
    # Core objects, strictly: a field that does not exist is refused.
    for kind, version, body in (
        ("Job", "batch/v1", job["template"]["spec"]),
        ("Pod", "v1", job["template"]["spec"]["template"]["spec"]),
    ):
        core = {"apiVersion": version, "kind": kind, "metadata": {"name": "demo"}, "spec": body}
        kubernetes_validate.validate(core, "1.30", strict=True)


def test_the_validation_bites():
    body = gke.jobset(_args())["spec"]["replicatedJobs"][0]["template"]["spec"]
    body["template"]["spec"]["nodeSelectors"] = {}
    core = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "demo"}, "spec": body}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(core, "1.30", strict=True)


def test_sizes_and_exit_codes():
    jobset = gke.jobset(_args("--num_slices=2", "--spot"))
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert set(rule["onExitCodes"]["values"]) == set(verdict.RETRYABLE)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["name"] == rule["onExitCodes"]["containerName"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    env = {item["name"]: item for item in pod["containers"][0]["env"]}
    # JobSet's name of the first Pod: <jobset>-<replicated job>-<job>-<pod>.<subdomain>.
    assert env["MEGASCALE_COORDINATOR_ADDRESS"]["value"] == "demo-slice-0-0.demo"
    path = env["MEGASCALE_SLICE_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path.split("'")[1] in _POD_ANNOTATIONS
    one = gke.jobset(_args())["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert one["template"]["spec"]["containers"][0]["env"] == []


def test_a_run_that_ends_well(world):
    world.tell("jobset", [{}, _RUNNING, _COMPLETED])
    done = world.launch("gke")
    assert (done.returncode, world.resources()) == (0, {}), done.stderr
    assert (world.directory / "planned").exists() and "All 1 slices run" in done.stderr
    assert "step 1" in (world.directory / "run/logs/pods.log").read_text()


@pytest.mark.parametrize(("pods", "code"), [([76, 1, 137], 1), ([3, 3], 3), ([0, 0], 1)])
def test_a_failed_jobset_has_its_pods_code(world, pods, code):
    world.tell("jobset", [_RUNNING, _FAILED])
    world.tell("pods", pods)
    done = world.launch("gke", "--keep")
    assert (done.returncode, world.resources()) == (code, {}), done.stderr


@pytest.mark.parametrize(
    ("fault", "statuses", "words"),
    [
        (dict(match="create configmap", code=1, stderr="forbidden"), [], "forbidden"),
        (dict(match="create -f", code=1, stderr="timeout", effect=True), [], "timeout"),
        (dict(match="never"), [{}], "0 of 1 slices run after"),
        (dict(match="get jobset demo", code=1, times=99, stderr="refused"), [{}], "No answer"),
    ],
    ids=["configmap", "half-created", "no nodes", "no cluster"],
)
def test_a_start_that_fails_leaves_nothing(world, fault, statuses, words):
    world.tell("faults", [fault])
    world.tell("jobset", statuses)
    done = world.launch("gke", "--wait_minutes=0.005", "--lost_minutes=0.005")
    assert (done.returncode, world.resources()) == (1, {}), done.stderr
    assert words in done.stderr


def test_what_does_not_fit_or_is_there_already_is_not_created(world):
    world.tell("plan", 4)
    assert world.launch("gke").returncode == 4
    world.tell("plan", 0)
    theirs = {"jobset/demo": {}}
    world.tell("resources", theirs)
    done = world.launch("gke")
    assert done.returncode == 1 and "already" in done.stderr
    assert world.resources() == theirs and world.calls(" create ") == world.calls(" delete ") == []


@pytest.mark.parametrize("times", [2, 99])
def test_deleting_is_tried_again_and_failure_is_loud(world, times):
    world.tell("jobset", [_COMPLETED])
    world.tell("faults", [dict(match=" delete ", code=1, times=times)])
    done = world.launch("gke", "--delete_tries=3")
    if times == 2:
        assert (done.returncode, world.resources()) == (0, {}), done.stderr
    else:
        assert done.returncode == 5 and "COULD NOT BE DELETED" in done.stderr
        assert f"  {world.calls(' delete ')[0]}" in done.stderr.splitlines()


def test_ctrl_c_deletes(world):
    world.tell("jobset", [_RUNNING])
    process = world.start("gke")
    world.wait_for(lambda: world.calls("get jobset demo"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, world.resources()) == (130, {}), stderr


def test_the_manifest_of_a_dry_run_is_the_manifest(world):
    done = world.launch("gke", "--dry-run")
    text = done.stdout.split("create -f - <<'END'\n")[1].split("\nEND\n")[0]
    flags = [f"--workdir={world.workdir}", "--topology=v5e:2x4"]
    assert json.loads(text) == gke.jobset(_args("--config=experiments/configs/tiny.py", *flags))
