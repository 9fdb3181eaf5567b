import os
import subprocess
import sys
import time

import psutil
import pytest
from transfusion import machine

STARTS = """
import subprocess, sys, time
from transfusion import machine
elsewhere = f"import transfusion.machine, sys; sys.platform = {sys.argv[1]!r}"
machine.BOUND = elsewhere + machine.BOUND
subprocess.Popen(machine.bound(sys.argv[2]))
time.sleep(600)
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_what_is_bound_to_a_process_ends_with_it_even_by_kill_9(tmp_path, platform):
    """The kernel's way, and the one that works elsewhere."""
    script = tmp_path / "sleep.py"
    script.write_text("import time\nprint(flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-c", STARTS, platform, str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    assert child.wait(timeout=5) is None and not child.is_running()


def test_who_comes_after_the_end_of_its_starter_ends_at_once():
    code = f"from transfusion import machine; machine.end_with({os.getppid()}); print('here')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert ended.returncode == 1 and ended.stdout == b""


def test_workers_are_not_waited_for_when_somebody_interrupts():
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), machine.workers(1) as pool:
        pool.submit(time.sleep, 600)
        (worker,) = pool._processes
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 60 and not psutil.pid_exists(worker)


def test_a_folder_of_ones_own_is_no_link_and_no_other_users(tmp_path, monkeypatch):
    assert machine.own(tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(PermissionError, match="link"):
        machine.own(tmp_path / "link")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="12345"):
        machine.own(tmp_path / "a/b")
