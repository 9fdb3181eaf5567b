import json
import os
import signal
import socket
import subprocess
import sys

from transfusion import waiting

HOLD = """
import sys, time
from pathlib import Path
from transfusion import waiting
with waiting.lock(Path(sys.argv[1]), "the work is being done"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holding(path, seconds):
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes)


def test_who_waits_says_for_whom_and_since_when_and_that_it_is_stopped(tmp_path):
    first = holding(tmp_path / "lock", 60)
    assert first.stdout.readline() == "held\n"
    second = holding(tmp_path / "lock", 0)
    running = second.stderr.readline()
    assert running.startswith("the work is being done: waiting for")
    assert f"process {first.pid} on {socket.gethostname()}, since 20" in running
    assert "stopped" not in running
    assert json.loads((tmp_path / "lock").read_text())["pid"] == first.pid, "who asks signs nothing"
    os.kill(first.pid, signal.SIGSTOP)
    third = holding(tmp_path / "lock", 0)
    assert f"stopped: continue it, `kill -CONT {first.pid}`" in third.stderr.readline()
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, second, third):
        process.communicate()
    assert second.returncode == third.returncode == 0, "the lock fell with its holder"


def test_a_lock_that_is_free_is_taken_without_a_word(tmp_path, capsys):
    for _ in range(2):
        with waiting.lock(tmp_path / "lock", "never"):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert capsys.readouterr().err == ""


def test_a_holder_that_did_not_sign_or_is_elsewhere_or_has_ended_is_told_as_such(tmp_path, capsys):
    for content, words in {
        "": "an unknown process",
        '["a list"]': "an unknown process",
        '{"pid": 1, "host": "far away", "since": "then"}': "process 1 on far away, since then\n",
        json.dumps({"pid": ended(), "host": socket.gethostname(), "since": "then"}): "it has ended",
    }.items():
        (tmp_path / "lock").write_text(content)
        waiting.tell("it is taken", tmp_path / "lock")
        assert words in capsys.readouterr().err


def ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
