"""What is wrong with the manifests of a party, in words: the hardening that docs/KUBERNETES.md promises, as rules."""

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.rendering import Object, pick, pod, server, workload

#: Kinds of volumes that nothing in the pod may write.
_READ_ONLY = ("configMap", "secret", "image", "persistentVolumeClaim")
_VOLUMES = {*_READ_ONLY, "emptyDir"}
#: Ports for monitoring alone: Triton's, and the gateway's.
_FIGURES = {"metrics", "figures"}
#: What tritonserver must be told, word for word.
_OPTIONS = {
    "--model-control-mode=none",
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    "--exit-on-error=true",
    "--allow-sagemaker=false",
    "--allow-vertex-ai=false",
    "--grpc-use-ssl=1",
    "--grpc-use-ssl-mutual=1",
    "--http-address=127.0.0.1",
    "--trace-config=level=OFF",
    "--log-verbose=0",
    "--grpc-restricted-protocol=inference,model-config:privdfs=$(TOKEN)",
    "--grpc-restricted-protocol=shared-memory,model-repository,statistics,trace,logging:admin=$(ADMIN)",
}
#: What HTTP may say to nobody who does not know a secret: all but health, which probes ask for.
_RESTRICTED = {
    *("inference", "metadata", "model-config", "model-repository"),
    *("shared-memory", "statistics", "trace", "logging"),
}


def findings(objects: list[Object]) -> list[str]:
    """Everything that is wrong; empty when nothing is."""
    rules = (_namespace, _pod, _containers, _volumes, _verified, _serving, _network, _availability, _secrets)
    return [finding for rule in rules for finding in rule(objects)]


def _namespace(objects: list[Object]) -> Iterator[str]:
    labels = pick(objects, "Namespace")["metadata"].get("labels", {})
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce the restricted pod security standard"
    name = pick(objects, "Namespace")["metadata"]["name"]
    for one in objects:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != name:
            yield f"{one['kind']} is outside of the namespace"


def _pod(objects: list[Object]) -> Iterator[str]:
    spec = pod(objects)["spec"]
    for flag in ("automountServiceAccountToken", "enableServiceLinks"):
        if spec.get(flag) is not False:
            yield f"{flag} is not false"
    for flag in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(flag):
            yield f"{flag} is on"
    if spec.get("serviceAccountName") != pick(objects, "ServiceAccount")["metadata"]["name"]:
        yield "the pod has no service account of its own"
    if pick(objects, "ServiceAccount").get("automountServiceAccountToken") is not False:
        yield "the service account gives its token to pods"
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "the pod may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod has no seccomp profile"
    if [one for one in objects if one["kind"] in {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}]:
        yield "the pod's account has rights"


def _containers(objects: list[Object]) -> Iterator[str]:
    spec = pod(objects)["spec"]
    for one in [*spec.get("initContainers", []), *spec["containers"]]:
        name, context = one["name"], one.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if context.get("privileged"):
            yield f"{name} is privileged"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name} can write its root"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} keeps capabilities"
        if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if context.get("seccompProfile", {"type": "RuntimeDefault"})["type"] != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        resources = one.get("resources", {})
        if "memory" not in resources.get("limits", {}) or not {"cpu", "memory"} <= set(resources.get("requests", {})):
            yield f"{name} lacks requests or a limit of memory"
        if not re.search(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w.-]+$", one["image"]):
            yield f"{name} takes whatever image is the latest"


def _volumes(objects: list[Object]) -> Iterator[str]:
    spec = pod(objects)["spec"]
    kinds: dict[str, str] = {}
    for volume in spec["volumes"]:
        (kind,) = set(volume) - {"name"}
        kinds[volume["name"]] = kind
        about = volume[kind]
        if kind not in _VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
        if kind == "emptyDir" and (about.get("medium") != "Memory" or "sizeLimit" not in about):
            yield f"volume {volume['name']} may lie on a disk, or grow without limit"
        if kind == "image" and not re.search(r"@sha256:[0-9a-f]{64}$", about["reference"]):
            yield "the release is not named by its digest"
        if kind == "secret" and about.get("defaultMode", 0o644) & 0o007:
            yield f"everybody in the pod can read the secret {volume['name']}"
    for one in [*spec.get("initContainers", []), *spec["containers"]]:
        for mount in one.get("volumeMounts", []):
            if kinds[mount["name"]] in _READ_ONLY and mount.get("readOnly") is not True:
                yield f"{one['name']} can write {mount['name']}"
    if "/dev/shm" not in [mount["mountPath"] for mount in server(objects)["volumeMounts"]]:
        yield "/dev/shm has the size that the container runtime gives it"


def _verified(objects: list[Object]) -> Iterator[str]:
    """The first thing that runs checks the signature of the very volume that is served or planned."""
    spec = pod(objects)["spec"]
    first = next(iter(spec.get("initContainers", [])), {})
    words = first.get("command", [])
    if words[:2] != ["privdfs", "verify"] or "--trust" not in words:
        yield "nothing checks the signature before it is served"
        return
    checked = {mount["name"] for mount in first["volumeMounts"] if mount["mountPath"] == words[2]}
    planned = {
        mount["name"]
        for one in spec["initContainers"][1:]
        if checked & {mount["name"] for mount in one["volumeMounts"]}
        for mount in one["volumeMounts"]
        if not mount.get("readOnly") and mount["name"] != "tmp"
    }
    served = {mount["name"] for mount in server(objects)["volumeMounts"] if mount["mountPath"] == "/models"}
    if not served or not served <= checked | planned:
        yield "what is served is not what was checked"
    writers = {
        mount["name"] for one in spec["containers"] for mount in one["volumeMounts"] if not mount.get("readOnly")
    }
    if served & writers:
        yield "the server can change what it serves"


def _serving(objects: list[Object]) -> Iterator[str]:
    container = server(objects)
    told = container["args"]
    for option in sorted(_OPTIONS - set(told)):
        yield f"tritonserver is not told {option}"
    names = [option.partition("=")[0] for option in told]
    several = {"--grpc-restricted-protocol", "--http-restricted-api"}
    for name in sorted({name for name in names if names.count(name) > 1} - several):
        yield f"tritonserver is told {name} twice"
    closed = re.findall(r"^--http-restricted-api=([\w,-]+):[\w-]+=\$\(\w+\)$", "\n".join(told), re.MULTILINE)
    if {api for apis in closed for api in apis.split(",")} != _RESTRICTED:
        yield "plain HTTP asks for no secret"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "http://127.0.0.1:8000/v2/health/" not in " ".join(
            container.get(probe, {}).get("exec", {}).get("command", [])
        ):
            yield f"no {probe} asks for health"
    if 8000 in [port["containerPort"] for port in container["ports"]]:
        yield "plain HTTP has a port"


def _network(objects: list[Object]) -> Iterator[str]:
    labels, policy = pod(objects)["metadata"]["labels"], pick(objects, "NetworkPolicy")["spec"]
    if not _selects(policy["podSelector"], labels):
        yield "the network policy is for other pods"
    if set(policy.get("policyTypes", [])) != {"Ingress", "Egress"} or policy.get("egress"):
        yield "the pod may call out"
    served = {port["targetPort"] for port in pick(objects, "Service")["spec"]["ports"]}
    known = {port["name"] for one in pod(objects)["spec"]["containers"] for port in one.get("ports", [])}
    if not served <= known - _FIGURES:
        yield "the service serves a port that is none, or the metrics"
    for rule in policy["ingress"]:
        ports = {port["port"] for port in rule.get("ports", [])}
        if not ports or not ports <= known:
            yield "the network policy opens every port, or one that is none"
        if ports & _FIGURES and (not rule.get("from") or not all(_narrow(peer) for peer in rule["from"])):
            yield "everybody can read the metrics"
        if not ports & _FIGURES and not ports <= served:
            yield "a port is open that the service does not serve"
    service = pick(objects, "Service")["spec"]
    if not _selects({"matchLabels": service["selector"]}, labels):
        yield "the service is for other pods"


def _narrow(peer: dict[str, Any]) -> bool:
    return bool(peer.get("namespaceSelector", {}).get("matchLabels"))


def _availability(objects: list[Object]) -> Iterator[str]:
    made, labels = workload(objects), pod(objects)["metadata"]["labels"]
    budget, scaler = pick(objects, "PodDisruptionBudget")["spec"], pick(objects, "HorizontalPodAutoscaler")["spec"]
    if not _selects(budget["selector"], labels) or budget.get("maxUnavailable") != 1:
        yield "a drain may take all replicas"
    kserve = made["kind"] == "InferenceService"
    name = made["metadata"]["name"] + ("-predictor" if kserve else "")
    if (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) != ("Deployment", name):
        yield "the autoscaler scales something else"
    replicas = made["spec"]["predictor"].get("minReplicas") if kserve else made["spec"].get("replicas")
    if min(replicas or 1, scaler.get("minReplicas", 1)) < 2:
        yield "one replica may be all there is"
    strategy = made["spec"]["predictor"]["deploymentStrategy"] if kserve else made["spec"]["strategy"]
    if strategy.get("rollingUpdate", {}).get("maxUnavailable") != 0:
        yield "a roll-out takes replicas away before new ones are ready"


def _secrets(objects: list[Object]) -> Iterator[str]:
    if [one for one in objects if one["kind"] == "Secret"]:
        yield "a secret lies among the manifests"
    container = server(objects)
    by_name = {one["name"]: one for one in container.get("env", [])}
    for name in sorted(set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))):
        if "secretKeyRef" not in by_name.get(name, {}).get("valueFrom", {}):
            yield f"{name} does not come from a secret"
    mounted = [one["secret"]["secretName"] for one in pod(objects)["spec"]["volumes"] if "secret" in one]
    if pick(objects, "Certificate")["spec"]["secretName"] not in mounted:
        yield "the certificate is not the one that is served"


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels.items() and not selector.get("matchExpressions")
