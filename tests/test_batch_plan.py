"""What `adlib plan` says of the paper profile: jobs and hours by method, and what is missing."""

import shutil

from adlib import profiles
from adlib.images import weights
from adlib_book import cli, costs


def test_a_plan_counts_hours_and_names_what_is_missing(small_tree, tmp_path, monkeypatch, capsys):
    for name in ("mvtec_ad", "mpdd", "own", "second", "third"):
        shutil.copytree(small_tree, tmp_path / name)
    monkeypatch.setattr(weights, "_cached", lambda name: name.startswith("wide"))
    monkeypatch.setattr(weights, "require_hub", lambda name: None)
    monkeypatch.setenv("ADLIB_DATA", str(tmp_path / "empty"))
    assert cli.main(["plan", "--profile", "paper", "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    minutes = sum(costs.read("paper", name).minutes for name in profiles.load("paper")["methods"])
    assert f"165 jobs: {15 * 6 / 242 * minutes / 60:.1f} GPU hours" in said  # 5 data sets, 3 seeds, 6 training images
    assert "missing: weights of backbone 'vgg19.tv_in1k': fetched from the hub by the first job (1 method)" in said
    assert "missing: textures 'dtd': no such folder here, below data/ or beside the data sets (3 methods)" in said
    assert "wide_resnet50" not in said
    (tmp_path / "dtd").mkdir()
    assert cli.main(["plan", "--profile", "paper", "--data-root", str(tmp_path)]) == 0
    assert "dtd" not in capsys.readouterr().out
