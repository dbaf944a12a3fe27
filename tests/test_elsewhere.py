"""The claims of every method notebook's result, for a processor of another make (`make test-oldest`)."""

import pytest

from adlib_book import cells, claims, notebook_jobs


@pytest.mark.elsewhere
@pytest.mark.parametrize("method", notebook_jobs.METHOD_NOTEBOOKS)
def test_every_claim_of_the_result_holds(method, tmp_path, monkeypatch):
    monkeypatch.setenv("ADLIB_RESULTS", str(tmp_path))
    _, printed = cells.run(notebook_jobs.METHOD_NOTEBOOKS[method], {"out_dir": str(tmp_path / "run")}, story=False)
    assert claims.held(printed)
    assert claims.lost(printed) == []
