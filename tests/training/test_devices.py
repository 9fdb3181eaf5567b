"""Several processes train what one would."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transfusion import store
from transfusion.training import devices, fit

STEPS = """
import sys, torch
from transfusion.networks import models
from transfusion.training import devices as parallel

def steps(unknown):
    torch.manual_seed(0)
    net = parallel.over_whole_batches(models.build("resnet18", outputs=5, seed=1).double().train())
    x, y = torch.randn(10, 3, 32, 32, dtype=torch.float64), torch.arange(10) % 5
    y[:3] = unknown
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        part, labels = parallel.share(x), parallel.share(y)
        loss = torch.nn.functional.cross_entropy(net(part), labels, ignore_index=-1)
        parallel.weighted(loss, labels).backward()
        parallel.average_gradients(net.parameters())
        sgd.step(), sgd.zero_grad()
    net.eval()
    with torch.no_grad():
        return net.state_dict() | {"scores": parallel.gather(net(parallel.share(x)))}

def both(path):
    states = {f"{unknown} {n}": v for unknown in (0, -1) for n, v in steps(unknown).items()}
    if parallel.first():
        torch.save(states, path)

torch.set_num_threads(1)
"""
ON_TWO = """
with parallel.group():
    both(sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """Batch norm, uneven shares and (label -1) unknown labels included; in double precision, as
    training amplifies rounding."""
    script, one, two = tmp_path / "steps.py", tmp_path / "one.pt", tmp_path / "two.pt"
    script.write_text(STEPS + ON_TWO)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, str(script), str(two)]
    subprocess.run(command, check=True, capture_output=True)
    here: dict = {}
    exec(STEPS, here)
    here["both"](one)
    alone, shared = torch.load(one), torch.load(two)
    assert alone.keys() == shared.keys() and "-1 scores" in alone
    for name in alone:
        torch.testing.assert_close(alone[name], shared[name], rtol=1e-9, atol=1e-12)


def test_a_single_process_does_the_plain_thing():
    net, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    net(x).sum().backward()
    before = net.weight.grad.clone()
    devices.average_gradients(net.parameters())
    loss = torch.tensor(2.0)
    assert devices.world_size() == 1 and devices.first()
    assert devices.share(x) is x and devices.gather(x) is x
    assert devices.weighted(loss, torch.tensor([1, -1])) is loss
    assert torch.equal(net.weight.grad, before)
    assert devices.over_whole_batches(net) is net


def test_a_run_on_two_devices_is_kept_under_a_key_of_its_own(cache, tiny_run):
    one, two = tiny_run(), tiny_run(devices=2)
    assert one.key != two.key
    alone, shared = fit.fit(one), fit.fit(two)
    assert shared.attrs["status"] == "done" and store.complete(two.key)
    torch.testing.assert_close(alone.auc.values, shared.auc.values, rtol=0, atol=0.05)
    assert alone.sizes == shared.sizes


def _kill_a_worker(key):
    """SIGKILL one of the processes that share a run, once there is a checkpoint."""
    checkpoint = store.run_folder(key) / "checkpoint.pt"
    while not checkpoint.exists():
        time.sleep(0.05)
    commands = {p.pid: p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])}
    os.kill(max(p for p, c in commands.items() if "share" in c and "--standalone" not in c), 9)


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, tiny_run):
    run = tiny_run(devices=2, steps=400, evaluations=20)
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "killed"))
    killer = threading.Thread(target=_kill_a_worker, args=[run.key])
    killer.start()
    with pytest.raises(devices.Broken, match="torchrun|Error"):
        fit.fit(run, checkpoint_seconds=0.5)
    killer.join()
    assert store.state(run.key) == "started"
    fit.fit(run)
    assert "resumed at step" in (store.run_folder(run.key) / "log.txt").read_text()
    killed = load_file(store.weights_path(run.key))
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "undisturbed"))
    fit.fit(run)
    undisturbed = load_file(store.weights_path(run.key))
    assert all(torch.equal(undisturbed[name], killed[name]) for name in undisturbed)
