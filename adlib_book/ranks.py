"""Which of several methods is better over several data sets? Average ranks, Friedman's test, Nemenyi's distance.

A table of means tempts one to compare differences of differently hard data sets. Ranks compare within each data set
and only then average (Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006). Two
methods differ where their average ranks lie further apart than the critical distance

    CD = q_alpha(k) sqrt(k (k + 1) / (6 N)),      k methods, N data sets,

with q_alpha(k) the studentized range divided by sqrt(2). Below about ten data sets the test has next to no power: CD
exceeds the spread of the ranks, and "no difference was found" means nothing.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from adlib.errors import InputError

ENOUGH = 10  # data sets from which on Demšar trusts Friedman's approximation


@dataclass(frozen=True)
class Ranks:
    """Average ranks of k methods over N data sets.

    Attributes:
        average: (k,) by method, 1 is best, ascending.
        n: number of data sets.
        p_value: of Friedman's test that all methods rank alike; None below 3 methods or 2 data sets.
        critical_distance: of Nemenyi's test at level `alpha`; None where k or n is 1.
        alpha: the level.
    """

    average: pd.Series
    n: int
    p_value: float | None
    critical_distance: float | None
    alpha: float

    @property
    def enough(self) -> bool:
        """Tell whether there are enough data sets for the test to mean something."""
        return self.n >= ENOUGH and len(self.average) > 2

    def __str__(self) -> str:
        if self.critical_distance is None:
            return f"{len(self.average)} methods on {self.n} data sets: nothing to test"
        text = f"{len(self.average)} methods on {self.n} data sets, critical distance {self.critical_distance:.2f}"
        text += "" if self.p_value is None else f", Friedman p = {self.p_value:.2g}"
        return text if self.enough else f"{text}; fewer than {ENOUGH} data sets, so this decides nothing"


def average_ranks(table: pd.DataFrame, alpha: float = 0.05) -> Ranks:
    """Rank the methods (columns) on each data set (row), higher values first; ties share the mean of their ranks.

    Args:
        table: (N, k) values without gaps.
        alpha: level of the critical distance.
    """
    if table.empty or table.isna().any(axis=None):
        raise InputError("ranks need a value for every method on every data set; drop the rows or columns with gaps")
    n, k = table.shape
    ranks = table.rank(axis=1, ascending=False)
    p_value = None
    # Friedman's statistic is 0/0 where all methods tie on every data set.
    if k > 2 and n > 1 and (ranks.nunique(axis=1) > 1).any():
        from scipy.stats import friedmanchisquare  # here and below: takes longer to load than all tables to write

        p_value = float(friedmanchisquare(*table.to_numpy().T).pvalue)
    distance = critical_distance(k, n, alpha) if k > 1 and n > 1 else None
    return Ranks(ranks.mean().sort_values(kind="stable"), n, p_value, distance, alpha)


def critical_distance(k: int, n: int, alpha: float = 0.05) -> float:
    """Return Nemenyi's critical distance of average ranks for k methods on n data sets.

    >>> round(critical_distance(4, 14), 2)   # Demšar's example has 4 methods on 14 data sets
    1.25
    """
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(k * (k + 1) / (6 * n)))


def complete_block(table: pd.DataFrame) -> pd.DataFrame:
    """Return the largest part of a table of methods (columns) by data sets (rows) that has no gap.

    Largest by number of cells; of equal parts the one with more data sets. Methods of at least two, or nothing.
    """
    present, shared = table.notna(), set()
    for row in present.drop_duplicates().to_numpy():  # a maximal block has the methods that some rows share
        own = frozenset(present.columns[row])
        shared |= {own} | {own & other for other in shared}
    best = table.iloc[:0]
    for methods in sorted(shared, key=lambda names: [name in names for name in table.columns], reverse=True):
        columns = [name for name in table.columns if name in methods]
        block = table.loc[present[columns].all(axis=1), columns] if len(columns) > 1 else table.iloc[:0]
        if (block.size, len(block)) > (best.size, len(best)):
            best = block
    return best


def plot(ranks: Ranks, title: str = ""):
    """Critical-difference diagram: methods at their average rank, bars join those that the test cannot tell apart."""
    average, k = ranks.average, len(ranks.average)
    left = -(-k // 2)  # the better half is labelled on the left
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.6, 1.2 + 0.22 * (left + 3)))
    axis.hlines(0, 1, k, color="black", linewidth=1)
    for rank in range(1, k + 1):
        axis.plot([rank, rank], [0, 0.15], color="black", linewidth=1)
        axis.annotate(str(rank), (rank, 0.25), ha="center", fontsize="small")
    groups = _groups(average.to_numpy(), ranks.critical_distance) if ranks.critical_distance else []
    for i, (first, last) in enumerate(groups):
        axis.hlines(-0.3 - 0.25 * i, first - 0.03, last + 0.03, color="0.35", linewidth=4)
    depth = 0.3 + 0.25 * len(groups)
    for i, (name, rank) in enumerate(average.items()):
        on_left = i < left
        y = -depth - 0.4 * (i if on_left else k - 1 - i) - 0.2
        end = 0.7 if on_left else k + 0.3
        axis.plot([rank, rank, end], [0, y, y], color="black", linewidth=0.8)
        text = f"{name}  {rank:.2f}" if on_left else f"{rank:.2f}  {name}"
        axis.annotate(text, (end, y), ha="right" if on_left else "left", va="center", fontsize="small",
                      xytext=(-4 if on_left else 4, 0), textcoords="offset points")  # fmt: skip
    if ranks.critical_distance:
        stop = min(1 + ranks.critical_distance, k)
        longer = " (longer than the scale)" if 1 + ranks.critical_distance > k else ""
        axis.plot([1, 1, 1, stop, stop, stop], [0.68, 0.82, 0.75, 0.75, 0.82, 0.68], color="black", linewidth=1)
        label = f"critical distance {ranks.critical_distance:.2f}{longer}"
        axis.annotate(label, ((1 + stop) / 2, 0.85), ha="center", fontsize="small")
    axis.set(xlim=(-0.8, k + 1.8), ylim=(-depth - 0.4 * left - 0.1, 1.3), title=title or str(ranks))
    axis.set_axis_off()
    return figure


def _groups(average: np.ndarray, distance: float) -> list[tuple[float, float]]:
    """Return the longest runs of average ranks (ascending) that span no more than `distance`."""
    groups = []
    for i, first in enumerate(average):
        last = average[np.flatnonzero(average <= first + distance)[-1]]
        if last > first and (i == 0 or last > groups[-1][1] if groups else True):
            groups.append((float(first), float(last)))
    return groups
