"""The manifests of deploy/kubernetes, rendered as kustomize renders them.

`rendered` knows the part of kustomize that these manifests use, and refuses everything else: `resources` and
`components` (files and folders), and `patches` of JSON patch operations that name kind and name of their target. A test
compares it with the true kustomize where kubectl or kustomize is installed.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
#: Everything that an operator may apply, by the folder's name.
VARIANTS = ("base", "overlays/cpu", "overlays/tensorrt", "kserve")
_KEYS = {"apiVersion", "kind", "resources", "components", "patches"}

#: One object of Kubernetes, as YAML has it.
Object = dict[str, Any]


def rendered(folder: Path) -> list[Object]:
    """The objects of a folder with a kustomization.yaml."""
    return _collected(folder.resolve(), [])


def _collected(folder: Path, objects: list[Object]) -> list[Object]:
    """The objects so far and those of the folder, patched by it; a component patches those that it finds."""
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(wanted) - _KEYS
    assert not unknown, f"{folder}: rendering.py does not know {unknown}"
    component = wanted["kind"] == "Component"
    found = objects if component else []
    for name in wanted.get("resources", []):
        path = folder / name
        found += _collected(path.resolve(), []) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for name in wanted.get("components", []):
        found = _collected((folder / name).resolve(), found)
    for patch in wanted.get("patches", []):
        assert set(patch) in ({"path", "target"}, {"patch", "target"}), patch
        text = (folder / patch["path"]).read_text() if "path" in patch else patch["patch"]
        target = patch["target"]
        assert set(target) == {"kind", "name"}, target
        hit = [one for one in found if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])]
        assert hit, f"{folder}: nothing is called {target}"
        for one in hit:
            for operation in yaml.safe_load(text):
                _apply(one, **operation)
    return found


def _apply(document: Any, op: str, path: str, value: Any = None) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace, remove, test."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path.removeprefix("/").split("/")]
    place = document
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    key: Any = last
    if isinstance(place, list):
        key = len(place) if last == "-" else int(last)
    if op == "test":
        assert place[key] == value, f"{path} is {place[key]!r}"
    elif op == "remove":
        del place[key]
    elif op == "replace":
        assert key in place if isinstance(place, dict) else key < len(place), f"{path} is not there"
        place[key] = value
    elif op == "add" and isinstance(place, list):
        place.insert(key, value)
    elif op == "add":
        place[key] = value
    else:
        raise AssertionError(f"rendering.py does not know {op}")


def overlay(folder: Path, resource: str, *components: str) -> Path:
    """An operator's own overlay, beside copies of the manifests: what it starts from, and what it adds."""
    wanted = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return written(folder, yaml.safe_dump({**wanted, "resources": [resource], "components": list(components)}))


def written(folder: Path, kustomization: str) -> Path:
    """An overlay with this kustomization.yaml, beside copies of the manifests."""
    shutil.copytree(FOLDER, folder / "kubernetes")
    mine = folder / "kubernetes" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(kustomization)
    return mine


def pick(objects: list[Object], kind: str) -> Object:
    """The one object of that kind."""
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def workload(objects: list[Object]) -> Object:
    """What makes pods: a Deployment or an InferenceService."""
    (found,) = [one for one in objects if one["kind"] in {"Deployment", "InferenceService"}]
    return found


#: Fields of a KServe predictor that belong to KServe; all others are those of a pod.
PREDICTOR_FIELDS = {"labels", "annotations", "minReplicas", "maxReplicas", "deploymentStrategy"}


def pod(objects: list[Object]) -> Object:
    """Labels and spec of the pods, as a Pod."""
    made = workload(objects)
    if made["kind"] == "Deployment":
        template = made["spec"]["template"]
        labels, spec = template["metadata"]["labels"], template["spec"]
    else:
        predictor = made["spec"]["predictor"]
        labels = predictor["labels"]
        spec = {key: value for key, value in predictor.items() if key not in PREDICTOR_FIELDS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "labels": labels}, "spec": spec}


def server(objects: list[Object]) -> Object:
    """The container that runs tritonserver."""
    (found,) = [one for one in pod(objects)["spec"]["containers"] if one.get("command") == ["tritonserver"]]
    return found
