"""What batches of lanes cost the search: the sampler proposes many configurations before it hears of one.

    .venv/bin/python benchmarks/batches.py [--trials 64] [--repeats 30] [--histories 300 1000]

Nothing is trained: a made-up accuracy has its peak at T = 5, lambda = 0.7 and a learning rate of 3e-3, with the noise
that 8 seeds leave. takd's own sampler is asked for 1, 4, 16 and 64 configurations at a time. Printed is how far the
configuration it would choose is below the peak, in points, beside random search; a mean over searches with its
standard error. About a minute.

With `--histories` and more trials than those (`--trials 1300 --repeats 8`, a minute each) 16 at a time are asked of TPE
that is shown so many trials of a long study, a quarter of them the best of the older ones; with `--running` while 1,024
run (`--trials 4000`), of which it is shown so many. Beside the choice it prints what the last 300 proposals lack on the
mean, and the milliseconds that a proposal takes.
"""

import argparse
import math
import random
import time
from statistics import fmean, stdev

import optuna
from optuna.distributions import CategoricalDistribution

from takd.study.search import sampling
from takd.study.search.sampling import SAMPLERS, History, Shown

NOISE = 0.15  # points, of a mean over 8 seeds
LAST = 300  # proposals of a long study
BATCH = 16  # of it are asked at a time


def accuracy(trial: optuna.Trial) -> float:
    """True mean accuracy in percent of the trial's configuration."""
    temperature = trial.suggest_float("temperature", 1, 20, log=True)
    weight = trial.suggest_float("lambda", 0.1, 0.95)
    rate = trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True)
    return (
        88
        - 1.0 * math.log(temperature / 5) ** 2
        - 4.0 * (weight - 0.7) ** 2
        - 1.0 * math.log10(rate / 3e-3) ** 2
    )  # fmt: skip


def below_the_peak(sampler: str, batch: int, trials: int, seed: int) -> float:
    """Points that the chosen configuration's true accuracy lacks."""
    study, dice = optuna.create_study(direction="maximize"), random.Random(seed)
    true: dict[int, float] = {}
    while len(study.trials) < trials:
        asked = []
        for _ in range(min(batch, trials - len(study.trials))):
            study.sampler = SAMPLERS[sampler](1_000 * seed + len(study.trials))
            asked.append(study.ask())
            true[asked[-1].number] = accuracy(asked[-1])
        for trial in asked:
            study.tell(trial, true[trial.number] + dice.gauss(0, NOISE))
    return 88 - true[study.best_trial.number]


def over_a_long_study(trials: int, seed: int, running: int) -> tuple[float, float, float]:
    """Points that the choice lacks, points that the last proposals lack, and milliseconds a proposal; while so many
    run."""
    study, dice, shown = optuna.create_study(direction="maximize"), random.Random(seed), History()
    true: list[float] = []
    seconds = 0.0
    told = 0
    while told < trials:
        asked = min(BATCH, trials - len(true))
        for _ in range(asked):
            began = time.process_time()
            seen = shown.seen(range(len(true)), study.get_trials(deepcopy=False))
            study.sampler = Shown(SAMPLERS["tpe"](1_000 * seed + len(true)), seen)
            true.append(accuracy(study.ask({"arm": CategoricalDistribution(["kd"])})))
            seconds += time.process_time() - began
        while told < len(true) and (len(true) - told > running - BATCH or not asked):
            study.tell(told, true[told] + dice.gauss(0, NOISE))
            told += 1
    return 88 - true[study.best_trial.number], 88 - fmean(true[-LAST:]), 1000 * seconds / trials


def print_long(what: str, trials: int, repeats: int, running: int) -> None:
    runs = [over_a_long_study(trials, seed, running) for seed in range(repeats)]
    choice, last, milliseconds = (
        f"{fmean(each):.3f} ±{stdev(each) / math.sqrt(len(each)):.3f}" for each in zip(*runs, strict=True)
    )
    print(f"tpe, {what}: {choice} points below the peak, the last {LAST} {last}; {milliseconds} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--histories", type=int, nargs="+", help="trials that TPE is shown of more")
    parser.add_argument("--running", type=int, nargs="+", help="trials that TPE is shown of 1,024 that run")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for history in options.histories or []:
        sampling.NEWEST, sampling.BEST = history - history // 4, history // 4
        print_long(f"shown {history:5}", options.trials, options.repeats, BATCH)
    for running in options.running or []:
        sampling.RUNNING = running
        print_long(f"shown {running:5} of 1,024 that run", options.trials, options.repeats, 1024)
    if options.histories or options.running:
        return
    for sampler, batch in [*(("tpe", batch) for batch in (1, 4, 16, options.trials)), ("random", 1)]:
        found = [below_the_peak(sampler, batch, options.trials, seed) for seed in range(options.repeats)]
        error = stdev(found) / math.sqrt(len(found))
        print(f"{sampler:<7} {batch:3} at a time: {fmean(found):.3f} ±{error:.3f} points below the peak", flush=True)


if __name__ == "__main__":
    main()
