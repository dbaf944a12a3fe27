"""The claims of every method notebook's result, for a processor of another make (`make test-oldest`)."""

import pytest

from adlib.methods import METHODS
from adlib_book import cells, claims


@pytest.mark.elsewhere
@pytest.mark.parametrize("method", METHODS)
def test_every_claim_of_the_result_holds(method, tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    _, printed = cells.run(METHODS[method].notebook, {"out_dir": str(tmp_path / "run")}, story=False)
    assert claims.held(printed)
    assert claims.lost(printed) == []
