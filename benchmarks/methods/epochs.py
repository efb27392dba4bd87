"""What an epoch of a student costs by each method, beside `kd` and beside a teacher in the loop.

    .venv/bin/python benchmarks/methods/epochs.py --images cifar10-images.tar.xz
        [--a-class 200] [--epochs 3] [--threads 1]

`--images` is a tar of `train/CLASS/*` and `test/CLASS/*`. A teacher is trained for one epoch, as its quality changes no
time, and what it leaves is derived before, once for all methods. Then a student learns by each method in turn, an epoch
at a time, from the store as workers have it; what counts is the least of its epochs, in CPU seconds, since other
programs may run beside this one. In the loop is a plain loop with `kd` and the teacher's forward pass in every step.

Exits 1 where a method on the embedding, but for `crd`, costs more than 1.25 times `kd`.
"""

import argparse
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from takd.search_spaces import Loss, Recipe, Stage, Term, needed_by
from takd.study import cli
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.derivation import derive
from takd.trainables.models.learned import weights_of
from takd.trainables.models.stage_models import finished_module
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training.loop import StageTraining

ORIGIN = {"study": "methods", "use": "0.0"}
MOST = 1.25  # times `kd`
ON_EMBEDDINGS = ("hint", "rkd", "pkt", "sp_pooled")
METHODS = ("kd", "dist", *ON_EMBEDDINGS, "crd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--a-class", type=int, default=200, help="training images of each class")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--teacher", default="resnet-56")
    parser.add_argument("--student", default="resnet-8")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        dataset = converted(options.images, options.a_class, work)
        store = ArtifactStore(str(work / "root"))
        teacher = stage(options.teacher, dataset, 1, options.batch_size)
        finish(StageBatch([teacher], store, options.threads, False, {teacher.key: ORIGIN}))
        students = {
            method: stage(options.student, dataset, options.epochs + 1, options.batch_size, teacher, method)
            for method in METHODS
        }
        for student in students.values():
            derive(teacher, needed_by(student), store, options.threads, ORIGIN)
        seconds = by_method(students, store, options.threads, options.epochs)
        looped = in_the_loop(teacher, students["kd"], dataset, store)
    print(f"{dataset.sizes['train']} images, {options.student} taught by {options.teacher}, batch {options.batch_size}")
    print(f"{options.threads} threads, CPU seconds an epoch\n")
    print("| method | seconds | times kd |\n|---|---|---|")
    for method, cost in {**seconds, "kd, teacher in the loop": looped}.items():
        print(f"| `{method}` | {cost:.2f} | {cost / seconds['kd']:.2f} |")
    sys.exit(0 if all(seconds[method] <= MOST * seconds["kd"] for method in ON_EMBEDDINGS) else 1)


def converted(images: Path, a_class: int, work: Path) -> Dataset:
    """As many training images of each class, and a tenth as many to test on, as a data set of the platform's."""
    found: Counter[str] = Counter()
    with tarfile.open(images) as archive:
        for member in archive:
            name = Path(member.name)
            if not member.isfile():
                continue
            split, place = name.parts[-3], "/".join(name.parts[-3:-1])
            found[place] += 1
            if found[place] <= (a_class if split == "train" else max(2, a_class // 10)):
                archive.extract(member, work / "images", filter="data")
    os.environ["TAKD_CACHE"] = str(work / "cache")
    [root] = {file.parents[2] for file in (work / "images").rglob("*.*") if file.is_file()}
    assert cli.main(["data", "images", "--from", str(root), "--name", "part", "--size", "32"]) == 0
    shutil.rmtree(work / "images")
    return load("part")


def stage(
    model: str, dataset: Dataset, epochs: int, batch_size: int, upstream: Stage | None = None, method: str = ""
) -> Stage:
    recipe = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "evaluate_every": epochs,
    }
    taught: dict[str, object] = {"upstream": (upstream,)} if upstream else {}
    if method == "kd":
        taught |= {"loss": Loss(), "temperature": 4.0, "lambda": 0.9}
    elif method:
        taught |= {"terms": (Term(method=method, weight=1.0),)}
    return Stage.model_validate(
        {
            "role": "student" if upstream else "teacher",
            "dataset": dataset.fingerprint,
            "model": model,
            "recipe": Recipe.model_validate(recipe),
            "seed": 0,
            **taught,
        }
    )


def finish(batch: StageBatch) -> None:
    while not batch.done:
        batch.run_epoch()
    batch.publish()


def by_method(students: dict[str, Stage], store: ArtifactStore, threads: int, epochs: int) -> dict[str, float]:
    """The least CPU seconds of an epoch by each: all take turns. The last epoch, which is evaluated, is not run."""
    batches = {
        method: StageBatch([student], store, threads, False, {student.key: ORIGIN})
        for method, student in students.items()
    }
    found: dict[str, list[float]] = {method: [] for method in students}
    for _ in range(epochs):
        for method, batch in batches.items():
            started = time.process_time()
            batch.run_epoch()
            found[method].append(time.process_time() - started)
    return {method: min(each) for method, each in found.items()}


def in_the_loop(teacher: Stage, student: Stage, dataset: Dataset, store: ArtifactStore) -> float:
    """CPU seconds of an epoch by a plain loop, on the same batches of the same images."""
    guide = finished_module(teacher, dataset, weights_of(teacher, store)).eval()
    guide.to(memory_format=torch.channels_last)
    alone = student.model_copy(update={"upstream": (), "loss": None, "temperature": None, "lambda_": None})
    training = StageTraining([alone], dataset, [[]])
    inputs, model = training.inputs, training.taught.model.layers
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    inputs.show(0)
    model.train()
    started = time.process_time()
    for batch in inputs.batches(0, 2):
        images, labels = inputs.images[batch], inputs.labels[batch]
        with torch.no_grad():
            target = (guide(images) / 4).softmax(1)
        logits = model(images)
        soft = F.kl_div((logits / 4).log_softmax(1), target, reduction="batchmean")
        optimizer.zero_grad()
        (0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * soft).backward()
        optimizer.step()
    return time.process_time() - started


if __name__ == "__main__":
    main()
