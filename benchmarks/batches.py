"""What batches of lanes cost the search: the sampler proposes many configurations before it hears of one.

    .venv/bin/python benchmarks/batches.py [--trials 64] [--repeats 30]

Nothing is trained: a made-up accuracy has its peak at T = 5, lambda = 0.7 and a learning rate of 3e-3, with the noise
that 8 seeds leave. takd's own sampler is asked for 1, 4, 16 and 64 configurations at a time. Printed is how far the
configuration it would choose is below the peak, in points, beside random search; a mean over searches with its
standard error. About a minute.
"""

import argparse
import math
import random
from statistics import fmean, stdev

import optuna

from takd.study.search.optimization import SAMPLERS

NOISE = 0.15  # points, of a mean over 8 seeds


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for sampler, batch in [*(("tpe", batch) for batch in (1, 4, 16, options.trials)), ("random", 1)]:
        found = [below_the_peak(sampler, batch, options.trials, seed) for seed in range(options.repeats)]
        error = stdev(found) / math.sqrt(len(found))
        print(f"{sampler:<7} {batch:3} at a time: {fmean(found):.3f} ±{error:.3f} points below the peak", flush=True)


if __name__ == "__main__":
    main()
