"""Test accuracy of the `cnn` teacher, and of `mlp-784` that it teaches at T=4, lambda 0.5.

    .venv/bin/python benchmarks/accuracy.py [--root runs] [--seeds 3]

Runs a cut of the preset `mnist-temperature` (teacher, labels alone, and one configuration of kd), then reads the test
split once for the finished artifacts. About 15 minutes on 2 cores for 3 seeds. Nothing is chosen by these numbers.
"""

import argparse

from rich.console import Console

from takd.analysis.tables import read_trials
from takd.search_spaces import load_space
from takd.study.folder import study_folder
from takd.study.options import RunOptions
from takd.study.run import run_study
from takd.study.search.optimization import open_search
from takd.trainables.datasets.dataset import load
from takd.trainables.measuring import measure_logits, predict_stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs", help="artifacts below it are reused")
    parser.add_argument("--seeds", type=int, default=3, help="student seeds")
    options = parser.parse_args()
    cut = ["student.temperature=4.0", "student.lambda=0.5", f"seeds={options.seeds}", "confirm=null"]
    folder = study_folder(options.root, f"accuracy-{options.seeds}")
    space = load_space("mnist-temperature", cut)
    run_study(folder, space, "space mnist-temperature", RunOptions(wandb="disabled"), Console(width=200))

    dataset, stages = load("mnist"), open_search(folder).stages()
    test = dataset.test()
    logits = predict_stages(folder.artifacts, [*stages.values()], dataset, test.images)
    rows = read_trials(folder.trials).drop_duplicates("stage_key")
    for _, row in rows.sort_values(["role", "arm", "seed"]).iterrows():
        accuracy = measure_logits(logits[row["stage_key"]], test.labels)["test_accuracy"]
        print(
            f"{row['role']:<8} {row['model']:<8} {row['arm']:<7} seed {row['seed']}  "
            f"validation {100 * row['val_accuracy']:.2f} %  test {100 * accuracy:.2f} %  "
            f"({row['train_seconds']:.0f} s, epoch {row['selected_epoch']} of {row['epochs']})"
        )


if __name__ == "__main__":
    main()
