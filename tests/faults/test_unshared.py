"""A real cluster whose nodes are no copies: one has a folder of its own in the root's place, one lacks the data set."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TINY

from takd.study.data import import_files
from takd.trainables.datasets.built_in import OWN

CAN_UNSHARE = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0

# A head that trains nothing, and a node that sees an empty folder where the root is; then one that sees the root, and
# has neither the data set nor two CPUs.
NODES = """
import os, subprocess, sys, time
import ray
from ray.cluster_utils import Cluster

space, root, cache = sys.argv[1:]
own = {**os.environ, "TAKD_CACHE": cache}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
join = f"exec ray start --address={cluster.address} --num-cpus=1 --block"

def run(node, environment):
    started = subprocess.Popen(node, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while ray.cluster_resources().get("CPU", 0) != 1:
            assert started.poll() is None, "the node does not start"
            time.sleep(0.2)
        study = [sys.executable, "-m", "takd", "run", space, "--root", root, "--wandb", "disabled"]
        done = subprocess.run([*study, "--address", cluster.address], capture_output=True, text=True, timeout=120)
        print(repr((done.returncode, done.stdout, done.stderr)), flush=True)
    finally:
        started.terminate()
        started.wait()
        while ray.cluster_resources().get("CPU", 0):
            time.sleep(0.2)

run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs {root} && {join}"], os.environ)
run(["sh", "-c", join], own)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(not CAN_UNSHARE, reason="this machine gives no mount namespace, which takes root")
def test_a_node_without_the_root_is_named_before_it_trains_and_one_without_the_data_set_gets_it(trees, tmp_path):
    import_files(OWN, trees, "trees", None, False)
    recipe = {"epochs": 1, "batch_size": 16}
    space: dict[str, Any] = {
        **TINY,
        "dataset": "trees",
        "teacher": {"model": "mlp-16", "recipe": recipe},
        "assistants": [],
        "student": {**TINY["student"], "recipe": recipe},
        "arms": ["kd"],
        "trials": 1,
        "coverage": 1,
        "resources": {"teacher": {"cpu": 2}},
    }
    file, root, cache = tmp_path / "tiny.yaml", tmp_path / "runs", tmp_path / "cache"
    file.write_text(yaml.safe_dump(space))
    root.mkdir()
    # What a Ray of our own is started with would let no node join.
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", NODES, str(file), str(root), str(cache)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    unshared, without_data = map(eval, done.stdout.strip().splitlines())

    code, _, errors = unshared
    assert code == 1
    assert re.fullmatch(
        rf"takd: stopped: node \S+ \([0-9a-f]+\): root {root}: what the study's process wrote there is not seen on "
        r"that node; every node needs one and the same folder at this path, .*; go on with: takd run .*\n",
        errors,
    )

    code, output, errors = without_data
    assert (code, errors) == (0, "")
    assert "warning: resources.teacher.cpu is 2; no node has more than 1, which it gets" in output
    assert "3 stages trained in this run" in output  # and the first run none
    assert set(pd.read_parquet(root / "tiny" / "results" / "trials.parquet")["status"]) == {"done"}
    assert [each.name for each in (root / "tiny").glob("nodes/*")] == []
    [fetched] = (cache / "datasets").iterdir()
    assert (fetched / "train.arrow").exists()
