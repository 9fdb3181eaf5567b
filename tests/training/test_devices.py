"""Several processes train what one would."""

import os
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transfusion import store
from transfusion.networks import models
from transfusion.training import devices, fit


def steps(unknown):
    torch.manual_seed(0)
    net = devices.over_whole_batches(models.build("resnet18", outputs=5, seed=1).double().train())
    x, y = torch.randn(10, 3, 32, 32, dtype=torch.float64), torch.arange(10) % 5
    y[:3] = unknown
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        part, labels = devices.share(x), devices.share(y)
        loss = torch.nn.functional.cross_entropy(net(part), labels, ignore_index=-1)
        devices.weighted(loss, labels).backward()
        devices.average_gradients(net.parameters())
        sgd.step(), sgd.zero_grad()
    net.eval()
    with torch.no_grad():
        return net.state_dict() | {"scores": devices.gather(net(devices.share(x)))}


def both(path):
    states = {f"{unknown} {n}": v for unknown in (0, -1) for n, v in steps(unknown).items()}
    if devices.first():
        torch.save(states, path)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """Batch norm, uneven shares and (label -1) unknown labels included; in double precision, as
    training amplifies rounding."""
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    devices.together(2, both, two)
    both(one)
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
    started = psutil.Process().children()
    os.kill(max(p.pid for p in started if "--multiprocessing-fork" in p.cmdline()), 9)


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, tiny_run):
    run = tiny_run(devices=2, steps=400, evaluations=20)
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "killed"))
    killer = threading.Thread(target=_kill_a_worker, args=[run.key])
    killer.start()
    with pytest.raises(devices.Broken, match="one of 2 processes ended"):
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


def heard_elsewhere():
    """Of the ports at which this process and its parent listen, those that other machines reach."""
    everyone = [psutil.Process(), psutil.Process().parent()]
    listening = [c.laddr.ip for p in everyone for c in p.net_connections() if c.status == "LISTEN"]
    assert listening, "gloo listens"
    devices.wait()
    assert not {*listening} - {"127.0.0.1", "::1"}, listening


def test_no_other_machine_can_speak_to_the_processes_of_a_run():
    devices.together(2, heard_elsewhere)


def fail_once():
    if devices.first():
        raise ValueError("broken")
    time.sleep(600)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others():
    with pytest.raises(devices.Broken, match="one of 2 processes ended: broken"):
        devices.together(2, fail_once)
    assert not [p for p in psutil.Process().children() if "--multiprocessing-fork" in p.cmdline()]
