"""Claims: the sentences of a notebook that rest on a number, each judged where it stands.

A digit that training produced does not come back on another processor; what a sentence says about it should. So prose
speaks in rounded ranges, a cell claims them, and nbval compares the verdicts: the measured value stands in brackets
that the comparison leaves out (`tests/nbval_sanitize.cfg`). On other data a claim that does not hold says so and stops
nothing.
"""

import math

HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be judged here"


def claim(sentence: str, value, *, above=None, below=None, between=None) -> None:
    """Print whether a sentence holds.

    >>> claim("most defects are found", 0.93, above=0.8)
    holds: most defects are found (above 0.8) [measured 0.93]
    >>> claim("no good part is flagged", lambda: {}["good"] == 0)
    cannot be judged here: no good part is flagged [KeyError: 'good']

    Args:
        sentence: what a reader is told, as the prose says it.
        value: a number, with one of the bounds, or a truth value without; or a function without arguments that
            computes it, whose errors mean that these data do not define it. None and NaN mean the same.
        above, below: the value lies strictly above or below; between: (low, high), both included.
    """
    bounds = {
        name: bound for name, bound in (("above", above), ("below", below), ("between", between)) if bound is not None
    }
    asked = ", ".join(
        f"{name} {bound[0]:g} and {bound[1]:g}" if name == "between" else f"{name} {bound:g}"
        for name, bound in bounds.items()
    )
    asked = f" ({asked})" if asked else ""
    if callable(value):
        try:
            value = value()
        except Exception as error:  # on other data a kind, a mask or a good image may be missing
            print(f"{OPEN}: {sentence}{asked} [{type(error).__name__}: {' '.join(str(error).split())}]")
            return
    if value is None or math.isnan(value):
        print(f"{OPEN}: {sentence}{asked} [not defined on these data]")
        return
    holds = bool(value) if not bounds else all(_within(float(value), name, bound) for name, bound in bounds.items())
    measured = "" if not bounds else f" [measured {float(value):.4g}]"
    print(f"{HOLDS if holds else FAILS}: {sentence}{asked}{measured}")


def _within(value: float, name: str, bound) -> bool:
    return {
        "above": lambda: value > bound,
        "below": lambda: value < bound,
        "between": lambda: bound[0] <= value <= bound[1],
    }[name]()


def lost(text: str) -> list[str]:
    """Return the lines of a notebook's output that say a claim does not hold, or cannot be judged."""
    return [line for line in text.splitlines() if line.startswith((FAILS, OPEN))]


def held(text: str) -> list[str]:
    """Return the lines of a notebook's output that say a claim holds."""
    return [line for line in text.splitlines() if line.startswith(f"{HOLDS}: ")]
