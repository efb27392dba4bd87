"""The arguments of the commands, a function each, and what their values may be.

What an argument may be is loaded where it is added: `takd --help` answers at once.
"""

import argparse
from contextlib import suppress
from pathlib import Path


def add_space(parser: argparse.ArgumentParser) -> None:
    from takd.search_spaces import presets

    parser.add_argument(
        "space",
        metavar="SPACE",
        help=f"a preset ({', '.join(presets())}), a YAML file, or a study below the root, to go on with its space",
    )
    parser.add_argument("--name", metavar="N", help="name of the study (default: the space's)")
    parser.add_argument("--trials", type=_positive, metavar="N", help="configurations to try, in place of the space's")
    parser.add_argument(
        "--lanes",
        metavar="L",
        help="how many stages of one model and recipe a worker trains side by side: auto (measured), or a number",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one key of the space, such as student.temperature=4",
    )


def add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the study")


def add_root(parser: argparse.ArgumentParser) -> None:
    from takd.study.folder import ROOT

    parser.add_argument(
        "--root",
        metavar="URI",
        help=f"folder, s3://... or gs://... of studies and artifacts (default: TAKD_ROOT, else {ROOT})",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna's database (default: TAKD_STORAGE, else a journal file in the root)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs: one JSON document, see docs/json.md")


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show a traceback where bad input ends in one line")


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wandb",
        choices=("online", "offline", "disabled"),
        help="where W&B runs go (default: online where a key is found, else offline); the project is WANDB_PROJECT, "
        "else takd, and the entity is WANDB_ENTITY, else the key's",
    )
    parser.add_argument("--profile", action="store_true", help="say where the time went, as a table and a picture")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--slots", type=_positive, metavar="N", help="CPU cores to use here (default: all)")
    where.add_argument("--address", metavar="A", help="a running Ray cluster: auto, or HOST:PORT (default: a Ray here)")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard event files into the study's folder"
    )


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow",
        action="store_true",
        help="keep the table up to date until the study ends, whoever runs it (Ctrl-C leaves)",
    )


def add_dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=8080, metavar="P", help="port on 127.0.0.1 (default: 8080)")


def add_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", action="store_true", help="create a W&B report of the study (needs WANDB_ENTITY)")


def add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="delete it")
    parser.add_argument(
        "--older", type=_hours, default=24.0, metavar="H", help="only what nobody wrote for H hours (default: 24)"
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a study; of several, one report on all")


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="two or more studies; of another root as ROOT/NAME")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to create")
    parser.add_argument("--arm", metavar="A", help="only students of this arm (default: of all arms)")
    parser.add_argument("--metric", metavar="NAME", help="what is best (default: the study's metric)")
    parser.add_argument("--max-params", type=_positive, metavar="N", help="only students of at most N parameters")
    parser.add_argument(
        "--max-latency",
        type=_milliseconds,
        metavar="MS",
        help="only students that take at most MS milliseconds an image here, in one thread",
    )
    parser.add_argument(
        "--top", type=_positive, default=1, metavar="K", help="the best K configurations, in DIR/1 to DIR/K"
    )
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="each size of student that no other beats in what it reaches and costs, in a folder of its own",
    )
    parser.add_argument("--int8", action="store_true", help="write an int8 ONNX file too")
    parser.add_argument(
        "--max-drop",
        type=_points,
        metavar="P",
        help="with --int8: leave that file out where it loses more than P points of validation accuracy (default: 1)",
    )
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="make files that take raw pixels and give probabilities"
    )
    parser.add_argument(
        "--code",
        action="append",
        default=[],
        metavar="FILE",
        help="what the space names as its code, where models are of it; may be given several times",
    )
    parser.add_argument("--force", action="store_true", help="replace an export that is there")


def add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that takd export wrote")


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image file that Pillow reads")


def add_data(parser: argparse.ArgumentParser) -> None:
    from takd.trainables.datasets.built_in import dataset_names

    datasets = dataset_names()
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        nargs="?",
        choices=datasets,
        help=f"{', '.join(datasets)} (default: list what is there)",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="where its files are; images: a folder or an archive of train/<class>/* and test/<class>/*, of <class>/*, "
        "or of what --table names; Parquet files with images; a MedMNIST .npz",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="images only: what spaces call them (default: the folder's name)"
    )
    parser.add_argument(
        "--validation",
        type=_positive,
        metavar="N",
        help="images only: how many are held out of train (default: a tenth)",
    )
    images = parser.add_argument_group("images only")
    images.add_argument(
        "--size", type=_size, metavar="S", help="bring all to 224 (x 224) or 224x160 (width x height) pixels"
    )
    images.add_argument(
        "--fit",
        choices=("crop", "pad", "stretch"),
        help="how: cut the centre out (default), add black, or change the shape",
    )
    images.add_argument("--color", choices=("rgb", "grey"), help="make all RGB, or grey (default: grey where all are)")
    images.add_argument(
        "--split",
        type=_shares,
        metavar="A/B/C",
        help="percent for train, validation and test, by class, where the files have no splits: 70/15/15",
    )
    images.add_argument(
        "--table", type=Path, metavar="FILE", help="CSV or Parquet with image, label, and maybe split and group"
    )
    images.add_argument("--skip-broken", action="store_true", help="go on without images that can't be read")
    images.add_argument(
        "--keep-encoded",
        action="store_true",
        help="keep the files' own bytes, and decode them when they are needed: for what is larger than memory or disk",
    )
    parser.add_argument("--download", action="store_true", help="cifar10, cifar100: fetch the archive into DIR first")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number of at least 1")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and 1 <= int(side) <= 4096 for side in sides):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected pixels, such as 224 or 224x160, each 1 to 4096")
    return int(sides[0]), int(sides[-1])


def _shares(text: str) -> tuple[float, float, float]:
    with suppress(ValueError):
        train, validation, test = (float(each) / 100 for each in text.split("/"))
        if min(train, validation, test) > 0 and abs(train + validation + test - 1) < 1e-9:
            return train, validation, test
    raise argparse.ArgumentTypeError(
        f"is {text!r}; expected percent for train, validation and test that add up to 100, such as 70/15/15"
    )


def _milliseconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; expected milliseconds, above 0")


def _points(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 100:
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; expected percentage points, 0 to 100")


def _hours(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; expected hours, 0 or more")


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a port, 0 to 65535 (0: any that is free)")
    return int(text)
