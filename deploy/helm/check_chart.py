"""Checks the chart without a cluster; check.sh installs what this needs and starts it.

    check_chart.py CHART HELM HELM...

For the default values and each file of CHART/ci: `helm lint --strict` and `helm template` with every helm given, equal
renders, the strict schemas of each Kubernetes version from the chart's oldest on, and the promises that a schema cannot
hold (unique names, selectors that select, ports that exist, the drain arithmetic, the Pod Security profile). Then the
values that must be refused, the table of parameters against values.yaml, and versions and names that stand in two
places.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES_MINORS = range(30, 38)
TIERS = ("gateway", "tokenizer", "engine")

# Values that lint must refuse, and a word that its message must have: the key, or what is wrong with it.
REFUSED = [
    ("engin: {}", "engin"),
    ("gateway: {replicaCuont: 3}", "replicaCuont"),
    ("engine: {maxModelLength: 4096}", "maxModelLength"),
    ("engine: {resources: {limit: {cpu: 1}}}", "limit"),
    ("tokenizer: {podDisruptionBudget: {}}", "podDisruptionBudget"),
    ("image: {tags: v1}", "tags"),
    ("model: {path: /models}", "path"),
    ("networkPolicy: {enable: true}", "enable"),
    ("networkPolicy: {engineFrom: [{podSelektor: {}}]}", "podSelektor"),
    ("gateway: {tolerations: [{efect: NoSchedule}]}", "efect"),
    ("gateway: {extraEnv: [{name: A, vlaue: b}]}", "vlaue"),
    ("gateway: {replicaCount: '3'}", "replicaCount"),
    ("gateway: {replicaCount: -1}", "replicaCount"),
    ("gateway: {replicaCount: 1.5}", "replicaCount"),
    ("engine: {maxNumSequences: 0}", "maxNumSequences"),
    ("engine: {extraArgs: 'a string'}", "extraArgs"),
    ("engine: {extraArgs: [serve]}", "extraArgs"),
    ("tokenizer: {extraEnv: [{name: A, value: 1}]}", "value"),
    ("networkPolicy: {enabled: 'yes'}", "enabled"),
    ("startup: {timeoutSeconds: 10m}", "timeoutSeconds"),
    ("startup: {timeoutSeconds: 0}", "timeoutSeconds"),
    ("drain: {timeoutSeconds: null}", "timeoutSeconds"),
    ("drain: {preStopSeconds: -1}", "preStopSeconds"),
    ("image: {digest: sha256:abc}", "digest"),
    ("image: {pullPolicy: Sometimes}", "pullPolicy"),
    ("gateway: {service: {port: 70000}}", "port"),
    ("gateway: {podLabels: {app.kubernetes.io/name: mine}}", "app.kubernetes.io/name"),
    ("gateway: {podAnnotations: {a: 1}}", "podAnnotations"),
    ("model: {uri: ./folder}", "uri"),
    ("model: {servedName: 'two words'}", "servedName"),
    ("model: {uri: 'hf://no-organisation'}", "uri"),
    ("model: {uri: 'pvc://claim/../secrets'}", "uri"),
    ("model: {uri: 'hostpath://relative/folder'}", "uri"),
    ("model: {uri: 's3://bucket/model'}", "uri"),
    ("telemetry: {otlpEndpoint: 'collector:4317'}", "otlpEndpoint"),
    ("telemetry: {otlpEndpoint: 'https://collector:4317'}", "otlpEndpoint"),
    ("fullnameOverride: Upper", "fullnameOverride"),
    ("apiKeys: {keys: [secret]}", "keys"),
]

# What no schema can say and the templates refuse; lint does not run their `fail`, so rendering must.
REFUSED_BY_TEMPLATES = [
    ("engine: {strategy: {maxSurge: 0, maxUnavailable: 0}}", "engine.strategy"),
    ("engine: {strategy: {maxSurge: 0%, maxUnavailable: 0}}", "engine.strategy"),
    ("gateway: {extraEnv: [{name: A, value: b}, {name: A, value: c}]}", "A is set twice"),
    ("{model: {uri: 'hf://a/b'}, engine: {extraEnv: [{name: HF_HOME, value: /x}]}}", "HF_HOME is set twice"),
]


class Tally:
    """Counts checks; prints those that fail."""

    passed = 0
    failed = 0

    def check(self, holds, what):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {what}")


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML as the API server wants it: a mapping with one key twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"keys given twice: {sorted(twice)}{node.start_mark}")
        return super().construct_mapping(node, deep)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def main(chart, helms):
    tally = Tally()
    cases = {"default values": [], **{f"ci/{file.name}": ["-f", str(file)] for file in sorted(chart.glob("ci/*.yaml"))}}
    tally.check(len(cases) > 1, "there are values files in ci/")
    for case, values in cases.items():
        check_case(tally, case, chart, helms, values)
    check_refusals(tally, chart, helms)
    schema = json.loads((chart / "values.schema.json").read_text())
    check_schema_is_closed(tally, schema)
    check_table(tally, chart)
    check_versions(tally, chart)
    versions = ", ".join(run(helm, "version", "--template", "{{.Version}}").stdout for helm in helms)
    num_refused = len(REFUSED) + len(REFUSED_BY_TEMPLATES)
    kubernetes = f"Kubernetes 1.{KUBERNETES_MINORS[0]} to 1.{KUBERNETES_MINORS[-1]}"
    print(f"helm {versions}; {kubernetes}; {len(cases)} sets of values; {num_refused} that must be refused")
    if "FUSED_BIN" not in os.environ:
        print("SKIPPED: the flags of the binary (FUSED_BIN is not set)")
    print(f"chart: {tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


def check_case(tally, case, chart, helms, values):
    renders = []
    for helm in helms:
        lint = run(helm, "lint", "--strict", str(chart), *values)
        tally.check(lint.returncode == 0, f"{case}: helm lint --strict\n{lint.stdout}{lint.stderr}")
        render = run(helm, "template", "release", str(chart), "--namespace", "serving", *values)
        tally.check(render.returncode == 0, f"{case}: helm template\n{render.stderr}")
        renders.append(render.stdout)
    tally.check(len(set(renders)) == 1, f"{case}: every helm renders the same")
    try:
        documents = list(yaml.load_all(renders[0], UniqueKeyLoader))
    except yaml.YAMLError as error:
        tally.check(False, f"{case}: the render is YAML: {error}")
        return
    tally.check(bool(documents) and all(documents), f"{case}: no document is empty")
    documents = [document for document in documents if document]
    for document in documents:
        name = f"{case}: {document['kind']} {document['metadata']['name']}"
        for minor in KUBERNETES_MINORS:
            try:
                kubernetes_validate.validate(document, f"1.{minor}", strict=True)
                tally.check(True, name)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                tally.check(False, f"{name}: Kubernetes 1.{minor}: {error}")
        check_unique_names(tally, name, document)
    check_promises(tally, case, documents)
    if binary := os.environ.get("FUSED_BIN"):
        check_flags(tally, case, binary, documents)


def check_unique_names(tally, name, node):
    """Server-side apply merges lists by these keys and refuses an item that comes twice."""
    if isinstance(node, dict):
        for value in node.values():
            check_unique_names(tally, name, value)
    elif isinstance(node, list):
        items = [item for item in node if isinstance(item, dict)]
        for key in ("name", "mountPath", "containerPort"):
            found = [item[key] for item in items if key in item]
            tally.check(len(found) == len(set(found)), f"{name}: {key} comes twice in {found}")
        for item in items:
            check_unique_names(tally, name, item)


def check_promises(tally, case, documents):
    """What the templates promise one another, and what README.md promises the reader."""
    kinds = {}
    for document in documents:
        kinds.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    names = [document["metadata"]["name"] for document in documents]
    tally.check(all(len(name) <= 63 for name in names), f"{case}: no name is longer than 63 characters")
    namespaces = {document["metadata"].get("namespace") for document in documents}
    tally.check(namespaces == {"serving"}, f"{case}: every object stands in the release's namespace")

    deployments = {component_of(document): document for document in kinds["Deployment"].values()}
    tally.check(sorted(deployments) == sorted(TIERS), f"{case}: one Deployment a tier")
    grpc_services = proto_services()
    for tier, deployment in deployments.items():
        spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        selector = spec["selector"]["matchLabels"]
        tally.check(selects(selector, labels), f"{case}: {tier}: the selector selects its own pods")
        tally.check(
            sorted(selector) == [f"app.kubernetes.io/{key}" for key in ("component", "instance", "name")],
            f"{case}: {tier}: nothing that may change stands in the selector",
        )
        check_restricted(tally, f"{case}: {tier}", pod)
        container = pod["containers"][0]
        check_drain(tally, f"{case}: {tier}", pod, container)
        ports = {port["containerPort"] for port in container["ports"]}
        port_names = {port["name"] for port in container["ports"]}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind, {})
            if grpc := probe.get("grpc"):
                tally.check(grpc["port"] in ports, f"{case}: {tier}: {kind} asks a port that the container has")
                known = grpc["service"] in {"", *grpc_services}
                tally.check(known, f"{case}: {tier}: {kind} asks for a service of proto/: {grpc['service']}")
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        tally.check(mounts == volumes, f"{case}: {tier}: each volume is mounted and each mount has a volume")
        has_budget = any(component_of(budget) == tier for budget in kinds.get("PodDisruptionBudget", {}).values())
        tally.check(
            has_budget == (spec["replicas"] > 1), f"{case}: {tier}: a disruption budget from two replicas on only"
        )
        service = next((s for s in kinds["Service"].values() if component_of(s) == tier), None)
        tally.check(service is not None, f"{case}: {tier}: has a Service")
        if service is None:
            continue
        tally.check(selects(service["spec"]["selector"], labels), f"{case}: {tier}: the Service selects its pods")
        tally.check(
            all(port["targetPort"] in port_names for port in service["spec"]["ports"]),
            f"{case}: {tier}: the Service's target ports exist",
        )
        headless = service["spec"].get("clusterIP") == "None"
        tally.check(headless == (tier != "gateway"), f"{case}: {tier}: headless, but for the gateway")

    tests = kinds.get("Pod", {})
    tally.check(len(tests) == 1, f"{case}: one helm test")
    for test in tests.values():
        check_restricted(tally, f"{case}: helm test", test["spec"])
    check_addresses(tally, case, documents, kinds["Service"])
    check_policies(tally, case, kinds.get("NetworkPolicy", {}), deployments, tests)


def component_of(document):
    return document["metadata"]["labels"]["app.kubernetes.io/component"]


def selects(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def proto_services():
    """Full names of the gRPC services in proto/."""
    found = set()
    for file in ROOT.glob("proto/**/*.proto"):
        text = file.read_text()
        package = re.search(r"^package\s+([\w.]+);", text, re.MULTILINE)
        for service in re.findall(r"^service\s+(\w+)", text, re.MULTILINE):
            found.add(f"{package.group(1)}.{service}")
    return found


def check_restricted(tally, name, pod):
    """The profile "restricted" of the Pod Security Standards, and what this chart adds to it."""
    context = pod["securityContext"]
    tally.check(context.get("runAsNonRoot") is True, f"{name}: runs as non-root")
    tally.check(context.get("runAsUser") != 0, f"{name}: does not run as user 0")
    tally.check(context.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: seccomp RuntimeDefault")
    tally.check(pod.get("automountServiceAccountToken") is False, f"{name}: mounts no token")
    tally.check(pod.get("enableServiceLinks") is False, f"{name}: no service links in the environment")
    for container in pod["containers"]:
        own = container["securityContext"]
        tally.check(own["allowPrivilegeEscalation"] is False, f"{name}: no privilege escalation")
        tally.check(own["readOnlyRootFilesystem"] is True, f"{name}: read-only root")
        tally.check(own["capabilities"] == {"drop": ["ALL"]}, f"{name}: no capability")
        tally.check("memory" in container["resources"]["limits"], f"{name}: memory is limited")
        tally.check({"cpu", "memory"} <= set(container["resources"]["requests"]), f"{name}: requests CPU and memory")


def check_drain(tally, name, pod, container):
    drain = next(int(arg.split("=")[1]) for arg in container["args"] if arg.startswith("--drain-timeout-s="))
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    tally.check(
        pod["terminationGracePeriodSeconds"] == sleep + drain + 10,
        f"{name}: the grace period is the sleep, the drain and ten seconds",
    )


def check_addresses(tally, case, documents, services):
    """Every URL to a Service of ours, in arguments, names one that exists with that port."""
    urls = []
    for document in documents:
        pod = document["spec"].get("template", {}).get("spec") or document["spec"]
        for container in pod.get("containers", []):
            urls += re.findall(r"(?:http|grpc)://([a-z0-9-]+):(\d+)", " ".join(container["args"]))
    known = {(name, str(port["port"])) for name, service in services.items() for port in service["spec"]["ports"]}
    unknown = set(urls) - known
    tally.check(len(urls) >= 5 and not unknown, f"{case}: every address is a Service with that port, not {unknown}")


def check_policies(tally, case, policies, deployments, tests):
    if not policies:
        return
    tally.check(len(policies) == len(TIERS), f"{case}: one network policy a tier")
    pods = {tier: deployment["spec"]["template"] for tier, deployment in deployments.items()}
    pods |= {"test": test for test in tests.values()}
    callers = {"tokenizer": {"gateway", "test"}, "engine": {"tokenizer", "test"}}
    for policy in policies.values():
        tier, spec = component_of(policy), policy["spec"]
        labels = pods[tier]["metadata"]["labels"]
        tally.check(selects(spec["podSelector"]["matchLabels"], labels), f"{case}: {tier}: the policy meets its pods")
        open_ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        own_ports = {port["containerPort"] for port in pods[tier]["spec"]["containers"][0]["ports"]}
        tally.check(open_ports == own_ports, f"{case}: {tier}: the policy knows the ports that the container has")
        if tier in callers:
            peers = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in spec["ingress"][0].get("from", [])]
            let_in = {name for name, pod in pods.items() for peer in peers if selects(peer, pod["metadata"]["labels"])}
            tally.check(let_in == callers[tier], f"{case}: {tier}: lets in {callers[tier]}, not {let_in}")


def check_flags(tally, case, binary, documents):
    """Flags that the chart itself passes; --example-flag stands in ci/ for one of a user's own."""
    for document in documents:
        if document["kind"] != "Deployment":
            continue
        subcommand, *args = document["spec"]["template"]["spec"]["containers"][0]["args"]
        usage = run(binary, subcommand, "--help")
        tally.check(usage.returncode == 0, f"{case}: {binary} {subcommand} --help")
        known = set(re.findall(r"--[a-z][a-z-]*", usage.stdout))
        passed = {arg.split("=")[0] for arg in args} - {"--example-flag"}
        tally.check(passed <= known, f"{case}: {subcommand} does not know {sorted(passed - known)}")


def check_refusals(tally, chart, helms):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.yaml"
        for command, refused in (["lint", "--strict"], REFUSED), (["template"], REFUSED_BY_TEMPLATES):
            for values, word in refused:
                file.write_text(values)
                for helm in helms:
                    answer = run(helm, *command, str(chart), "-f", str(file))
                    said = answer.stdout + answer.stderr
                    tally.check(answer.returncode != 0 and word in said, f"refuses {values} with {word}\n{said}")


def check_schema_is_closed(tally, node, where="#"):
    """Every object lists its keys and takes no other, or is a free map whose values have a type."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_schema_is_closed(tally, item, f"{where}/{index}")
    if not isinstance(node, dict):
        return
    if "properties" in node and isinstance(node.get("type"), str):
        tally.check(node.get("additionalProperties") is False, f"values.schema.json: {where} is closed")
        unknown = set(node.get("required", [])) - set(node["properties"])
        tally.check(not unknown, f"values.schema.json: {where} requires {unknown}, which it does not know")
    if "$ref" in node:
        tally.check(node["$ref"].startswith("#/"), f"values.schema.json: {where} refers to this file only")
    for key, value in node.items():
        check_schema_is_closed(tally, value, f"{where}/{key}")


def leaves(values, path=""):
    """Dotted keys and their values; what a user gives whole (lists, empty maps) is a leaf."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, values


def check_table(tally, chart):
    """README.md lists each key with its default, `TIER.` standing for all three, and no other."""
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", (chart / "README.md").read_text(), re.MULTILINE)
    listed = {}
    for key, default in rows:
        for name in [key.replace("TIER.", f"{tier}.") for tier in TIERS] if key.startswith("TIER.") else [key]:
            tally.check(name not in listed, f"README.md: {name} stands once")
            listed[name] = yaml.safe_load(default) if default else ""
    defaults = dict(leaves(yaml.safe_load((chart / "values.yaml").read_text())))
    for key in sorted(defaults.keys() | listed.keys()):
        same = key in defaults and key in listed and defaults[key] == listed[key]
        tally.check(same, f"README.md: {key} is {defaults.get(key)!r} in values.yaml, {listed.get(key)!r} in the table")


def check_versions(tally, chart):
    meta = yaml.safe_load((chart / "Chart.yaml").read_text())
    workspace = re.search(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    tally.check(meta["appVersion"] == workspace, f"Chart.yaml: appVersion is the workspace's version {workspace}")
    oldest = f">=1.{KUBERNETES_MINORS[0]}.0-0"
    tally.check(meta["kubeVersion"] == oldest, f"Chart.yaml: kubeVersion is {oldest}, the oldest one checked")
    rust = re.search(r'^rust-version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    image = re.search(r"^FROM rust:([\d.]+)-", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE).group(1)
    tally.check(image == rust, f"Dockerfile: builds with the workspace's Rust {rust}, not {image}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
