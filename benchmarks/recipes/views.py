"""What a view for each epoch costs beside 8 views that are used in turn, and a teacher in the loop beside both.

    .venv/bin/python benchmarks/recipes/views.py --images cifar10-images.tar.xz
        [--a-class 5000] [--epochs 16] [--students 20] [--timed 3]

`--images` is a tar of `train/CLASS/*` and `test/CLASS/*`, or a folder of these. A teacher is trained for one epoch, as
its quality changes no time. Then `--timed` students of `--student` learn from it for `--epochs` epochs, in one process,
from the store as workers have it, in turn with `views: 8`, with `views: per-epoch`, and by a plain loop with the
teacher's forward pass in every step. The soft targets of the views are derived before, once for all students. A study
has `--students` that cost the same: what it costs is the targets once and the mean student so many times. Where
another program runs beside this one only ratios say something.
"""

import argparse
import os
import shutil
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F

from takd.search_spaces import Loss, Recipe, Stage
from takd.study import cli
from takd.trainables.batch import StageBatch
from takd.trainables.datasets.dataset import Dataset, load
from takd.trainables.derivation import derive
from takd.trainables.models.learned import weights_of
from takd.trainables.models.stage_models import finished_module
from takd.trainables.store.artifacts import ArtifactStore
from takd.trainables.training.loop import StageTraining

VIEWS: tuple[int | str, ...] = (8, "per-epoch")
ORIGIN = {"study": "views", "use": "0.0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--a-class", type=int, default=5000, help="training images of each class")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--timed", type=int, default=3, help="students of each kind that are trained and timed")
    parser.add_argument("--teacher", default="resnet-20")
    parser.add_argument("--student", default="resnet-8")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        dataset = converted(options.images, options.a_class, work)
        print(f"{dataset.sizes} images, {options.students} students {options.student} for {options.epochs} epochs")
        print(f"teacher {options.teacher}, {options.threads} threads")
        teacher = stage("teacher", options.teacher, dataset, 1, "per-epoch")
        run(teacher, ArtifactStore(str(work / "root")), options.threads)
        once, each = {}, defaultdict[int | str, list[float]](list)
        stores, students = {}, {}
        for views in VIEWS:
            shutil.copytree(work / "root", work / f"root-{views}")
            stores[views] = ArtifactStore(str(work / f"root-{views}"))
            students[views] = [
                stage("student", options.student, dataset, options.epochs, views, (teacher,), seed)
                for seed in range(options.timed)
            ]
            names = students[views][0].recipe.view_names
            once[views] = seconds_of(derive, teacher, names, stores[views], options.threads, ORIGIN)
        for number in range(options.timed):
            for views in VIEWS:
                each[views].append(seconds_of(run, students[views][number], stores[views], options.threads))
            student = students["per-epoch"][number]
            each["in the loop"].append(seconds_of(in_the_loop, teacher, student, dataset, stores["per-epoch"]))
        totals = {kind: once.get(kind, 0.0) + options.students * fmean(found) for kind, found in each.items()}
        for kind, found in each.items():
            own = " ".join(f"{one:.1f}" for one in found)
            print(
                f"{kind!s:>11}: {totals[kind]:7.1f} s, of which soft targets {once.get(kind, 0.0):6.1f}; students {own}"
            )
        print(
            f"per-epoch costs {totals['per-epoch'] / totals[8]:.2f} x 8 views; "
            f"in the loop {totals['in the loop'] / totals[8]:.2f} x"
        )


def seconds_of(call: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def converted(images: Path, a_class: int, work: Path) -> Dataset:
    """As many training images of each class, and a tenth as many to test on, as a data set of the platform's."""
    folder, found = work / "images", Counter[Path]()

    def wanted(name: Path) -> bool:
        split, place = name.parts[-3], Path(*name.parts[-3:]).parent
        found[place] += 1
        return found[place] <= (a_class if split == "train" else max(2, a_class // 10))

    if images.is_dir():
        for file in sorted(images.glob("*/*/*")):
            if wanted(file):
                target = folder / Path(*file.parts[-3:])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    else:
        with tarfile.open(images) as archive:
            for member in archive:
                if member.isfile() and wanted(Path(member.name)):
                    archive.extract(member, folder, filter="data")
    os.environ["TAKD_CACHE"] = str(work / "cache")
    [root] = {file.parents[2] for file in folder.rglob("*.*") if file.is_file()}
    assert cli.main(["data", "images", "--from", str(root), "--name", "views", "--size", "32"]) == 0
    return load("views")


def stage(
    role: str,
    model: str,
    dataset: Dataset,
    epochs: int,
    views: int | str,
    upstream: tuple[Stage, ...] = (),
    seed: int = 0,
) -> Stage:
    recipe = Recipe.model_validate(
        {
            "epochs": epochs,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "precision": "bfloat16",
            "augment": "crop-flip",
            "views": views,
            "evaluate_every": epochs,
        }
    )
    taught = {"loss": Loss(), "temperature": 4.0, "lambda": 0.9} if upstream else {}
    return Stage(
        role=role, dataset=dataset.fingerprint, model=model, recipe=recipe, seed=seed, upstream=upstream, **taught
    )


def run(one: Stage, store: ArtifactStore, threads: int) -> None:
    """A worker's part: from what the store has to an artifact there."""
    batch = StageBatch([one], store, threads, False, {one.key: ORIGIN})
    while not batch.done:
        batch.run_epoch()
    batch.publish()


def in_the_loop(teacher: Stage, student: Stage, dataset: Dataset, store: ArtifactStore) -> None:
    """A student's training by a plain loop, on the same batches of the same images."""
    guide = finished_module(teacher, dataset, weights_of(teacher, store)).eval()
    guide.to(memory_format=torch.channels_last)
    alone = student.model_copy(update={"upstream": (), "loss": None, "temperature": None, "lambda_": None})
    training = StageTraining([alone], dataset, [[]])
    inputs, model = training.inputs, training.taught.model.layers
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in range(student.recipe.epochs):
        inputs.show(epoch)
        model.train()
        for batch in inputs.batches(epoch, 2):
            images, labels = inputs.images[batch], inputs.labels[batch]
            with torch.no_grad():
                target = (guide(images) / 4).softmax(1)
            with inputs.precision():
                logits = model(images)
            soft = F.kl_div((logits.float() / 4).log_softmax(1), target, reduction="batchmean")
            optimizer.zero_grad()
            (0.1 * F.cross_entropy(logits.float(), labels) + 0.9 * 16 * soft).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
