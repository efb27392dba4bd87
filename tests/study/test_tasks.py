"""The second task whole, by the command line: from a raw folder of histology to an exported, verified student."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
import torchvision
from histology import write_mhist
from in_process import train_here

from takd.trainables.datasets.dataset import load

SPACE = """
dataset: mhist
teacher:
  model: torchvision/resnet18
  pretrained: resnet18.pth
  recipe: {epochs: 3, head_epochs: 1, finetune_from: layer4, batch_size: 8, class_weights: balanced}
student:
  model: plain-2
  temperature: 4
  lambda: 0.5
  recipe: {epochs: 3, batch_size: 8, class_weights: balanced, augment: flip-rotate, views: 2}
arms: [kd]
sampler: grid
confirm: {seeds: 2}
"""


@pytest.fixture
def converted_for_a_while(cache: Path) -> Iterator[None]:
    """In the cache that workers have; other tests expect that MHIST is not there."""
    yield
    for file in (cache / "datasets").glob("mhist*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    load.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_slots", "converted_for_a_while")
def test_a_raw_folder_of_histology_becomes_a_verified_student(takd, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    write_mhist(tmp_path / "raw", train=40, test=24, size=32)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    (tmp_path / "tissue.yaml").write_text(SPACE)

    refused = takd("run", "tissue.yaml")
    assert (refused.code, "student.recipe: augment is flip-rotate" in refused.err) == (2, True)
    run = ["run", "tissue.yaml", "--set", "teacher.recipe.augment=flip-rotate", "--set", "teacher.recipe.views=2"]
    refused = takd(*run)
    assert (refused.code, "takd data mhist --from DIR" in refused.err) == (2, True)
    assert takd("data", "mhist", "--from", "raw").code == 0
    with patch("takd.study.search.scheduling.run_stages", train_here):
        ran = takd(*run)
    assert ran.code == 0, ran.err
    assert "its interval over images" in ran.out  # of the AUC

    trials = pd.read_parquet("runs/tissue/results/trials.parquet")
    final = trials[(trials["phase"] == "confirm") & (trials["role"] == "student")]
    assert len(final) == 2
    assert final[["test_auc", "test_f1", "test_threshold"]].notna().all(axis=None)
    assert (final["test_auc_low"] <= final["test_auc"]).all()

    assert takd("export", "tissue", "--out", "out", "--metric", "auc").code == 0
    card = json.loads((tmp_path / "out" / "model_card.json").read_text())
    assert card["metrics"]["test"]["two_classes"]["positive"] == "SSA"
    assert card["metrics"]["test"]["two_classes"]["auc"] in final["test_auc"].tolist()
    assert takd("verify", "out").code == 0
    shown = takd("predict", "out", "raw/images/MHIST_0000.png").out
    assert "HP" in shown
    assert "SSA" in shown
