"""Crossings and intervals, against numbers worked by hand."""

import math

import numpy as np
import pytest

from scripts.study.statistics import area_under, bootstrap, samples_to


def test_a_crossing_lies_straight_between_two_evaluations():
    assert samples_to([0, 100, 200], [0.2, 0.4, 0.8], 0.6) == pytest.approx(150)
    assert samples_to([0, 100, 200], [0.2, 0.4, 0.8], 0.4) == pytest.approx(100)


def test_the_first_crossing_counts_where_a_curve_falls_back():
    assert samples_to([0, 100, 200, 300], [0.2, 0.6, 0.3, 0.9], 0.4) == pytest.approx(50)


def test_a_level_held_from_the_start_needs_no_samples_and_one_never_reached_all():
    assert samples_to([0, 100], [0.5, 0.6], 0.4) == 0
    assert math.isinf(samples_to([0, 100], [0.1, 0.2], 0.4))


def test_the_area_is_the_mean_over_samples_not_over_evaluations():
    assert area_under([0, 100, 400], [0, 1, 1]) == pytest.approx((50 + 300) / 400)


def test_an_interval_holds_the_value_and_narrows_with_seeds():
    rng = np.random.default_rng(0)
    few, many = rng.normal(0.5, 0.1, 5), rng.normal(0.5, 0.1, 200)
    widths = []
    for rows in (few, many):
        value, low, high = bootstrap(np.mean, rows)
        assert value == rows.mean() and low < value < high
        widths.append(high - low)
    # 90% of a normal mean: 2 * 1.645 * 0.1 / sqrt(200)
    assert widths[1] < widths[0] and widths[1] == pytest.approx(0.0233, rel=0.2)


def test_the_same_draws_give_the_same_interval():
    rows = np.array([0.1, 0.5, 0.3])
    assert bootstrap(np.mean, rows) == bootstrap(np.mean, rows)


def test_groups_are_drawn_each_by_itself():
    value, low, high = bootstrap(lambda a, b: a.mean() - b.mean(), np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert (value, low, high) == (0, -1, 1)


def test_what_some_draws_never_reach_gives_an_infinite_end():
    value, low, high = bootstrap(lambda rows: math.inf if rows.min() < 0 else rows.mean(), np.array([-1.0, 1.0, 1.0]))
    assert math.isinf(value) and low == 1 and math.isinf(high)


def test_one_seed_has_no_interval_and_none_is_refused():
    assert all(map(math.isnan, bootstrap(np.mean, np.array([0.5]))[1:]))
    with pytest.raises(ValueError, match="at least one"):
        bootstrap(np.mean, np.array([]))
