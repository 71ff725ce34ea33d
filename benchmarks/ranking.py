"""What a plan of comparisons costs and what its ranking is worth: a seeded simulation, no engine.

    python -P benchmarks/ranking.py [--prompts 400] [--k 4 8 16] [--human FILE] [--part plans|prior|speed]

Each prompt has k candidates with planted strengths, drawn from a Gaussian of standard deviation 1.5
log-odds. A judge who leans to the first place by 0.5 log-odds compares two of them in both orders:

    soft      says σ(d ± 0.5 + ε), d the difference of strengths, ε Gaussian of deviation 1 and the same
              in both orders: a judge's error does not go away by asking again
    flips F   says 1 or 0 by the sign of d ± 0.5; with probability F the contrary, in both orders
    ties      strengths on a grid of 1.5; equal ones are said to be a tie, others as flips with ε of 0.5
    human     as soft, the strengths drawn from the human quality scores of SFRES, if FILE is given

Part "plans" prints markdown tables. For each plan: pairs asked, the share of all pairs saved, rounds,
τ-b against the ranking from all pairs and against the planted strengths, and of the best-worst pair: how
often it is the pair that all pairs give, how often the chosen one is truly better (a planted tie counts
half), and the share of the widest planted gap that it spans. Where a ranking has several best or worst,
the mean over them is taken.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from gavel.ranking import PRIOR_SD, Floats, bradley_terry, kendall_tau
from gavel.records import digest
from judge.tournament import Pair, comparisons

Verdicts = dict[Pair, float | None]
SCENARIOS = ("soft", "flips 0", "flips 0.1", "flips 0.2", "ties")
COLUMNS = ("pairs", "saved", "rounds", "τ all", "τ truth", "same pair", "right", "gap")
LEANING, SPREAD, NOISE = 0.5, 1.5, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--human", help="sfres.jsonl.gz with human quality scores")
    parser.add_argument("--part", choices=["plans", "prior", "speed"], default="plans")
    arguments = parser.parse_args()
    if arguments.part == "speed":
        speed(arguments.k)
        return
    if arguments.part == "prior":
        prior(arguments.prompts)
        return
    scores: list[float] = []
    if arguments.human:
        with gzip.open(arguments.human, "rt", encoding="utf-8") as lines:
            scores = [json.loads(line)["quality"] for line in lines]
    for k in arguments.k:
        by_scenario = {s: measure(k, s, arguments.prompts, scores) for s in _scenarios(scores)}
        names = list(next(iter(by_scenario.values())))
        means = {n: np.mean([found[n] for found in by_scenario.values()], axis=0) for n in names}
        table(f"k = {k}, mean of the scenarios", means)
        for scenario, found in by_scenario.items():
            table(f"k = {k}, {scenario}", found)


def _scenarios(scores: Sequence[float]) -> list[str]:
    return [*SCENARIOS, "human"] if scores else list(SCENARIOS)


def planted(k: int, scenario: str, number: int, scores: Sequence[float] = ()) -> tuple[list[float], Verdicts]:
    """Strengths of one prompt's candidates, and what the judge would say of each two, orders averaged."""
    rng = random.Random(f"{k} {scenario} {number}")
    strengths = [rng.gauss(0, SPREAD) for _ in range(k)]
    if scenario == "ties":
        strengths = [SPREAD * round(s / SPREAD) for s in strengths]
    elif scenario == "human":
        strengths = [rng.choice(scores) for _ in range(k)]
    verdicts: Verdicts = {}
    for i, j in itertools.combinations(range(k), 2):
        d = strengths[i] - strengths[j]
        noise, draw = rng.gauss(0, 1), rng.random()
        if scenario in ("soft", "human"):
            said = [_sigmoid(d + NOISE * noise + side) for side in (LEANING, -LEANING)]
        elif scenario == "ties":
            said = [0.5 if d == 0 else float(d + 0.5 * noise + side > 0) for side in (LEANING, -LEANING)]
        else:
            flipped = draw < float(scenario.split()[1])
            said = [float((d + side > 0) != flipped) for side in (LEANING, -LEANING)]
        verdicts[i, j] = sum(said) / 2
    return strengths, verdicts


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


Plan = Callable[[int, Verdicts, str], tuple[Verdicts, int]]  # → what was asked, in how many rounds


def gavels(plan: str) -> Plan:
    """A plan of `judge.tournament`, asked round by round."""

    def play(k: int, verdicts: Verdicts, key: str) -> tuple[Verdicts, int]:
        known: Verdicts = {}
        rounds = 0
        while asked := comparisons(k, plan, known, seed_key=key):
            known |= {pair: verdicts[pair] for pair in asked}
            rounds += 1
        return known, rounds

    return play


def merge_sort(k: int, verdicts: Verdicts, key: str) -> tuple[Verdicts, int]:
    """A rival: sorting by single verdicts, each believed; two merges of one level could run at once,
    the comparisons of one merge only one after another."""
    known: Verdicts = {}

    def merge(left: list[int], right: list[int]) -> tuple[list[int], int]:
        merged, steps = [], 0
        while left and right:
            i, j = left[0], right[0]
            pair = (min(i, j), max(i, j))
            p = known[pair] = verdicts[pair]
            assert p is not None
            merged.append((left if (p if i < j else 1 - p) >= 0.5 else right).pop(0))
            steps += 1
        return merged + left + right, steps

    runs, rounds = [[i] for i in sorted(range(k), key=lambda i: digest(key, i))], 0
    while len(runs) > 1:
        both = [merge(runs[n], runs[n + 1]) for n in range(0, len(runs) - 1, 2)]
        runs = [run for run, _ in both] + (runs[-1:] if len(runs) % 2 else [])
        rounds += max(steps for _, steps in both)
    return known, rounds


def swiss(extra: int) -> Plan:
    """A rival: ⌈log2 k⌉ + extra rounds in which neighbours that have not met do, decided or not."""

    def play(k: int, verdicts: Verdicts, key: str) -> tuple[Verdicts, int]:
        known: Verdicts = {}
        rounds = math.ceil(math.log2(k)) + extra
        for _ in range(rounds):
            theta = fit(k, known)
            order = sorted(range(k), key=lambda i: (-theta[i], digest(key, i)))
            busy: set[int] = set()
            for i, j in sorted(itertools.combinations(range(k), 2), key=lambda ij: (ij[1] - ij[0], ij)):
                pair = (min(order[i], order[j]), max(order[i], order[j]))
                if pair not in known and not busy & {i, j}:
                    busy |= {i, j}
                    known[pair] = verdicts[pair]
        return known, rounds

    return play


PLANS: dict[str, Plan] = {
    "all": gavels("all"),
    "random:2": gavels("random:2"),
    "random:4": gavels("random:4"),
    "tournament": gavels("tournament"),
    "best-worst": gavels("best-worst"),
    "(merge sort)": merge_sort,
    "(swiss)": swiss(1),
}


def fit(k: int, known: Verdicts) -> Floats:
    """Strengths as pair selection sees them: each order of a pair is a comparison."""
    return bradley_terry(k, [(i, j, p) for (i, j), p in known.items() if p is not None] * 2).theta


def measure(k: int, scenario: str, prompts: int, scores: Sequence[float] = ()) -> dict[str, Floats]:
    """Plan → the means of COLUMNS over the prompts. A τ that a single tie leaves undefined is left out."""
    found: dict[str, list[list[float]]] = {name: [] for name in PLANS}
    for number in range(prompts):
        strengths, verdicts = planted(k, scenario, number, scores)
        full = fit(k, verdicts)
        for name, play in PLANS.items():
            known, rounds = play(k, verdicts, str(number))
            theta = fit(k, known)
            taus = [kendall_tau(theta, full), kendall_tau(theta, strengths)]
            found[name].append(
                [
                    len(known),
                    1 - len(known) / len(verdicts),
                    rounds,
                    *(math.nan if tau is None else tau for tau in taus),
                    *best_worst(theta, full, strengths),
                ]
            )
    return {name: np.nanmean(rows, axis=0) for name, rows in found.items()}


def best_worst(theta: Floats, full: Floats, strengths: Sequence[float]) -> tuple[float, float, float]:
    """Of the pair that a ranking gives: is it that of all pairs, is it right, how wide is it."""
    ends = _ends(theta)
    wanted = set(_ends(full))
    gaps = [strengths[i] - strengths[j] for i, j in ends]
    widest = max(strengths) - min(strengths)
    same = np.mean([end in wanted for end in ends])
    right = np.mean([0.5 * (np.sign(gap) + 1) for gap in gaps])
    return float(same), float(right), float(np.mean(gaps)) / widest if widest else math.nan


def _ends(theta: Floats) -> list[tuple[int, int]]:
    best, worst = np.flatnonzero(theta == theta.max()), np.flatnonzero(theta == theta.min())
    return [(int(i), int(j)) for i in best for j in worst if i != j]


def table(title: str, rows: dict[str, Floats]) -> None:
    print(f"\n{title}\n\n| plan | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for name, (pairs, saved, rounds, *rest) in rows.items():
        numbers = " | ".join(f"{x:.3f}" for x in rest)
        print(f"| {name} | {pairs:.1f} | {100 * saved:.0f} % | {rounds:.1f} | {numbers} |", flush=True)


def prior(prompts: int) -> None:
    """How well p(i, j) foretells σ(d) of the planted strengths, by the prior's deviation: the mean
    divergence KL(σ(d) ‖ p) in millinats over all pairs of k = 8."""
    k, deviations = 8, (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    print(f"| verdicts, plan | {' | '.join(map(str, deviations))} |\n|---|{'---:|' * len(deviations)}")
    for scenario in ("soft", "flips 0.1"):
        for plan in ("all", "tournament", "random:2"):
            cells = []
            for deviation in deviations:
                losses = []
                for number in range(prompts):
                    strengths, verdicts = planted(k, scenario, number)
                    known, _ = gavels(plan)(k, verdicts, str(number))
                    games = [(i, j, p) for (i, j), p in known.items() if p is not None] * 2
                    said = bradley_terry(k, games, prior_sd=deviation)
                    for i, j in itertools.combinations(range(k), 2):
                        true, p = _sigmoid(strengths[i] - strengths[j]), said.p(i, j)
                        losses.append(true * math.log(true / p) + (1 - true) * math.log((1 - true) / (1 - p)))
                cells.append(f"{1000 * float(np.mean(losses)):.0f}")
            print(f"| {scenario}, {plan} | {' | '.join(cells)} |", flush=True)
    print(f"in use: {PRIOR_SD}")


def speed(ks: Sequence[int]) -> None:
    """Median milliseconds of one fit of all pairs in both orders, and of all calls that a plan takes."""
    for k in ks:
        _, verdicts = planted(k, "flips 0", 0)
        games = [(i, j, p) for (i, j), p in verdicts.items() if p is not None] * 2
        print(f"k = {k}: fit {_median_ms(lambda k=k, games=games: bradley_terry(k, games)):.2f} ms", end="")
        for plan in ("tournament", "best-worst"):
            play = gavels(plan)
            print(f", {plan} {_median_ms(lambda p=play, k=k, v=verdicts: p(k, v, '')):.1f} ms", end="")
        print()


def _median_ms(work: Callable[[], object], repeats: int = 51) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


if __name__ == "__main__":
    main()
