"""The overlays of cluster/kubernetes, built by kubectl, against schemas, and what we promise of them."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from typing import Any

import jsonschema
import kuberay
import pytest
import yaml
from provisioned import ROOT
from ray_commands import parsed_start

from distblock.config import make_config
from distblock.flags import read_settings
from distblock.version import __version__

KUBERNETES = ROOT / "cluster" / "kubernetes"
OVERLAYS = {"base": "RayCluster", "gpu": "RayCluster", "cpu-job": "RayJob", "gpu-job": "RayJob"}


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, whose kustomize builds the overlays")
    command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def ray_resource(overlay: str) -> dict[str, Any]:
    [resource] = [resource for resource in built(overlay) if resource["kind"] == OVERLAYS[overlay]]
    return resource


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid(overlay: str):
    kinds = [resource["kind"] for resource in built(overlay)]
    assert kinds == ["PersistentVolumeClaim", "PodMonitor", "PodMonitor", OVERLAYS[overlay]]
    for resource in built(overlay):
        kuberay.check(resource)
        assert resource["metadata"]["namespace"] == "distblock"


def test_a_misspelt_field_is_found():
    for path in (["spec"], ["spec", "workerGroupSpecs", 0], ["spec", "headGroupSpec", "template", "spec"]):
        broken = copy.deepcopy(ray_resource("base"))
        at = broken
        for step in path:
            at = at[step]
        at["minReplicsa"] = 1
        with pytest.raises(jsonschema.ValidationError):
            kuberay.check(broken)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_no_more_rights_than_they_need(overlay: str):
    for template in kuberay.pod_templates(kuberay.cluster_spec(ray_resource(overlay))):
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == 1000
        for container in template["spec"]["containers"]:
            assert container["image"].startswith(f"registry.example/distblock:{__version__}-")
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert {"livenessProbe", "readinessProbe"} <= set(container)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_token_is_on_and_workers_come_and_go(overlay: str):
    cluster = kuberay.cluster_spec(ray_resource(overlay))
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


@pytest.mark.parametrize("overlay", ["gpu", "gpu-job"])
def test_gpu_groups_ask_for_different_gpus(overlay: str):
    groups = kuberay.cluster_spec(ray_resource(overlay))["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["gpu-large", "gpu-small"]
    pods = [group["template"]["spec"] for group in groups]
    assert len({str(pod["nodeSelector"]) for pod in pods}) == 2
    for pod in pods:
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["containers"][0]["image"].endswith("-cuda")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_takes_the_start_parameters(overlay: str):
    cluster = kuberay.cluster_spec(ray_resource(overlay))
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        # KubeRay makes flags of what is "true".
        words = [
            f"--{key}" if value == "true" else f"--{key}={value}" for key, value in group["rayStartParams"].items()
        ]
        options = parsed_start(["ray", "start", *words])
        assert options["disable_usage_stats"]
        [shm] = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
        assert options["object_store_memory"] < int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_monitors_find_their_ports(overlay: str):
    templates = kuberay.pod_templates(kuberay.cluster_spec(ray_resource(overlay)))
    head, *workers = [{port["name"] for port in each["spec"]["containers"][0]["ports"]} for each in templates]
    monitors = {each["metadata"]["name"]: each["spec"] for each in built(overlay) if each["kind"] == "PodMonitor"}
    asked = {name: {each["port"] for each in spec["podMetricsEndpoints"]} for name, spec in monitors.items()}
    assert asked["distblock-head"] <= head
    assert all(asked["distblock-workers"] <= ports for ports in workers)


@pytest.mark.parametrize("overlay", ["cpu-job", "gpu-job"])
def test_a_job_is_a_run_that_cleans_up(overlay: str):
    spec = ray_resource(overlay)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] == 1
    program, verb, *arguments = spec["entrypoint"].split()
    assert (program, verb) == ("distblock", "train")
    config = make_config(read_settings(arguments))
    [port] = [
        port["containerPort"]
        for port in spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
        if port["name"] == "distblock"
    ]
    assert (config.address, config.metrics.port, config.metrics.host) == ("auto", port, "0.0.0.0")
    # Each try writes a run directory of its own, below the claim's mount.
    assert config.run_dir is None
