"""Processes that a session started end with it, also those that their parents lost."""

import subprocess
import sys
import time

from revati.deployment.leftovers import no_leftovers


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_orphans_are_ended_and_others_are_not() -> None:
    outside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    grandparent = (
        "import subprocess, sys;"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True, stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL).pid)"
    )
    with no_leftovers("a test's mark"):
        orphan = int(
            subprocess.run([sys.executable, "-c", grandparent], capture_output=True, check=True).stdout
        )
        assert running(orphan)
    assert not running(orphan)
    assert running(outside.pid)
    outside.kill()
    outside.wait()


def test_it_does_not_wait_when_nothing_is_left() -> None:
    started = time.monotonic()
    with no_leftovers("another mark"):
        pass
    assert time.monotonic() - started < 1
