"""JupyterLab itself: the installed one opens a notebook, runs all of it and shows its formulas and pictures."""

import os
import socket
import subprocess
import sys

import browser
import nbformat
import pytest

from adlib.paths import root


@pytest.fixture
def address(tmp_path):
    """Where a JupyterLab over `tmp_path` listens: no token, loopback only."""
    pytest.importorskip("jupyterlab", reason="needs pip install -e '.[lab]'")
    if not browser.find():
        pytest.skip("no Chromium on this machine (set CHROMIUM to its path)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-m jupyterlab --no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token= --allow-root"
    command = [sys.executable, *options.split(), "--expose-app-in-browser", f"--ServerApp.root_dir={tmp_path}"]
    own = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    with subprocess.Popen(command, env=own, cwd=root(), stderr=subprocess.PIPE, text=True) as server:
        assert any("is running at" in line for line in server.stderr), "JupyterLab did not start"
        yield f"127.0.0.1:{port}"
        server.terminate()


@pytest.mark.parametrize(("name", "formula", "picture"), [("00_start_here", None, 9), ("10_patchcore", 26, 11)])
def test_a_notebook_runs_in_jupyterlab(address, tmp_path, name, formula, picture):
    file = tmp_path / f"{name}.ipynb"
    text = (root() / "notebooks" / file.name).read_text()
    file.write_text(text.replace('category: str = \\"gear\\"', 'category: str = \\"brick\\"'))  # saves no figure
    with browser.open_tab(server=address, timeout=600) as tab:
        tab.open(f"http://{address}/lab/tree/{file.name}")
        tab.wait_for("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
        tab.run("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        tab.run("jupyterapp.commands.execute('notebook:run-all-cells').then(String)")
        tab.run("jupyterapp.commands.execute('docmanager:save')")
        # The page holds only those cells that are in sight.
        wide = {picture: "('.jp-RenderedImage img')?.naturalWidth > 300"}
        wide |= {formula: "('mjx-container[display=true]')?.offsetWidth > 100"} if formula else {}
        for cell, seen in wide.items():
            tab.run(f"jupyterapp.shell.currentWidget.content.scrollToItem({cell}).then(String)")
            tab.wait_for(f"document.querySelector{seen}")
        assert not [error for error in tab.errors if "request to the network" in error]
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells)
    assert not [output for output in outputs if output.output_type == "error"]
    assert any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))
