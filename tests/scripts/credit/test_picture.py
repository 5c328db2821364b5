"""What the plot of a measurement shows where an interval has no end."""

import math

import pytest
from matplotlib.figure import Figure

from scripts.credit.picture import _draw_saved


def drawn(**arms):
    """Markers of the plot and its words, for arms given as (saved, saved_low, saved_high)."""
    axes = Figure().subplots()
    names = ("saved", "saved_low", "saved_high")
    _draw_saved(axes, {label: dict(zip(names, figures, strict=True)) for label, figures in arms.items()})
    return [line.get_marker() for line in axes.lines], [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("high", "arrows"), [(2.5, 0), (50.0, 1), (math.inf, 1)])
def test_an_interval_that_leaves_the_plot_ends_in_an_arrow(high, arrows):
    markers, words = drawn(scalar=(1.0, 1.0, math.inf), own=(2.0, 0.5, high))
    assert (markers.count("o"), markers.count(">"), words) == (1, arrows, [])


def test_a_measurement_without_a_signal_says_so_and_draws_no_figure():
    markers, words = drawn(scalar=(math.inf, 1.0, math.inf), own=(math.inf, 0.0, math.inf))
    assert "o" not in markers and ">" not in markers
    assert "nothing can be said" in words[0]
