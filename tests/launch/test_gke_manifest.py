"""The JobSets' manifests are valid, and say what the options say."""

import json

import kubernetes_validate
import pytest

from launch import combined_exit_code, gke, gke_manifest

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
    jobset = gke_manifest.jobset(_args(*flags))
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
    body = gke_manifest.jobset(_args())["spec"]["replicatedJobs"][0]["template"]["spec"]
    body["template"]["spec"]["nodeSelectors"] = {}
    core = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "demo"}, "spec": body}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(core, "1.30", strict=True)


def test_sizes_and_exit_codes():
    jobset = gke_manifest.jobset(_args("--num_slices=2", "--spot"))
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert set(rule["onExitCodes"]["values"]) == set(combined_exit_code.RETRYABLE)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["name"] == rule["onExitCodes"]["containerName"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    env = {item["name"]: item for item in pod["containers"][0]["env"]}
    # JobSet's name of the first Pod: <jobset>-<replicated job>-<job>-<pod>.<subdomain>.
    assert env["MEGASCALE_COORDINATOR_ADDRESS"]["value"] == "demo-slice-0-0.demo"
    path = env["MEGASCALE_SLICE_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path.split("'")[1] in _POD_ANNOTATIONS
    one = gke_manifest.jobset(_args())["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert one["template"]["spec"]["containers"][0]["env"] == []


def test_the_manifest_of_a_dry_run_is_the_manifest(world):
    done = world.launch("gke", "--dry-run")
    text = done.stdout.split("create -f - <<'END'\n")[1].split("\nEND\n")[0]
    flags = [f"--workdir={world.workdir}", "--topology=v5e:2x4"]
    assert json.loads(text) == gke_manifest.jobset(
        _args("--config=experiments/configs/tiny.py", *flags)
    )
