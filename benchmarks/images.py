"""What it costs to convert a folder of images, such as the 60,000 of CIFAR-10 as JPEG: seconds, and memory at its peak.

    .venv/bin/python benchmarks/images.py DIR [--repeats 3] [--python PYTHON] [OPTION ...]

`takd data images --from DIR`, with the options that follow, converts into a cache of its own, in a new process each
time. Printed are its seconds without the imports, and the peak resident set of the process and of its largest child.
With --python, another installation of takd is measured too, in turns with this one. Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from takd.study.cli import main
import takd.study.data
started = time.perf_counter()
code = main(sys.argv[1:])
seconds = time.perf_counter() - started
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([code, seconds, *peaks]))
"""


def measure(python: str, arguments: list[str]) -> tuple[float, float, float]:
    """Seconds, and MB of the process and of its largest child."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TAKD_CACHE": cache}
        command = [python, "-c", MEASURE, "data", "images", *arguments]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=cache)
    code, seconds, own, child = json.loads(run.stdout.splitlines()[-1])
    if code:
        sys.exit(code)
    return seconds, own, child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", help="of another installation to compare with")
    options, others = parser.parse_known_args()
    pythons = [sys.executable, *([options.python] if options.python else [])]
    arguments = ["--from", str(options.folder.resolve()), "--name", "measured", *others]
    measured = [[measure(python, arguments) for python in pythons] for _ in range(options.repeats)]
    for python, runs in zip(pythons, zip(*measured, strict=True), strict=True):
        seconds, own, child = ([run[each] for run in runs] for each in range(3))
        each = ", ".join(f"{value:.1f}" for value in seconds)
        print(
            f"{python}: {median(seconds):.1f} s ({each}), peak {max(own):,.0f} MB, torch included"
            + (f", and {max(child):,.0f} MB each in {os.cpu_count()} decoding processes" if max(child) else "")
        )


if __name__ == "__main__":
    main()
