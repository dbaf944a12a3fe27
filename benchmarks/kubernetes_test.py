"""The batch through Snakemake's Kubernetes executor, without a cluster (make kubernetes-test).

A stand-in answers the few requests to the API server that the executor makes: the container of a job becomes a process
on this machine, in an empty folder of its own, with the environment that the job's secret names. What a pod would see
on the shared volume is seen at the same place here. One run of demo data goes through `profiles/kubernetes` to its
record, and a second start must find nothing to do. Needs rsync and what the profile says to install.
"""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs", "kubernetes")
PROFILE = """based_on: laptop
datasets: {demo: {categories: [gear]}}
only: {}
seeds: [0]
methods: {padim: {image_size: 64}}
"""


SECRETS, PODS = {}, {}  # by name


class Server(BaseHTTPRequestHandler):
    """Secrets and jobs of one namespace."""

    def log_message(self, *_):
        pass

    def content(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def answer(self, body: dict, code: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        body = self.content()
        name = body["metadata"]["name"]
        if self.path.endswith("/secrets"):
            values = body.get("data") or {}
            SECRETS[name] = {key: base64.b64decode(value).decode() for key, value in values.items()}
        else:
            container = body["spec"]["template"]["spec"]["containers"][0]
            sources = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container.get("env") or []}
            environment = {key: SECRETS[source["name"]][source["key"]] for key, source in sources.items()}
            place, asked = tempfile.mkdtemp(), container["resources"]["requests"]
            print(f"        a pod that asks for {', '.join(f'{key} {value}' for key, value in asked.items())}")
            command = [*container["command"], *container["args"]]
            with open(Path(place, "pod.log"), "wb") as log:
                pod = subprocess.Popen(command, cwd=place, env=os.environ | environment, stdout=log, stderr=log)
            PODS[name] = pod
        self.answer(body, 201)

    def do_DELETE(self):
        self.content()
        pod = PODS.get(self.path.split("?")[0].split("/")[-1])
        if pod and pod.poll() is None:
            pod.terminate()
        self.answer({"kind": "Status", "status": "Success"})

    def do_GET(self):
        place = self.path.split("?")[0].split("/")
        if place[-1] == "status":
            code = PODS[place[-2]].poll()
            status = {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}
            self.answer({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": place[-2]}, "status": status})
        else:
            self.answer({"apiVersion": "v1", "kind": "PodList", "items": []})


def main() -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    missing += [] if shutil.which("rsync") else ["rsync"]
    if missing:
        print(f"skipped: {', '.join(missing)} is not installed; see profiles/kubernetes/config.yaml")
        return 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results, own, access = folder / "results", folder / "kubernetes_test.yaml", folder / "kubeconfig"
        results.mkdir()
        own.write_text(PROFILE)
        cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
        access.write_text(
            json.dumps(
                {"apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": [cluster]}
                | {"users": [{"name": "me", "user": {}}], "contexts": [context]}
            )
        )
        environment = os.environ | {"ADLIB_PROFILE": str(own), "ADLIB_RESULTS": str(results), "OMP_NUM_THREADS": "1"}
        environment |= {"KUBECONFIG": str(access), "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(ROOT)]
        command += ["--workflow-profile", str(ROOT / "profiles/kubernetes"), "--latency-wait", "5", "--retries", "0"]
        command += ["--default-storage-prefix", str(results / "snakemake"), "--quiet", "all"]
        command += ["--kubernetes-persistent-volumes", f"results:{results}", "--envvars", "ADLIB_RESULTS"]
        command += ["ADLIB_PROFILE", "--config", "profile=kubernetes_test", "method=padim"]
        record = results / "runs/kubernetes_test/padim/demo-gear-seed0/record.json"
        for time, n_jobs in (("the first time", 1), ("the second time", 0)):
            before = len(PODS)
            code = subprocess.run(command, env=environment, cwd=folder).returncode
            found = len(PODS) - before
            right = (code, found, record.is_file()) == (0, n_jobs, True)
            print(f"{'ok     ' if right else 'FAILED '} {time}: {found} jobs, exit code {code}", flush=True)
            if not right:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
