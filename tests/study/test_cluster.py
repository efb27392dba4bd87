"""The cluster's files: what Ray makes of them, what they open, and a local cluster made from `cluster.yaml`."""

import copy
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from conftest import TINY
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from takd.search_spaces import load_space, presets
from takd.study.search.scheduling import STOP_SECONDS, _staged_code
from takd.study.stopping import INTERRUPTED

ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
HEAD = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
WORKERS = {name: kind for name, kind in CLUSTER["available_node_types"].items() if name != CLUSTER["head_node_type"]}
STARTS = {role: CLUSTER[f"{role}_start_ray_commands"] for role in ("head", "worker")}
JOB: dict[str, Any] = yaml.safe_load((ROOT / "kuberay.yaml").read_text())
PODS = {
    group["template"]["spec"]["containers"][0]["name"]: group
    for group in [JOB["spec"]["rayClusterSpec"]["headGroupSpec"], *JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|\b[0-9a-f]{32,}\b|-----BEGIN|(?i:secret_?access_?key|aws_access|wandb_api_key)|"
    r"//[^/\s@]+:(?!PASSWORD@)[^/\s@]+@"
)


def on_spot(kind: dict[str, Any]) -> bool:
    return bool(kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot")


def test_ray_accepts_the_cluster():
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_would_notice_a_misspelt_field():
    """So that the test above says something."""
    with pytest.raises(Exception, match="idle_timeout_minute'"):
        validate_config(prepare_config(copy.deepcopy(CLUSTER) | {"idle_timeout_minute": 5}))


def test_no_stage_trains_on_the_head_and_there_is_one():
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    assert HEAD["resources"] == {"CPU": 0}
    assert prepared["available_node_types"][prepared["head_node_type"]]["max_workers"] == 0
    assert not on_spot(HEAD)


def test_gpu_workers_are_on_spot_with_fewer_on_demand_beside_them():
    spot = [kind for kind in WORKERS.values() if on_spot(kind)]
    on_demand = [kind for kind in WORKERS.values() if not on_spot(kind)]
    assert spot
    assert on_demand
    assert sum(kind["max_workers"] for kind in on_demand) < sum(kind["max_workers"] for kind in spot)
    assert all(kind["resources"]["GPU"] >= 1 and kind["resources"]["CPU"] >= 1 for kind in WORKERS.values())
    assert sum(kind["max_workers"] for kind in WORKERS.values()) <= CLUSTER["max_workers"]


def test_a_worker_on_demand_is_a_worker_on_spot_but_for_the_market():
    """Else Ray's choice between them would be one by resources."""
    machines = [
        (
            kind["resources"],
            {key: value for key, value in kind["node_config"].items() if key != "InstanceMarketOptions"},
        )
        for kind in WORKERS.values()
    ]
    assert all(machine == machines[0] for machine in machines)


def test_idle_workers_go_and_none_is_kept():
    assert CLUSTER["idle_timeout_minutes"] == 5
    assert [kind["min_workers"] for kind in WORKERS.values()] == [0] * len(WORKERS)


def test_all_nodes_have_one_image():
    assert len({kind["node_config"]["ImageId"] for kind in CLUSTER["available_node_types"].values()}) == 1


def test_the_world_reaches_nothing_but_ssh():
    rules = CLUSTER["provider"]["security_group"]["IpPermissions"]
    assert [rule for rule in rules if (rule.get("FromPort"), rule.get("ToPort")) != (22, 22)] == []
    for kind in CLUSTER["available_node_types"].values():  # these would put other groups in place of the provider's
        assert not {"SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate"} & set(kind["node_config"])
    starts = [command for command in STARTS["head"] if "ray start" in command]
    assert ["--dashboard-host=127.0.0.1" in shlex.split(command) for command in starts] == [True]
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()
    assert "10001" not in (ROOT / "cluster.yaml").read_text()


@pytest.mark.parametrize("role", STARTS)
def test_nothing_of_ray_starts_without_the_token(role):
    commands = [command for command in STARTS[role] if command != "ray stop"]
    assert any("ray start" in command for command in commands)
    assert [command for command in commands if not command.startswith("export RAY_AUTH_MODE=token")] == []
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_every_shell_on_a_node_has_the_token_the_root_and_the_storage(home):
    shell = environment("", home)
    assert shell["RAY_AUTH_MODE"] == "token"
    assert shell["TAKD_ROOT"].startswith("s3://")
    assert shell["TAKD_STORAGE"].startswith("postgresql")
    assert shell["PATH"].startswith(f"{home}/venv/bin:")
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_the_database_has_neither_a_port_nor_a_password(home):
    storage = urlsplit(environment("", home)["TAKD_STORAGE"])
    assert (storage.netloc, storage.path) == ("", "/takd")
    assert parse_qs(storage.query)["host"][0].startswith("/")  # a socket's folder
    assert any("listen_addresses = ''" in command for command in CLUSTER["head_setup_commands"])


def test_every_node_installs_the_project_with_the_pinned_versions():
    (command,) = [command for command in CLUSTER["setup_commands"] if "pip install" in command]
    words = shlex.split(command)
    assert words[words.index("-c") + 1] == "constraints.txt"
    folder, _, extras = words[words.index("-e") + 1].partition("[")
    assert folder == "."
    assert set(filter(None, extras.rstrip("]").split(","))) <= set(PROJECT["project"]["optional-dependencies"])
    assert words[words.index("cd") + 1] == "~/takd"


def test_what_is_copied_to_the_nodes_is_there_and_is_all_that_pip_needs():
    copied = {to.removeprefix("/home/ubuntu/takd/"): here for to, here in CLUSTER["file_mounts"].items()}
    copied.pop("/home/ubuntu/.ray/auth_token")
    assert [here for to, here in copied.items() if here != to or not (ROOT / here).exists()] == []
    needed = {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"]}
    needed |= set(PROJECT["tool"]["setuptools"]["package-dir"].values())
    needed |= {file.partition("/")[0] for file in PROJECT["project"]["license-files"]}
    assert set(copied) == needed


@pytest.mark.parametrize("name", ["cluster.yaml", "kuberay.yaml", "slurm.sbatch"])
def test_there_is_no_secret_in(name):
    assert SECRET.findall((ROOT / name).read_text()) == []


def test_what_is_yours_to_fill_in_is_marked():
    """An image, a bucket and two instance roles; in Kubernetes an image, a bucket and a service account."""
    assert re.findall(r"ami-(\S+)", (ROOT / "cluster.yaml").read_text()) == ["REPLACE-ME"]
    for name in ("cluster.yaml", "kuberay.yaml"):
        assert set(re.findall(r"s3://([^/\s]+)", (ROOT / name).read_text())) == {"REPLACE-ME"}
    profiles = [kind["node_config"]["IamInstanceProfile"]["Name"] for kind in CLUSTER["available_node_types"].values()]
    accounts = [group["template"]["spec"]["serviceAccountName"] for group in PODS.values()]
    assert [name for name in profiles + accounts if not name.startswith("REPLACE-ME")] == []
    assert profiles.count(HEAD["node_config"]["IamInstanceProfile"]["Name"]) == 1  # a worker can't start machines


def test_a_kuberay_job_takes_its_cluster_with_it():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True


def test_the_job_runs_a_study_that_takd_understands():
    command, verb, space, *options = shlex.split(JOB["spec"]["entrypoint"])
    assert (command, verb, space) == ("takd", "run", "mnist-gap")
    assert options[:3] == ["--address", "auto", "--root"]
    overrides = [options[place + 1] for place, word in enumerate(options) if word == "--set"]
    chosen = load_space(space, overrides)
    assert [chosen.resources_of(role).gpu for role in ("teacher", "assistant", "student")] == [1, 1, 0.25]


def test_the_jobs_command_needs_no_shell():
    """KubeRay's submitter expands it in a pod that has none of the head's variables."""
    assert not set("$`;&|<>") & set(JOB["spec"]["entrypoint"])


def test_the_jobs_cluster_grows_from_nothing_and_trains_nothing_on_its_head():
    spec = JOB["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    derived = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    kinds = derived["available_node_types"]
    assert derived["idle_timeout_minutes"] == 5
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert (kinds["gpu"]["min_workers"], kinds["gpu"]["resources"]["GPU"]) == (0, 1)
    assert kinds["gpu"]["max_workers"] > 0


def test_the_jobs_secrets_come_from_kubernetes_and_its_ports_stay_inside():
    spec = JOB["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "takd-ray-token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    given = PODS["ray-head"]["template"]["spec"]["containers"][0]["env"]
    assert given == [{"name": "TAKD_STORAGE", "valueFrom": {"secretKeyRef": {"name": "takd-postgresql", "key": "url"}}}]


def test_a_slurm_job_hears_of_its_end_before_it_comes_and_gives_its_arguments_to_takd():
    text = (ROOT / "slurm.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    to_whom, _, seconds = asked["signal"].partition("@")
    assert (to_whom, "requeue" in asked, asked["open-mode"]) == ("B:TERM", True, "append")
    assert int(seconds) > STOP_SECONDS + 60  # Slurm may send it a minute early; the rest is for checkpoints
    assert 'takd run "$@" --address "$RAY_ADDRESS" &' in text
    assert f'[ "$code" = {INTERRUPTED} ]' in text
    subprocess.run(["bash", "-n", ROOT / "slurm.sbatch"], check=True)


def test_the_files_and_the_pinned_versions_name_one_ray():
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert str(JOB["spec"]["rayClusterSpec"]["rayVersion"]) == pinned


def test_what_is_sent_to_workers_is_all_that_they_need_and_is_not_left_behind():
    """Without `site` a Python knows no installed project: it has what was sent, and the libraries."""
    script = (
        "import takd.trainables.batch, takd.trainables.stage_trainable as it\n"
        "from takd.search_spaces import presets\n"
        "from takd.trainables.datasets.mnist import read_shipped_mnist\n"
        "print(it.__file__, len(presets()), len(read_shipped_mnist()['test'].labels))"
    )
    with _staged_code() as package:
        assert [each for each in package.rglob("*") if each.name == "__pycache__"] == []
        assert {each.name for each in package.iterdir()} == {"__init__.py", "search_spaces", "trainables"}
        libraries = [place for place in sys.path if place.endswith("-packages")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(package.parent), *libraries])}
        command = [sys.executable, "-S", "-P", "-c", script]
        sent, *counts = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split()
    assert Path(sent).is_relative_to(package)
    assert counts == [str(len(presets())), "10000"]
    assert not package.parent.exists()


# --- A local cluster, started by the commands of `cluster.yaml`, with Ray's fake nodes in the place of AWS's. ---

IDLE_SECONDS = 3
JOIN = """
import json, sys, time
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
"""
MARKET_OF_A_GPU_TASK = """
@ray.remote(num_gpus=0.25)
def market():
    return ray.get_runtime_context().get_node_labels().get("ray.io/market-type")

print(ray.get(market.remote(), timeout=60))
"""
WATCH_WORKERS = """
seen, until = [], time.monotonic() + 120
while time.monotonic() < until and (len(seen) < 3 or seen[-1]):
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    now = sorted(node["Labels"].get("ray.io/market-type", "?") for node in alive)
    if not seen or now != seen[-1]:
        seen.append(now)
    time.sleep(0.1)
print(json.dumps(seen))
"""
# A user's code, with a module beside it; it trains on other nodes than it was read on.
OWN_FAMILY = """
import BESIDE
import takd


@takd.model_family("own")
def own(size, image_shape, classes):
    first, last = BESIDE.nn.Linear(28 * 28, size), BESIDE.nn.Linear(size, classes)
    return BESIDE.nn.Sequential(BESIDE.nn.Flatten(), first, BESIDE.nn.Tanh(), last)
""".replace("BESIDE", "analysis")
HELLO = """
print(ray.get(ray.remote(num_cpus=0)(lambda: "let in").remote(), timeout=60))
limits = ray._private.state.state.get_max_resources_from_cluster_config()
print(json.dumps([ray.cluster_resources(), limits]))
"""
# Ray's fake nodes, of which none on spot can be had while there is a file `no-spot`.
WITHOUT_SPOT = """
from pathlib import Path

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException


class WithoutSpot(FakeMultiNodeProvider):
    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        if labels["ray.io/market-type"] == "spot" and Path(__file__).with_name("no-spot").exists():
            raise NodeLaunchException("InsufficientInstanceCapacity", "as AWS says it", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
"""
ONE_TRY = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # Ray would try a cluster that refuses it for 20 seconds
HERE = {"TAKD_STORAGE": "", "TAKD_CACHE": os.environ.get("TAKD_CACHE", "")} | ONE_TRY  # no PostgreSQL of a node's
FAKE_NODES = "without_spot.WithoutSpot"


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and what a client that may use it has in its environment."""

    address: str
    environment: dict[str, str]
    home: Path

    def start(self, *command: str, **changes: str) -> subprocess.Popen[str]:
        """Starts a driver of the cluster."""
        given = self.environment | changes
        return subprocess.Popen(command, env=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def join(self, script: str) -> tuple[str, ...]:
        return sys.executable, "-c", JOIN + script, self.address


def outcome(driver: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = driver.communicate(timeout=180)
    return driver.returncode, output, errors


def environment(command: str, home: Path) -> dict[str, str]:
    """What a command of `cluster.yaml` runs with: a shell's own, and what it exports itself."""
    exports = re.match(r"export [^;]+;", command)
    script = f". ~/.bashrc; {exports[0] if exports else ''} env -0"
    shell = {"HOME": str(home), "PATH": os.environ["PATH"]}
    output = subprocess.run(["bash", "-c", script], env=shell, check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in output.split("\0") if line)


@pytest.fixture
def home() -> Iterator[Path]:
    """A node's home folder, after the setup commands that only write files."""
    with new_home() as folder:
        yield folder


@contextmanager
def new_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="takd-", dir="/tmp"))  # a socket's path has at most 107 characters
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    (folder / ".bashrc").touch()
    for command in CLUSTER["setup_commands"] + CLUSTER["head_setup_commands"]:
        if not re.search(r"\b(sudo|pip|venv/bin/python)\b", command) or command.startswith("cat > "):
            shell = {"HOME": str(folder), "PATH": os.environ["PATH"]}
            subprocess.run(["bash", "-c", f"({command})"], env=shell, check=True, capture_output=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def with_fake_nodes(address: str) -> dict[str, Any]:
    """`cluster.yaml` for one machine: its node types and their limits, Ray's fake nodes, idle for seconds at most."""
    small = {"object_store_memory": 80_000_000}
    workers = {
        name: kind | {"node_config": {}, "resources": kind["resources"] | small} for name, kind in WORKERS.items()
    }
    head = {"resources": HEAD["resources"], "node_config": {}, "max_workers": 0}
    # Of another module, because Ray's wheel lacks the file of defaults for the type `fake_multinode`.
    nodes = {"type": "external", "module": FAKE_NODES, "gcs_address": address, "head_node_id": FAKE_HEAD_NODE_ID}
    nodes |= {"use_node_id_as_ip": True, "launch_multiple": True, "disable_node_updaters": True}
    commands = ["initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"]
    return {
        "cluster_name": CLUSTER["cluster_name"],
        "max_workers": CLUSTER["max_workers"],
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "upscaling_speed": 1.0,
        "provider": nodes,
        "auth": CLUSTER["auth"],
        "docker": {},
        "head_node_type": "ray.head.default",  # the fake nodes know no other
        "available_node_types": {"ray.head.default": head, **workers},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in commands},
    }


@contextmanager
def local_cluster() -> Iterator[Cluster]:
    """A cluster on loopback. Ray's own `AutoscalingCluster` would first end every other Ray on this machine."""
    with new_home() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        address = f"127.0.0.1:{port}"
        (home / "autoscaling" / "without_spot.py").write_text(WITHOUT_SPOT)
        config = home / "ray_bootstrap_config.yaml"
        config.write_text(yaml.safe_dump(with_fake_nodes(address)))
        *_, start, report = STARTS["head"]
        given = environment(start, home) | {
            "PATH": os.environ["PATH"],
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all on 127.0.0.1
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_prestart_worker_first_driver": "0",  # one a CPU of each node, of which no study here has use
        }
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--block"]
        command += [f"--temp-dir={home}/ray", f"--autoscaling-config={config}", "--num-cpus=0", "--disable-usage-stats"]
        command += ["--include-dashboard=false", "--object-store-memory=80000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        with (home / "log").open("w") as log:
            head = subprocess.Popen(command, env=given, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: "Ray runtime started" in (home / "log").read_text(), home / "log")
            limits = [sys.executable, str(home / "autoscaling" / "report_limits.py"), str(config), address]
            assert limits[1].removeprefix(str(home)) in report.replace("~", "")
            subprocess.run(limits, env=given, check=True, timeout=60)
            yield Cluster(address, given, home)
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def wait_until(done: Callable[[], bool], log: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with local_cluster() as running:
        yield running


@pytest.mark.slow
def test_who_has_the_token_is_let_in_and_learns_how_far_an_empty_cluster_can_grow(cluster):
    status, output, errors = outcome(cluster.start(*cluster.join(HELLO), **ONE_TRY))
    assert status == 0, errors
    said, resources = output.splitlines()
    assert said == "let in"
    has, could_have = json.loads(resources)
    assert not {"CPU", "GPU"} & set(has)
    for name in ("CPU", "GPU"):
        assert could_have[name] == sum(kind["max_workers"] * kind["resources"][name] for kind in WORKERS.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"HOME": "/nonexistent", "RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}],
    ids=["a client that knows of no tokens", "another token"],
)
def test_who_lacks_the_token_is_refused(cluster, changes):
    driver = cluster.start(*cluster.join(HELLO), **ONE_TRY, **changes)
    status, output, errors = outcome(driver)
    assert (status, output) == (1, "")
    assert "AuthenticationError" in errors or "Failed to connect" in errors


@pytest.mark.slow
def test_a_cluster_of_these_node_types_grows_for_a_study_and_shrinks_when_idle(cluster, tmp_path):
    space = tmp_path / "tiny.yaml"
    student = {**TINY["student"], "model": "own-4"}
    space.write_text(yaml.safe_dump({**TINY, "arms": ["kd"], "trials": 2, "code": "nets.py", "student": student}))
    (tmp_path / "nets.py").write_text(OWN_FAMILY)
    (tmp_path / "analysis.py").write_text("from torch import nn")
    takd = str(Path(sys.executable).with_name("takd"))
    where = ("--root", str(tmp_path / "runs"), "--address", cluster.address, "--wandb", "disabled")
    watcher = cluster.start(*cluster.join(WATCH_WORKERS))
    status, output, errors = outcome(cluster.start(takd, "run", str(space), *where, **HERE))
    assert (status, "5 stages trained in this run; the study is complete" in output) == (0, True), output + errors
    _, seen, errors = outcome(watcher)
    first, *grown, last = json.loads(seen)
    assert (first, last) == ([], []), errors
    assert {market for workers in grown for market in workers} == {"spot"}


@pytest.mark.slow
def test_where_spot_has_no_capacity_a_worker_on_demand_comes(cluster):
    """After the test above no worker is left."""
    (cluster.home / "autoscaling" / "no-spot").touch()
    status, output, errors = outcome(cluster.start(*cluster.join(MARKET_OF_A_GPU_TASK)))
    assert (status, output) == (0, "on-demand\n"), errors


@pytest.mark.slow
def test_a_study_without_the_token_ends_in_one_line(cluster, tmp_path):
    space = tmp_path / "tiny.yaml"
    space.write_text(yaml.safe_dump(TINY))
    takd = str(Path(sys.executable).with_name("takd"))
    where = ("--root", str(tmp_path / "runs"), "--address", cluster.address, "--wandb", "disabled")
    status, _, errors = outcome(cluster.start(takd, "run", str(space), *where, HOME="/nonexistent", **HERE))
    assert status == 2
    assert re.fullmatch(r"takd: --address \S+: (the cluster wants its token|no Ray cluster answers).*\n", errors)
