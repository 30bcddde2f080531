"""The manifests of deploy/kubernetes: valid for several versions of Kubernetes, hardened, rendered as kustomize does.

Their command lines are run in tests/e2e/test_kubernetes.py. No cluster has run them.
"""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.policy import findings
from tests.deploy.rendering import FOLDER, VARIANTS, Object, overlay, pick, pod, rendered, server, workload, written

#: The first in which image volumes are beta, the first that has them on by default, and the newest one known.
VERSIONS = ("1.33", "1.35", "1.37")
#: Schemas of ours, of the fields that we use, for what Kubernetes itself does not know.
CUSTOM = {kind: json.loads((Path(__file__).parent / f"{kind}.json").read_text()) for kind in ("certificate", "kserve")}


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return rendered(FOLDER / request.param)


@pytest.fixture
def with_volume(tmp_path: Path) -> list[Object]:
    return rendered(overlay(tmp_path, "../cpu", "../../volume"))


@pytest.fixture
def with_gateway(tmp_path: Path) -> list[Object]:
    return rendered(overlay(tmp_path, "../cpu", "../../gateway"))


def check(thing: Object, version: str) -> None:
    """Raises where a cluster of that version would refuse the object."""
    kind = {"Certificate": "certificate", "InferenceService": "kserve"}.get(thing["kind"])
    if kind is None:
        kubernetes_validate.validate(thing, version, strict=True)
    else:
        jsonschema.validate(thing, CUSTOM[kind])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(objects: list[Object], version: str) -> None:
    for thing in [*objects, pod(objects)]:
        check(thing, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_valid_is_found(version: str) -> None:
    deployment = workload(rendered(FOLDER / "base"))
    server([deployment])["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        check(deployment, version)
    certificate = pick(rendered(FOLDER / "base"), "Certificate")
    del certificate["spec"]["issuerRef"]
    with pytest.raises(jsonschema.ValidationError, match="issuerRef"):
        check(certificate, version)


def test_nothing_is_found(objects: list[Object]) -> None:
    assert findings(objects) == []


def test_a_claim_in_the_place_of_an_image_is_as_good(with_volume: list[Object]) -> None:
    assert findings(with_volume) == []
    for version in VERSIONS:
        for thing in with_volume:
            check(thing, version)
    assert "persistentVolumeClaim" in json.dumps(with_volume)
    assert "@sha256:" not in json.dumps(with_volume)


def test_a_gateway_is_as_hard(with_gateway: list[Object]) -> None:
    assert findings(with_gateway) == []
    for version in VERSIONS:
        for thing in with_gateway:
            check(thing, version)
    option("--http-restricted-api=inference", None)(with_gateway)
    assert findings(with_gateway) == ["plain HTTP asks for no secret"]


def documented(folder: Path) -> Path:
    """The overlay of docs/KUBERNETES.md, with a whole digest."""
    guide = (FOLDER.parents[1] / "docs" / "KUBERNETES.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    return written(folder, block.replace("@sha256:...", f"@sha256:{'5' * 64}"))


def test_the_overlay_of_the_guide_works(tmp_path: Path) -> None:
    objects = rendered(documented(tmp_path))
    assert findings(objects) == []
    (release,) = [one["image"] for one in pod(objects)["spec"]["volumes"] if one["name"] == "release"]
    assert release["reference"].endswith("5" * 64)


def test_kserve_runs_the_same_pod(with_volume: list[Object]) -> None:
    """Two files say what a pod is, since KServe's predictor is no pod template; they must not drift apart."""
    mine, theirs = (copy.deepcopy(pod(one)["spec"]) for one in (rendered(FOLDER / "base"), rendered(FOLDER / "kserve")))
    mine["volumes"][0] = pod(with_volume)["spec"]["volumes"][0]
    for one in theirs["containers"]:
        one["name"] = {"kserve-container": "tritonserver"}.get(one["name"], one["name"])
    assert mine == theirs


def find(things: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in things if one["name"] == name)


def spec(objects: list[Object]) -> dict[str, Any]:
    return workload(objects)["spec"]["template"]["spec"]


def option(old: str, new: str | None) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        told = server(objects)["args"]
        place = next(index for index, one in enumerate(told) if one.startswith(old))
        told[place : place + 1] = [] if new is None else [new]

    return change


def on_server(**fields: Any) -> Callable[[list[Object]], None]:
    return lambda objects: server(objects)["securityContext"].update(fields)


def on_pod(**fields: Any) -> Callable[[list[Object]], None]:
    return lambda objects: spec(objects).update(fields)


def on(kind: str, **fields: Any) -> Callable[[list[Object]], None]:
    return lambda objects: pick(objects, kind)["spec"].update(fields)


def volume(name: str, **kind: Any) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        one = find(spec(objects)["volumes"], name)
        one.clear()
        one.update(name=name, **kind)

    return change


def writable(name: str) -> Callable[[list[Object]], None]:
    return lambda objects: find(server(objects)["volumeMounts"], name).pop("readOnly")


MUTATIONS: dict[str, tuple[Callable[[list[Object]], None], str]] = {
    "namespace": (lambda o: pick(o, "Namespace")["metadata"].pop("labels"), "restricted pod security"),
    "elsewhere": (lambda o: pick(o, "Service")["metadata"].pop("namespace"), "outside of the namespace"),
    "token of the account": (on_pod(automountServiceAccountToken=True), "automountServiceAccountToken"),
    "account": (on_pod(serviceAccountName="default"), "service account of its own"),
    "account with rights": (lambda o: o.append({"kind": "Role", "metadata": {"namespace": "privdfs"}}), "has rights"),
    "host network": (on_pod(hostNetwork=True), "hostNetwork"),
    "root": (lambda o: spec(o)["securityContext"].pop("runAsNonRoot"), "run as root"),
    "root again": (on_server(runAsUser=0), "run as root"),
    "seccomp": (lambda o: spec(o)["securityContext"].pop("seccompProfile"), "seccomp"),
    "seccomp of a container": (on_server(seccompProfile={"type": "Unconfined"}), "seccomp"),
    "privileged": (on_server(privileged=True), "privileged"),
    "escalation": (on_server(allowPrivilegeEscalation=True), "gain privileges"),
    "root file system": (on_server(readOnlyRootFilesystem=False), "write its root"),
    "capabilities": (on_server(capabilities={"drop": ["ALL"], "add": ["IPC_LOCK"]}), "keeps capabilities"),
    "init container": (lambda o: spec(o)["initContainers"][0].pop("securityContext"), "verify can write its root"),
    "no limit": (lambda o: server(o)["resources"].pop("limits"), "limit of memory"),
    "latest": (lambda o: server(o).update(image="nvcr.io/nvidia/tritonserver:latest"), "latest"),
    "no tag": (lambda o: server(o).update(image="nvcr.io/nvidia/tritonserver"), "latest"),
    "host path": (volume("tmp", hostPath={"path": "/tmp"}), "is a hostPath"),
    "disk": (volume("shm", emptyDir={"sizeLimit": "1Gi"}), "on a disk"),
    "no shm": (lambda o: server(o)["volumeMounts"].remove({"name": "shm", "mountPath": "/dev/shm"}), "/dev/shm"),
    "tag": (volume("release", image={"reference": "registry.example/server-0:v1"}), "by its digest"),
    "key for all": (volume("tls", secret={"secretName": "privdfs-server-tls"}), "can read the secret"),
    "writable release": (writable("release"), "can change what it serves"),
    "writable key": (writable("tls"), "can write tls"),
    "unchecked": (lambda o: spec(o).update(initContainers=[]), "checks the signature"),
    "unsigned": (lambda o: spec(o)["initContainers"][0]["command"].__delitem__(slice(3, 5)), "checks the signature"),
    "something else": (lambda o: server(o)["volumeMounts"][0].update(name="tmp"), "not what was checked"),
    "explicit control": (option("--model-control-mode", "--model-control-mode=explicit"), "--model-control-mode=none"),
    "plaintext": (option("--grpc-use-ssl=1", None), "--grpc-use-ssl=1"),
    "any device": (option("--grpc-use-ssl-mutual", None), "--grpc-use-ssl-mutual"),
    "open HTTP": (option("--http-address", "--http-address=0.0.0.0"), "--http-address=127.0.0.1"),
    "secret in the open": (
        option("--grpc-restricted-protocol=inf", "--grpc-restricted-protocol=inference:a=b"),
        "TOKEN",
    ),
    "plain HTTP": (option("--http-restricted-api", None), "plain HTTP asks"),
    "secret of HTTP in the open": (option("--http-restricted-api", "--http-restricted-api=trace:a=b"), "plain HTTP"),
    "traces": (option("--trace-config", "--trace-config=level=TENSORS"), "--trace-config=level=OFF"),
    "twice": (lambda o: server(o)["args"].append("--log-verbose=1"), "twice"),
    "no liveness": (lambda o: server(o).pop("livenessProbe"), "livenessProbe"),
    "HTTP has a port": (lambda o: server(o)["ports"].append({"containerPort": 8000, "name": "http"}), "plain HTTP"),
    "calls out": (on("NetworkPolicy", egress=[{}]), "call out"),
    "calls out too": (on("NetworkPolicy", policyTypes=["Ingress"]), "call out"),
    "other pods": (on("NetworkPolicy", podSelector={"matchLabels": {"app": "other"}}), "other pods"),
    "open ports": (on("NetworkPolicy", ingress=[{}]), "opens every port"),
    "open metrics": (lambda o: pick(o, "NetworkPolicy")["spec"]["ingress"][1].pop("from"), "read the metrics"),
    "served metrics": (lambda o: pick(o, "Service")["spec"]["ports"][0].update(targetPort="metrics"), "the metrics"),
    "wrong service": (on("Service", selector={"app": "other"}), "service is for other pods"),
    "drain": (on("PodDisruptionBudget", maxUnavailable="100%"), "drain"),
    "wrong target": (lambda o: pick(o, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(name="x"), "else"),
    "one replica": (on("HorizontalPodAutoscaler", minReplicas=1), "one replica"),
    "recreate": (lambda o: workload(o)["spec"].update(strategy={"type": "Recreate"}), "roll-out"),
    "a secret": (lambda o: o.append({"kind": "Secret", "metadata": {"namespace": "privdfs"}}), "secret lies"),
    "plain token": (lambda o: server(o)["env"].__setitem__(0, {"name": "TOKEN", "value": "x"}), "TOKEN does not"),
    "wrong certificate": (on("Certificate", secretName="other"), "certificate is not"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_not_hardened_is_found(name: str) -> None:
    change, told = MUTATIONS[name]
    objects = rendered(FOLDER / "base")
    change(objects)
    assert [finding for finding in findings(objects) if told in finding], findings(objects)


def test_every_tensorrt_pod_plans_what_was_checked() -> None:
    objects = rendered(FOLDER / "overlays" / "tensorrt")
    verify, plan = pod(objects)["spec"]["initContainers"]
    assert verify["name"] == "verify"
    assert "plan /release --out /planned/models" in plan["command"][-1]
    assert "verify /planned/models" in plan["command"][-1]
    assert plan["resources"]["limits"]["nvidia.com/gpu"] == server(objects)["resources"]["limits"]["nvidia.com/gpu"]
    tag = server(objects)["image"].rpartition(":")[2].removesuffix("-py3")
    assert plan["image"].endswith(f":{tag}"), "a plan loads only in the image that it was built in"


#: kustomize itself, or kubectl with it inside.
KUSTOMIZE = next((line for line in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(line[0])), None)


@pytest.mark.skipif(KUSTOMIZE is None, reason="neither kustomize nor kubectl is installed")
@pytest.mark.parametrize("variant", [*VARIANTS, "mine", "documented"])
def test_kustomize_renders_the_same(variant: str, tmp_path: Path) -> None:
    if variant == "mine":
        folder = overlay(tmp_path, "../tensorrt", "../../volume", "../../gateway")
    else:
        folder = documented(tmp_path) if variant == "documented" else FOLDER / variant
    ran = subprocess.run([*(KUSTOMIZE or ()), str(folder)], capture_output=True, text=True, check=True)

    def by_name(objects: list[Object]) -> dict[str, Object]:
        return {f"{one['kind']}/{one['metadata']['name']}": one for one in objects}

    assert by_name(list(yaml.safe_load_all(ran.stdout))) == by_name(rendered(folder))
