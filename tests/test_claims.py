"""Claims: verdicts, bounds, and that nothing stops on other data; the cells of a notebook in one process."""

import nbformat
import pytest

from adlib_book import cells, claims


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (0.06, {"above": 0.05}, "holds"),
        (0.05, {"above": 0.05}, "does not hold here"),
        (1, {"below": 2}, "holds"),
        (2, {"below": 2}, "does not hold here"),
        (3, {"between": (3, 4)}, "holds"),
        (4.1, {"between": (3, 4)}, "does not hold here"),
        (True, {}, "holds"),
        (False, {}, "does not hold here"),
        (None, {"above": 0}, "cannot be judged here"),
        (float("nan"), {"above": 0}, "cannot be judged here"),
        (lambda: 1, {"above": 0}, "holds"),
        (lambda: [][0], {"above": 0}, "cannot be judged here"),
    ],
)
def test_verdict(capsys, value, bound, verdict):
    claims.claim("a sentence", value, **bound)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{verdict}: a sentence")
    assert len(claims.held(printed)) == (verdict == "holds")
    assert len(claims.lost(printed)) == (verdict != "holds")


def test_the_comparison_leaves_out_the_measured_value_and_not_the_verdict(capsys):
    """What nbval compares is the same for 0.13 and 0.14, and differs where the claim is lost."""
    import configparser
    import re
    from pathlib import Path

    rules = configparser.RawConfigParser()
    rules.read(Path(__file__).parent / "nbval_sanitize.cfg")

    def compared(value):
        claims.claim("more than chance", value, above=0.1)
        claims.claim("more than luck", value, above=0.1)
        text = capsys.readouterr().out
        for section in rules.sections():
            text = re.sub(rules[section]["regex"], rules[section]["replace"], text)
        return text

    assert compared(0.13) == compared(0.14)
    assert compared(0.13) != compared(0.05)
    assert compared(0.13) != compared(None)


def test_cells_up_to_the_record(tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook()
    sources = {"parameters": "a = 1", "fit": "b = a + 1\nprint(b)", "record": "c = 3", "story": "d = 1 / 0"}
    for tag, source in sources.items():
        book.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(book, tmp_path / "notebooks" / "x.ipynb")
    monkeypatch.setenv("ADLIB_ROOT", str(tmp_path))
    names, printed = cells.run("x", {"a": 5}, story=False)
    assert (names["b"], names["c"], printed) == (6, 3, "6\n")
    with pytest.raises(ZeroDivisionError) as error:
        cells.run("x")
    assert "code cell 4: d = 1 / 0" in error.value.__notes__[0]
