"""What a dataset of MHIST's full size (3,152 images of 224x224 RGB, 474 MB) costs a node in memory and time.

    .venv/bin/python benchmarks/memory.py [--from DIR] [--processes 4]

DIR is a folder in MHIST's form; without one, made-up images are drawn first (about two minutes). `takd data mhist`
converts them into a cache of its own; then processes open the dataset and touch every pixel of all splits. Printed are
the conversion's seconds and peak, the proportional set size (PSS) of the mapped images over all processes, and that of
the processes as a whole beside as many that imported torch alone. Linux.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
WANTED = 1200  # MB a node
CONVERT = "import sys; from takd.study.cli import main; sys.exit(main(sys.argv[1:]))"
IMPORT = "import torch, takd.trainables.datasets.dataset; print('ready', flush=True); input()"
TOUCH = """
from takd.trainables.datasets.dataset import load
mhist = load("mhist")
for split in (mhist.train, mhist.validation, mhist.test()):
    split.images[:].sum(), split.labels.sum()
print("ready", flush=True)
input()
"""


def convert(folder: Path) -> None:
    started = time.perf_counter()
    command = [sys.executable, "-c", CONVERT, "data", "mhist", "--from", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6
    print(f"conversion: {seconds:.0f} s, peak resident set {peak:,.0f} MB, torch included; at most {WANTED:,} wanted")


def pss(code: str, processes: int) -> tuple[float, float]:
    """MB over all processes once they are ready: of everything, and of the cache's mapped files."""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
    sizes = [_pss_of(process.pid) for process in running]
    for process in running:
        process.communicate(b"\n")
    return sum(size for size, _ in sizes), sum(mapped for _, mapped in sizes)


def _pss_of(process: int) -> tuple[float, float]:
    everything = mapped = 0
    of_the_cache = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        head = line.split()
        if not head[0].endswith(":"):
            of_the_cache = line.endswith(".arrow")
        elif head[0] == "Pss:":
            everything += int(head[1])
            mapped += int(head[1]) * of_the_cache
    return everything * 1024 / 1e6, mapped * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, metavar="DIR")
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TAKD_CACHE"] = f"{scratch}/cache"
        folder = options.source or Path(scratch) / "mhist"
        if options.source is None:
            subprocess.run([sys.executable, str(TESTS / "histology.py"), str(folder)], check=True)
        convert(folder)
        (bare, _), (whole, mapped) = (pss(code, options.processes) for code in (IMPORT, TOUCH))
    print(f"{options.processes} processes that touched all images, PSS together:")
    print(f"  mapped images           {mapped:,.0f} MB")
    print(f"  all but torch's import  {whole - bare:,.0f} MB; at most {WANTED:,} wanted")
    print(f"  everything              {whole:,.0f} MB, of which importing torch alone is {bare:,.0f} MB")


if __name__ == "__main__":
    main()
