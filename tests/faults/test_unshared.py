"""A real cluster one node of which has a folder of its own in the root's place."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY

CAN_UNSHARE = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0

# A head that trains nothing, and a node that sees an empty folder where the root is.
NODES = """
import subprocess, sys, time
import ray
from ray.cluster_utils import Cluster

space, root = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
join = f"mount -t tmpfs tmpfs {root} && exec ray start --address={cluster.address} --num-cpus=1 --block"
started = subprocess.Popen(["unshare", "-m", "sh", "-c", join], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    while ray.cluster_resources().get("CPU", 0) != 1:
        assert started.poll() is None, "the node does not start"
        time.sleep(0.2)
    study = [sys.executable, "-m", "takd", "run", space, "--root", root, "--wandb", "disabled"]
    code = subprocess.run([*study, "--address", cluster.address], timeout=120).returncode
finally:
    started.terminate()
    started.wait()
    ray.shutdown()
    cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not CAN_UNSHARE, reason="this machine gives no mount namespace, which takes root")
def test_a_node_without_the_root_is_named_before_it_trains(tmp_path):
    file, root = tmp_path / "tiny.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(TINY | {"resources": {"teacher": {"cpu": 2}}}))
    root.mkdir()
    # What a Ray of our own is started with would let no node join.
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", NODES, str(file), str(root)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "warning: resources.teacher.cpu is 2; no node has more than 1, which it gets" in done.stdout
    assert re.search(
        rf"takd: stopped: node \S+ \([0-9a-f]+\): root {root}: what the study's process wrote there is not seen on "
        r"that node; every node needs one and the same folder at this path, .*; go on with: takd run .*\n$",
        done.stderr,
    )
    assert not (root / "artifacts").exists()
    assert [each.name for each in (root / "tiny").glob("nodes/*")] == []
