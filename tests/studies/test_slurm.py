"""The smallest study on a real Slurm of one node, installed from Debian's packages."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from transfusion import store
from transfusion.experiments import plan
from transfusion.studies import grouping

from ..conftest import ROOT, link_tracked

pytestmark = pytest.mark.slow
STATE = "/var/lib/slurm/slurmctld"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={state}
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def shell(command, **options):
    return subprocess.run(command, shell=True, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A controller and a node with two made-up GPUs, stopped afterwards."""
    if shutil.which("slurmctld") is None:
        install = "apt-get update -q && apt-get install -yq --no-install-recommends slurm-wlm munge"
        if os.getuid() or shell(install).returncode:
            pytest.skip("Slurm is not here, and cannot be installed: that takes root and Debian")
    host = socket.gethostname().partition(".")[0]
    devices = tmp_path_factory.mktemp("gpus")
    lines = []
    for index in range(2):
        shell(f"mknod {devices}/gpu{index} c 1 3")
        lines.append(f"NodeName={host} Name=gpu File={devices}/gpu{index}")
    for folder in ("/etc/slurm", "/var/log/slurm", "/var/lib/slurm/slurmd", STATE):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Path("/etc/slurm/gres.conf").write_text("\n".join(lines) + "\n")
    memory = int(0.9 * psutil.virtual_memory().total / 2**20)
    settings = CONFIGURATION.format(host=host, cpus=os.cpu_count(), memory=memory, state=STATE)
    Path("/etc/slurm/slurm.conf").write_text(settings)
    shell("install -d -o munge -g munge /run/munge")
    for daemon in ("runuser -u munge -- munged", "slurmctld", "slurmd"):
        shell(daemon)
    for _ in range(60):
        if "idle" in shell("sinfo --noheader").stdout:
            break
        time.sleep(1)
    else:
        pytest.skip(f"Slurm does not start here: {shell('sinfo').stderr}")
    yield
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in ("slurmd", "slurmctld", "munged"):
            process.terminate()


def kill_a_group():
    """End a job's process as the kernel does when memory runs out; returns its group."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[4:6] == ["transfusion", "group"]:
            process.send_signal(signal.SIGKILL)
            return command[-1]
    return None


def test_the_smoke_study_survives_a_killed_job(slurm, tmp_path, monkeypatch):
    """One job is killed as it trains; Slurm gets it again, and all pages are there at the end."""
    link_tracked(tmp_path / "cache")
    places = {"TRANSFUSION_CACHE": str(tmp_path / "cache"), "TRANSFUSION_BUILD": str(tmp_path)}
    command = [sys.executable, "-m", "transfusion", "run", "smoke", "--profile", "slurm"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **places},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed = None
    while process.poll() is None and killed is None:
        time.sleep(0.1)
        if list((tmp_path / "cache").glob("runs/*/done.json")):
            killed = kill_a_group()
    said, _ = process.communicate()
    print(f"killed: {killed}", said, shell("squeue").stdout, sep="\n")
    assert process.returncode == 0, said
    assert killed is not None
    monkeypatch.setenv("TRANSFUSION_CACHE", places["TRANSFUSION_CACHE"])
    assert all(grouping.is_done("smoke", name) for name in grouping.groups("smoke"))
    for chapter in plan.CHAPTERS:
        assert (tmp_path / "_build/executed/smoke" / f"{chapter}.ipynb").exists()
    log = (store.root() / "groups/smoke.log").read_text()
    assert log.count("has been submitted with SLURM jobid") > len(grouping.groups("smoke"))
