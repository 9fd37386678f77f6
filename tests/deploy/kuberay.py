"""KubeRay's resources, as strictly as can be told without its CRD schema, which no package registry has.

The fields that ours may have are written down here from KubeRay's API reference (v1.6, ray.io/v1); unknown ones are
refused, since Kubernetes would drop them in silence. Pods, and what belongs to them, are checked by Kubernetes' own
strict schema, as if they were resources of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.32"

_COUNT = {"type": "integer", "minimum": 0}
_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_ANY = {"type": "object"}


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_AUTOSCALER = _closed(
    [],
    resources=_ANY,
    securityContext=_ANY,
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env={"type": "array"},
)
_HEAD = _closed(["template"], rayStartParams=_WORDS, template=_ANY, serviceType={"type": "string"}, headService=_ANY)
_GROUP = _closed(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_WORDS,
    template=_ANY,
)
CLUSTER = _closed(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    authOptions=_closed(["mode"], mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_WORDS,
    gcsFaultToleranceOptions=_ANY,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _GROUP},
)
JOB = _closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=_closed([], backoffLimit=_COUNT),
    submitterPodTemplate=_ANY,
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=_COUNT,
    runtimeEnvYAML={"type": "string"},
    metadata=_WORDS,
    rayClusterSpec=CLUSTER,
)
POD_MONITOR = _closed(
    ["selector", "podMetricsEndpoints"],
    selector=_closed(["matchLabels"], matchLabels=_WORDS),
    podTargetLabels={"type": "array", "items": {"type": "string"}},
    podMetricsEndpoints={
        "type": "array",
        "items": _closed(
            ["port"], port={"type": "string"}, interval={"type": "string", "pattern": r"^\d+(s|m)$"}, path=_ANY
        ),
    },
)
SPECS = {"RayCluster": ("ray.io/v1", CLUSTER), "RayJob": ("ray.io/v1", JOB)}
SPECS["PodMonitor"] = ("monitoring.coreos.com/v1", POD_MONITOR)


def check(resource: Mapping[str, Any]) -> None:
    """Check a resource of KubeRay's or of the Prometheus operator's, or one of Kubernetes' own.

    Raises:
        jsonschema.ValidationError: it is not valid.
    """
    if resource["kind"] not in SPECS:
        kubernetes_validate.validate(dict(resource), KUBERNETES, strict=True)
        return
    version, schema = SPECS[resource["kind"]]
    whole = _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        **{"apiVersion": {"const": version}, "kind": {}, "metadata": _closed(["name"], **_METADATA), "spec": schema},
    )
    jsonschema.validate(resource, whole)
    for template in pod_templates(cluster_spec(resource)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template.get("metadata", {}), "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


_METADATA = {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": _WORDS, "annotations": _WORDS}


def cluster_spec(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of the Ray cluster that a resource makes; empty where it makes none."""
    if resource["kind"] == "RayJob":
        return resource["spec"]["rayClusterSpec"]
    return resource["spec"] if resource["kind"] == "RayCluster" else {}


def pod_templates(cluster: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The head's, then each worker group's."""
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])] if cluster else []
    return [group["template"] for group in groups]
