"""The exceptions that a user is meant to read."""


class InputError(ValueError):
    """Something given from outside (a file, a folder, a parameter) cannot be used.

    The message is one line: it names the file or the parameter, says what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class TrainingError(RuntimeError):
    """Training stopped; the message names the step and what is left of the run. The command line exits with code 1."""


def suggest(name: str, names) -> str:
    """Return " (did you mean 'x'?)" for the nearest of the names, or an empty string.

    >>> suggest("scew", ["screw", "tile"])
    " (did you mean 'screw'?)"
    """
    import difflib

    near = difflib.get_close_matches(str(name), [str(other) for other in names], n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
