"""The Helm chart: it renders without a cluster, fits Kubernetes' schemas, and its variables are settings."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.callers import MAY_CALL
from services.launcher.credentials import NAMES
from services.launcher.stack import SERVICES, SETTINGS

helm = pytest.importorskip("helm_python", reason="the group `chart` is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "dekag"
VARIANTS = ("default", "secure", "gpu", "small")
VERSION = "1.35"
CUSTOM = {"Issuer", "Certificate", "ServiceMonitor"}  # kinds whose schemas Kubernetes does not have
Manifest = dict[str, Any]


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags as what they are given."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def values_of(variant: str) -> dict[str, Any]:
    if variant == "default":
        return {}
    values: dict[str, Any] = yaml.safe_load((CHART / f"values-{variant}.yaml").read_text())
    return values


def rendered(values: dict[str, Any], name: str = "dekag") -> list[Manifest]:
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=name, namespace="images")
    return [
        manifest
        for path, text in files.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for deployment in of_kind(manifests, "Deployment").values():
        template = deployment["spec"]["template"]
        yield template["metadata"]["labels"]["app.kubernetes.io/component"], template["spec"]


def environment(pod: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in pod["containers"][0].get("env", [])}


@pytest.fixture(params=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(values_of(request.param))


def test_lint_finds_nothing() -> None:
    found = helm.lint(CHART)
    assert not [each for each in found["messages"] if "icon" not in str(each)]


def test_manifests_fit_the_schemas(manifests: list[Manifest]) -> None:
    assert {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"} <= {
        each["kind"] for each in manifests
    }
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(names) == len(set(names))


def test_variables_are_settings(manifests: list[Manifest]) -> None:
    known = {name for settings in SETTINGS.values() for name in settings.variables()}
    seen = set()
    for component, pod in pods(manifests):
        if component == "redis":
            continue
        seen.add(component)
        variables = environment(pod)
        assert set(variables) <= known
        settings = SETTINGS[component].read(variables)
        assert settings.grace_s + settings.drain_s < pod["terminationGracePeriodSeconds"]
        assert pod["enableServiceLinks"] is False
    assert seen == set(SETTINGS)


def test_addresses_are_services_of_the_release(manifests: list[Manifest]) -> None:
    services = of_kind(manifests, "Service")
    found = dict(pods(manifests))
    for component, (_, peers) in SERVICES.items():
        variables = environment(found[component])
        for variable, peer in peers.items():
            if variable == "DEKAG_DOWNLINK_ADDRESS":
                assert variables[variable].startswith(f"dekag-{peer}:")
            host, _, port = variables[variable].partition(":")
            service = services[host]["spec"]
            assert service["clusterIP"] == "None", "the callers choose among the addresses of all replicas"
            assert int(port) in [each["port"] for each in service["ports"]]
            assert int(port) == SETTINGS[peer].read(environment(found[peer])).port


def test_pods_meet_the_restricted_standard(manifests: list[Manifest]) -> None:
    for _, pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        allowed = {"emptyDir", "secret", "persistentVolumeClaim"}
        assert all((set(volume) - {"name"}) <= allowed for volume in pod["volumes"])
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_mounts_have_volumes_and_probes_have_ports(manifests: list[Manifest]) -> None:
    for component, pod in pods(manifests):
        (container,) = pod["containers"]
        assert {each["name"] for each in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }
        if component == "redis":
            continue
        ports = {each["containerPort"] for each in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "grpc" in container[probe]:
                assert container[probe]["grpc"]["port"] in ports


def test_budgets_and_policies_select_pods(manifests: list[Manifest]) -> None:
    labels = [
        each["spec"]["template"]["metadata"]["labels"] for each in of_kind(manifests, "Deployment").values()
    ]

    def selects(selector: dict[str, str]) -> bool:
        return any(selector.items() <= of.items() for of in labels)

    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for each in of_kind(manifests, kind).values():
            selector = each["spec"].get("selector") or each["spec"]["podSelector"]
            assert selects(selector["matchLabels"])
    for policy in of_kind(manifests, "NetworkPolicy").values():
        rules = policy["spec"]["ingress"] + policy["spec"]["egress"]
        for peer in (one for rule in rules for one in (*rule.get("from", []), *rule.get("to", []))):
            assert "namespaceSelector" in peer or selects(peer["podSelector"]["matchLabels"])


def test_policies_let_through_what_the_variables_name(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    for component, (_, peers) in SERVICES.items():
        for peer in peers.values():
            callers = [
                each["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                for rule in policies[f"dekag-{peer}"]["spec"]["ingress"]
                for each in rule.get("from", [])
                if "podSelector" in each
            ]
            assert component in callers


def test_secure_values_use_certificates_everywhere() -> None:
    manifests = rendered(values_of("secure"))
    secrets = {each["spec"]["secretName"] for each in of_kind(manifests, "Certificate").values()}
    certificates = of_kind(manifests, "Certificate")
    for component, pod in pods(manifests):
        (secret,) = [each["secret"]["secretName"] for each in pod["volumes"] if each["name"] == "credentials"]
        assert secret in secrets
        certificate = certificates[f"dekag-{component}"]["spec"]
        assert f"dekag-{component}" in certificate["dnsNames"], "callers check the name of the service"
        assert certificate["commonName"] == component, "services check the common name of their callers"
        if component != "redis":
            variables = environment(pod)
            assert variables["DEKAG_TLS_DIR"] == "/credentials"
            assert variables["DEKAG_REDIS_URL"].startswith("rediss://")
            assert "grpc" not in pod["containers"][0]["readinessProbe"], "kubelets have no certificate"
    names = {each["spec"]["commonName"] for each in certificates.values() if not each["spec"].get("isCA")}
    assert names & MAY_CALL.keys() == MAY_CALL.keys() & SETTINGS.keys()
    assert names <= set(NAMES)
    (monitor,) = of_kind(manifests, "ServiceMonitor").values()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["keySecret"]["name"] in secrets
    (scaler,) = of_kind(manifests, "HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]["name"]
    assert "replicas" not in of_kind(manifests, "Deployment")[target]["spec"]


def test_secure_values_draw_as_the_secure_compose_file_does() -> None:
    compose = yaml.load((CHART.parents[1] / "compose.secure.yml").read_text(), Loader=ComposeLoader)  # noqa: S506 - a safe one
    for component, pod in pods(rendered(values_of("secure"))):
        wanted = compose["services"].get(component, {}).get("environment", {}).get("DEKAG_GENERATE_BATCH")
        assert environment(pod).get("DEKAG_GENERATE_BATCH") == wanted, component


def test_redis_starts_again_with_a_renewed_certificate(tmp_path: Path) -> None:
    (container,) = dict(pods(rendered(values_of("secure"))))["redis"]["containers"]
    copies = container["command"][-1].split(";")[0]
    compares = container["livenessProbe"]["exec"]["command"][-1].split("&&")[0]

    def succeeds(command: str) -> bool:
        command = re.sub(r" (/credentials|/tmp)/", rf" {tmp_path}\1/", command)
        return subprocess.run(["sh", "-c", command], check=False).returncode == 0

    for folder in ("credentials", "tmp"):
        (tmp_path / folder).mkdir()
    (tmp_path / "credentials" / "tls.crt").write_text("first")
    assert succeeds(copies)
    assert succeeds(compares)
    (tmp_path / "credentials" / "tls.crt").write_text("renewed")
    assert not succeeds(compares)


def test_every_replica_is_a_target() -> None:
    manifests = rendered({"monitoring": {"enabled": True}})
    (monitor,) = of_kind(manifests, "ServiceMonitor").values()
    selector, (endpoint,) = monitor["spec"]["selector"]["matchLabels"], monitor["spec"]["endpoints"]
    components = [
        service["metadata"]["labels"]["app.kubernetes.io/component"]
        for service in of_kind(manifests, "Service").values()
        if selector.items() <= service["metadata"]["labels"].items()
        and endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    ]
    assert sorted(components) == sorted(SETTINGS)


def test_gpus_are_requested_where_models_use_them() -> None:
    for component, pod in pods(rendered(values_of("gpu"))):
        gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert gpus == (environment(pod).get("DEKAG_DEVICE") == "cuda")
        assert bool(gpus) == ("tolerations" in pod)
        if component == "edge":
            assert gpus


def test_edges_need_no_volume_of_knowledge() -> None:
    """They get updates from Redis or from the cloud; only who writes them mounts the volume."""
    for name in ("default", "secure", "gpu", "small"):
        found = dict(pods(rendered(values_of(name))))
        claims = {
            component: [each for each in pod["volumes"] if each["name"] == "knowledge"]
            for component, pod in found.items()
        }
        assert {component for component, own in claims.items() if own} == {"cloud", "distiller"}


def test_knowledge_on_one_node_keeps_distillers_there() -> None:
    found = dict(pods(rendered(values_of("small"))))
    (term,) = found["distiller"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "cloud"


@pytest.mark.parametrize("exposed", [{"service": {"type": "LoadBalancer"}}, {"ingress": {"enabled": True}}])
def test_no_gateway_is_exposed_without_keys(exposed: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError, match=r"gateway\.apiKeysSecret must name a secret"):
        rendered({"gateway": exposed})
    keys = {"apiKeysSecret": "keys", "ingress": {"host": "images.example"}}  # pragma: allowlist secret
    merged = {**keys, **exposed, "ingress": {**keys["ingress"], **exposed.get("ingress", {})}}  # type: ignore[dict-item]
    found = dict(pods(rendered({"gateway": merged})))
    assert environment(found["gateway"])["DEKAG_API_KEYS_FILE"] == "/keys/api-keys"
