"""Bradley-Terry strengths, and plans of comparisons that can be killed and go on."""

from __future__ import annotations

import math
import random
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit, log_expit
from scipy.stats import kendalltau, norm, rankdata

from gavel.errors import InputError
from gavel.ranking import PRIOR_SD, Strengths, bradley_terry, kendall_tau, ranks
from judge.tournament import DECIDED, Pair, comparisons

Game = tuple[int, int, float]
PLANS = ["all", "random:2", "random:3", "tournament", "best-worst"]

probabilities = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def some_games(draw: st.DrawFn) -> tuple[int, list[Game]]:
    k = draw(st.integers(2, 8))
    pairs = st.permutations(range(k)).map(lambda order: order[:2])
    games = st.tuples(pairs, probabilities).map(lambda drawn: (*drawn[0], drawn[1]))
    return k, draw(st.lists(games, max_size=30))


def loss(theta: np.ndarray, games: list[Game], prior_sd: float) -> float:
    """Negative log posterior, straight from the definition."""
    found = float((theta**2).sum()) / (2 * prior_sd**2)
    for i, j, p in games:
        d = theta[i] - theta[j]
        found -= p * log_expit(d) + (1 - p) * log_expit(-d)
    return found


def hessian(theta: np.ndarray, games: list[Game], prior_sd: float, h: float = 1e-3) -> np.ndarray:
    """Central differences of the loss."""
    k = len(theta)
    found = np.empty((k, k))
    for a in range(k):
        for b in range(k):
            e, f = h * np.eye(k)[a], h * np.eye(k)[b]
            corners = [(1, e + f), (-1, e - f), (-1, f - e), (1, -e - f)]
            found[a, b] = sum(sign * loss(theta + step, games, prior_sd) for sign, step in corners)
    return found / (4 * h * h)


# strengths
@pytest.mark.parametrize("prior_sd", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("p", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("times", [1, 3])
def test_two_items_by_their_own_equation(p: float, times: int, prior_sd: float) -> None:
    """With θ = (t, −t): times·(p − σ(2t)) = t/prior_sd²."""
    root = brentq(lambda t: times * (p - expit(2 * t)) - t / prior_sd**2, -50, 50, xtol=1e-14)
    found = bradley_terry(2, [(0, 1, p)] * times, prior_sd=prior_sd)
    assert found.theta == pytest.approx([root, -root], abs=1e-12)


def test_one_win_by_hand() -> None:
    """prior_sd² = 2 and one win: 1 − σ(2t) = t/2 has its root at t = 0.5213, where w = σ(2t)σ(−2t) is
    0.1927. The Hessian [[0.5+w, −w], [−w, 0.5+w]] gives d = 2t the variance 2/(0.5 + 2w) = 2.2588, and
    Φ(1.0426/1.5029) = 0.7561."""
    found = bradley_terry(2, [(0, 1, 1.0)], prior_sd=math.sqrt(2))
    assert found.theta == pytest.approx([0.5213, -0.5213], abs=1e-4)
    assert found.covariance == pytest.approx(np.array([[1.5647, 0.4353], [0.4353, 1.5647]]), abs=1e-4)
    assert found.p_stronger(0, 1) == pytest.approx(0.7561, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_mode_is_that_of_logistic_regression(seed: int) -> None:
    """L2 with C = prior_sd² and no intercept is this Gaussian prior; a soft label is two weighted rows."""
    from sklearn.linear_model import LogisticRegression

    rng = random.Random(seed)
    k, prior_sd = rng.randint(3, 9), rng.choice([0.7, 2.0, 4.0])
    games = [(*rng.sample(range(k), 2), rng.choice([0.0, 1.0, 0.5, rng.random()])) for _ in range(4 * k)]
    rows = np.zeros((2 * len(games), k))
    labels, weights = np.zeros(len(rows)), np.zeros(len(rows))
    for n, (i, j, p) in enumerate(games):
        rows[2 * n : 2 * n + 2, i], rows[2 * n : 2 * n + 2, j] = 1, -1
        labels[2 * n], weights[2 * n : 2 * n + 2] = 1, (p, 1 - p)
    model = LogisticRegression(C=prior_sd**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(rows, labels, sample_weight=weights)
    found = bradley_terry(k, games, prior_sd=prior_sd)
    assert found.theta == pytest.approx(model.coef_[0], abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(some_games(), st.sampled_from([0.5, 2.0, 5.0]))
def test_covariance_is_the_inverse_hessian_at_the_mode(
    drawn: tuple[int, list[Game]], prior_sd: float
) -> None:
    k, games = drawn
    found = bradley_terry(k, games, prior_sd=prior_sd)
    numeric = hessian(found.theta, games, prior_sd)
    assert found.covariance @ numeric == pytest.approx(np.eye(k), abs=2e-4)
    assert found.theta.mean() == pytest.approx(0, abs=1e-9)
    for step in 1e-3 * np.eye(k):
        assert loss(found.theta, games, prior_sd) <= loss(found.theta + step, games, prior_sd)
        assert loss(found.theta, games, prior_sd) <= loss(found.theta - step, games, prior_sd)


@pytest.mark.parametrize("prior_sd", [0.01, 2.0, 100.0])
@pytest.mark.parametrize("k", [2, 8, 32])
def test_separable_data_has_a_finite_mode(k: int, prior_sd: float) -> None:
    """Every item beats all after it: without a prior the strengths would be infinite."""
    games = [(i, j, 1.0) for i, j in combinations(range(k), 2)] * 2
    found = bradley_terry(k, games, prior_sd=prior_sd)
    wins = np.zeros(k)
    for i, j, p in games:
        d = found.theta[i] - found.theta[j]
        wins[i] += p - expit(d)
        wins[j] -= p - expit(d)
    assert wins - found.theta / prior_sd**2 == pytest.approx(np.zeros(k), abs=1e-6), "the gradient vanishes"
    assert (np.diff(found.theta) < 0).all() and np.isfinite(found.covariance).all()


def test_an_item_that_was_never_compared_keeps_the_prior() -> None:
    found = bradley_terry(4, [(0, 1, 1.0), (1, 2, 0.7)], prior_sd=3.0)
    assert found.theta[3] == pytest.approx(0, abs=1e-12) and found.sd(3) == pytest.approx(3.0)
    assert all(found.sd(i) < 3.0 for i in range(3))
    assert bradley_terry(1, []).theta.tolist() == [0]
    assert bradley_terry(3, []).p(0, 2) == 0.5 and bradley_terry(3, []).p_stronger(0, 2) == 0.5


@settings(max_examples=40, deadline=None)
@given(some_games(), st.randoms(use_true_random=False))
def test_no_order_of_the_input_matters(drawn: tuple[int, list[Game]], rng: random.Random) -> None:
    """Items renamed, games shuffled and turned round: the same strengths, and ties stay exact ties."""
    k, games = drawn
    names = rng.sample(range(k), k)
    turned = [
        (names[j], names[i], 1 - p) if rng.random() < 0.5 else (names[i], names[j], p) for i, j, p in games
    ]
    rng.shuffle(turned)
    one, other = bradley_terry(k, games), bradley_terry(k, turned)
    assert other.theta[names] == pytest.approx(one.theta, abs=1e-10)
    assert other.covariance[np.ix_(names, names)] == pytest.approx(one.covariance, abs=1e-9)
    assert ranks(other.theta)[names].tolist() == ranks(one.theta).tolist()


@pytest.mark.parametrize("k", [3, 5, 6, 11])
def test_equal_records_are_exactly_equal_strengths(k: int) -> None:
    """In a circle everybody wins once and loses once, by numbers that do not add up evenly in binary."""
    circle = [(i, (i + 1) % k, p) for i in range(k) for p in (0.1, 0.7)]
    assert len(set(bradley_terry(k, circle).theta)) == 1
    twins = [(0, j, 0.9) for j in range(2, k)] + [(1, j, 0.9) for j in range(k - 1, 1, -1)]
    theta = bradley_terry(k, twins).theta
    assert theta[0] == theta[1] > theta[2]
    assert len(set(theta)) == 2


def test_soft_labels_count_as_shares_of_games() -> None:
    """0.75 once is three quarters of a win: four of them are three wins and a loss."""
    soft = bradley_terry(3, [(0, 1, 0.75)] * 4 + [(1, 2, 0.5)] * 2)
    hard = bradley_terry(3, [(0, 1, 1.0)] * 3 + [(0, 1, 0.0), (1, 2, 1.0), (2, 1, 1.0)])
    assert soft.theta == pytest.approx(hard.theta, abs=1e-10)
    assert soft.covariance == pytest.approx(hard.covariance, abs=1e-10)


@pytest.mark.parametrize("mean", [0.0, 0.4, -2.0, 6.0])
@pytest.mark.parametrize("sd", [1e-6, 0.3, 2.8, 7.0])
def test_p_integrates_the_uncertainty(mean: float, sd: float) -> None:
    drawn = Strengths(np.array([mean / 2, -mean / 2]), np.eye(2) * sd**2 / 2)
    wanted, _ = quad(lambda z: expit(mean + sd * z) * norm.pdf(z), -12, 12, epsabs=1e-12, limit=500)
    assert drawn.p(0, 1) == pytest.approx(wanted, abs=1e-9)
    assert drawn.p_stronger(0, 1) == pytest.approx(norm.cdf(mean / sd), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(some_games())
def test_probabilities_of_both_orders_sum_to_one(drawn: tuple[int, list[Game]]) -> None:
    k, games = drawn
    found = bradley_terry(k, games)
    for i, j in combinations(range(k), 2):
        for p in (found.p, found.p_stronger):
            assert p(i, j) + p(j, i) == pytest.approx(1, abs=1e-12) and 0 < p(i, j) < 1
        assert abs(found.p(i, j) - 0.5) <= abs(expit(found.theta[i] - found.theta[j]) - 0.5) + 1e-12


@pytest.mark.parametrize(
    "game", [(0, 0, 1.0), (0, 3, 1.0), (-1, 0, 1.0), (0, 1, 1.1), (0, 1, -0.1), (0, 1, math.nan)]
)
def test_games_that_are_none_are_refused(game: Game) -> None:
    with pytest.raises(ValueError, match="against"):
        bradley_terry(3, [game])


@pytest.mark.parametrize(("k", "prior_sd"), [(0, 2.0), (2, 0.0), (2, -1.0), (2, math.nan), (2, 1e6)])
def test_priors_that_are_none_are_refused(k: int, prior_sd: float) -> None:
    with pytest.raises(ValueError, match="prior"):
        bradley_terry(k, [], prior_sd=prior_sd)


# ranks
scorings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=10)


@given(scorings)
def test_ranks_and_tau_are_those_of_scipy(scores: list[tuple[int, int]]) -> None:
    one, other = [float(a) for a, _ in scores], [float(b) for _, b in scores]
    assert ranks(one).tolist() == rankdata([-a for a in one]).tolist()
    found = kendall_tau(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(kendalltau(one, other).statistic, abs=1e-12)


def test_tau_by_hand() -> None:
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    # pairs 01 tied in one, 12 tied in the other, the third agrees: 1/√(2·2)
    assert kendall_tau([1, 1, 2], [1, 2, 2]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="3 scores against 2"):
        kendall_tau([1, 2, 3], [1, 2])


# plans
def judge_of(k: int, seed: int, *, silent: float = 0.0) -> dict[Pair, float | None]:
    """What a noisy judge says of each pair; some without a verdict, some ties."""
    rng = random.Random(seed)
    strengths = [rng.gauss(0, 2) for _ in range(k)]
    said: dict[Pair, float | None] = {}
    for i, j in combinations(range(k), 2):
        p = float(expit(strengths[i] - strengths[j] + rng.gauss(0, 1)))
        said[i, j] = None if rng.random() < silent else rng.choice([p, float(p > 0.5), 0.5])
    return said


def undisturbed(k: int, plan: str, verdicts: dict[Pair, float | None], key: str) -> dict[Pair, float | None]:
    known: dict[Pair, float | None] = {}
    while asked := comparisons(k, plan, known, seed_key=key):
        assert not known.keys() & set(asked), "no pair is asked twice"
        known |= {pair: verdicts[pair] for pair in asked}
    return known


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(PLANS),
    st.integers(0, 8),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.randoms(use_true_random=False),
)
def test_a_killed_plan_asks_the_same_pairs(
    plan: str, k: int, seed: int, silent: float, rng: random.Random
) -> None:
    verdicts = judge_of(k, seed, silent=silent)
    wanted = undisturbed(k, plan, verdicts, "p")
    known: dict[Pair, float | None] = {}
    while asked := comparisons(k, plan, known, seed_key="p"):
        assert asked == sorted(set(asked)) and all(0 <= i < j < k for i, j in asked)
        assert not known.keys() & set(asked)
        before = set(asked)
        answered = rng.sample(asked, rng.randint(0, len(asked)))  # some of them, in any order, then a kill
        known |= {pair: verdicts[pair] for pair in answered}
        if len(answered) < len(asked):
            assert set(comparisons(k, plan, known, seed_key="p")) == before - set(answered)
    assert known == wanted


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["tournament", "best-worst"]), st.integers(2, 8), st.integers(0, 10_000))
def test_answers_that_no_round_asked_for_change_nothing(plan: str, k: int, seed: int) -> None:
    """After all pairs were asked, the other plans are finished; their own pairs stay the same."""
    verdicts = judge_of(k, seed)
    assert comparisons(k, plan, verdicts, seed_key="p") == []
    wanted = undisturbed(k, plan, verdicts, "p")
    strangers = {pair: p for pair, p in verdicts.items() if pair not in wanted}
    known = dict(strangers)
    while asked := comparisons(k, plan, known, seed_key="p"):
        known |= {pair: verdicts[pair] for pair in asked}
    assert known.keys() == wanted.keys() | strangers.keys()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000))
def test_a_tournament_ends_with_neighbours_decided_or_asked(k: int, seed: int) -> None:
    verdicts = judge_of(k, seed)
    known = undisturbed(k, "tournament", verdicts, "p")
    found = bradley_terry(k, [(i, j, p) for (i, j), p in sorted(known.items()) if p is not None])
    order = sorted(range(k), key=lambda i: -found.theta[i])
    for i, j in pairwise(order):
        if found.theta[i] > found.theta[j]:
            assert (min(i, j), max(i, j)) in known or found.p_stronger(i, j) >= DECIDED - 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000))
def test_best_worst_ends_with_no_rival_of_the_first_left(k: int, seed: int) -> None:
    verdicts = judge_of(k, seed)
    known = undisturbed(k, "best-worst", verdicts, "p")
    found = bradley_terry(k, [(i, j, p) for (i, j), p in sorted(known.items()) if p is not None])
    order = sorted(range(k), key=lambda i: -found.theta[i])
    for leader, sign in ((order[0], 1), (order[-1], -1)):
        if np.isclose(found.theta, found.theta[leader]).sum() > 1:
            continue  # who leads is drawn then
        for rival in set(range(k)) - {leader}:
            sure = found.p_stronger(leader, rival) if sign > 0 else found.p_stronger(rival, leader)
            assert (min(leader, rival), max(leader, rival)) in known or sure >= DECIDED - 1e-9


@pytest.mark.parametrize("plan", ["tournament", "best-worst"])
def test_plans_find_a_planted_order_with_fewer_questions(plan: str) -> None:
    asked = 0
    for seed in range(20):
        strengths = random.Random(seed).sample(range(16), 16)
        verdicts: dict[Pair, float | None] = {
            (i, j): float(strengths[i] > strengths[j]) for i, j in combinations(range(16), 2)
        }
        known = undisturbed(16, plan, verdicts, str(seed))
        theta = bradley_terry(16, [(i, j, p) for (i, j), p in known.items() if p is not None]).theta
        assert theta.argmax() == strengths.index(15) and theta.argmin() == strengths.index(0)
        tau = kendall_tau(theta, strengths)
        assert tau is not None and tau > (0.8 if plan == "tournament" else 0.5)
        asked += len(known)
    assert asked / 20 < (60 if plan == "tournament" else 30), "of 120 pairs"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_pair_without_a_verdict_is_made_up_for(lost: int) -> None:
    """Of three equal ones a chain is asked; who loses his only pair meets the other end of the chain."""
    chain = comparisons(3, "tournament", {}, seed_key="p")
    assert len(chain) == 2
    known: dict[Pair, float | None] = {chain[lost]: None, chain[1 - lost]: 0.5}
    assert comparisons(3, "tournament", known, seed_key="p") == [tuple(sorted(set(chain[0]) ^ set(chain[1])))]
    assert comparisons(3, "tournament", dict.fromkeys(chain, 0.5), seed_key="p") == []


def test_a_judge_without_verdicts_ends_a_tournament() -> None:
    for plan in ("tournament", "best-worst"):
        known = undisturbed(5, plan, dict.fromkeys(combinations(range(5), 2)), "p")
        assert len(known) <= 10 and comparisons(5, plan, known, seed_key="p") == []


def connected(k: int, pairs: list[Pair]) -> bool:
    reached = {0}
    for _ in range(k):
        reached |= {item for pair in pairs if reached & set(pair) for item in pair}
    return len(reached) == k


@pytest.mark.parametrize("k", range(2, 14))
def test_random_plans_are_even_and_connected(k: int) -> None:
    before: set[Pair] = set()
    for n in range(2, k + 2):
        pairs = comparisons(k, f"random:{n}", {}, seed_key="p")
        assert len(set(pairs)) == len(pairs) == min(n * (k // 2), k * (k - 1) // 2)
        assert connected(k, pairs)
        met = [sum(item in pair for pair in pairs) for item in range(k)]
        if k % 2 == 0:
            assert set(met) == {min(n, k - 1)}
        else:
            assert max(met) <= n and max(met) - min(met) <= 1
        assert before <= set(pairs), "a larger number only adds pairs"
        before = set(pairs)
    assert before == set(combinations(range(k), 2))


def test_random_plans_are_drawn_by_their_key() -> None:
    drawn = [tuple(comparisons(8, "random:2", {}, seed_key=f"p{n}")) for n in range(200)]
    assert drawn[0] == tuple(comparisons(8, "random:2", {}, seed_key="p0"))
    assert len(set(drawn)) > 150
    often = [sum(pair in pairs for pairs in drawn) for pair in combinations(range(8), 2)]
    assert sum(often) == 200 * 8 and min(often) > 25 and max(often) < 95, "57 expected of each pair"


def test_all_asks_what_is_not_answered() -> None:
    assert comparisons(3, "all", {}, seed_key="") == [(0, 1), (0, 2), (1, 2)]
    assert comparisons(3, "all", {(0, 2): None, (0, 1): 0.4}, seed_key="") == [(1, 2)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("k", [0, 1])
def test_nothing_is_asked_of_fewer_than_two(plan: str, k: int) -> None:
    assert comparisons(k, plan, {}, seed_key="") == []


@pytest.mark.parametrize(
    "plan", ["", "swiss", "random", "random:", "random:1", "random:-3", "random:２", "random:2.5", "All"]
)
@pytest.mark.parametrize("k", [0, 2, 5])
def test_unknown_plans_name_the_option(plan: str, k: int) -> None:
    with pytest.raises(InputError, match=r"--pairs: no plan .*\n.*tournament") as error:
        comparisons(k, plan, {}, seed_key="")
    assert error.value.where == "--pairs"


def test_the_prior_in_use() -> None:
    assert bradley_terry(2, []).sd(0) == pytest.approx(PRIOR_SD)
