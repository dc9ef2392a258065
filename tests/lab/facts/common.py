"""What the facts share: hosts of a lab of their own, commands in them, waiting, writers, a report with times."""

import atexit
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
INSIDE = f"/host{HERE}"  # this directory, as a host of the lab sees it
LAB = HERE.parent / "lab"
os.environ.setdefault("LAB_NAME", "cistern-facts")
os.environ.setdefault("LAB_NET", "10.81.0")
START = time.time()


def lab(*args, **more):
    return subprocess.run([str(LAB), *args], text=True, **more)


def say(text):
    print(f"  {time.time() - START:6.1f} s  {text}", flush=True)


def fail(text):
    sys.exit(f"  {time.time() - START:6.1f} s  {text}")


def holds(claim, truth, seen=""):
    """One claim of the design: printed when it is so, the end of the script when it is not."""
    if not truth:
        fail(f"NOT SO: {claim} {seen}")
    say(f"{claim} {f'({seen})' if seen else ''}")


def until(what, condition, seconds=30, seen=lambda: ""):
    """Waits for a condition, and answers what it became. If it does not come, `seen` says what there is instead."""
    end = time.time() + seconds
    while not (value := condition()):
        if time.time() > end:
            fail(f"not within {seconds} s: {what} {seen()}")
        time.sleep(0.1)
    return value


def boot(*specs):
    """New hosts, all at once; they are gone when the script ends."""
    lab("down", check=True)
    atexit.register(lab, "down")
    lab("up", *specs, check=True)
    say(f"booted {', '.join(specs)}")
    return [Host(spec.partition("=")[0]) for spec in specs]


class Host:
    def __init__(self, name):
        self.name = name
        self.ip = re.search(rf"^{name} (\S+)", lab("ls", capture_output=True).stdout, re.M)[1]

    def run(self, script, limit=60):
        """A shell script in the host: its exit code, and what it said."""
        try:
            done = lab("ssh", self.name, "bash", input=script, capture_output=True, timeout=limit)
            return done.returncode, (done.stdout + done.stderr).strip()
        except subprocess.TimeoutExpired:
            return -1, f"no answer in {limit} s"

    def sh(self, script, limit=60):
        """A shell script that is to succeed: what it said."""
        code, said = self.run("set -e\n" + script, limit)
        if code:
            fail(f"in {self.name}, exit code {code}: {script}\n{said}")
        return said

    def start(self, script, before=""):
        """A shell script in the background of the host, as a Step."""
        return Step(self, script, before)

    def timed(self, script, before="", limit=60):
        """A shell script that is to succeed: how long it took in the host, in seconds."""
        code, seconds = Step(self, script, before).wait(limit)
        if code:
            fail(f"in {self.name}, exit code {code}: {script}")
        return seconds

    def power_cut(self):
        lab("kill", self.name, check=True)

    def up(self):
        lab("up", self.name, check=True)

    def cut(self):
        lab("cut", self.name, check=True)

    def mend(self):
        lab("mend", self.name, check=True)


class Step:
    """A shell script that runs in a host, whether or not it ever ends."""

    count = 0

    def __init__(self, host, script, before):
        Step.count += 1
        self.host, self.script, self.file = host, script, f"/tmp/step{Step.count}"
        host.sh(f"""cat >{self.file}.sh <<'SCRIPT'
{before}
set -e
{script}
SCRIPT
(begin=$(date +%s.%N); code=0; bash {self.file}.sh >{self.file}.said 2>&1 </dev/null || code=$?
 echo "$code $begin $(date +%s.%N)" >{self.file}.new; mv {self.file}.new {self.file}) >/dev/null 2>&1 </dev/null &""")

    def ended(self):
        """(exit code, seconds), or None while it runs."""
        code, said = self.host.run(f"cat {self.file}")
        if code:
            return None
        code, begin, end = said.split()
        return int(code), float(end) - float(begin)

    def wait(self, seconds=30):
        return until(f"{self.host.name}: {self.script}", self.ended, seconds)

    def said(self):
        return self.host.sh(f"cat {self.file}.said")


class Writer:
    """Ten writes a second in a host, each with fsync; the file `writer` says what it does."""

    count = 0

    def __init__(self, host, path, *more):
        Writer.count += 1
        self.host, self.path, self.log = host, path, f"/tmp/writer{Writer.count}"
        host.sh(f"nohup {INSIDE}/writer {path} {self.log} {' '.join(more)} >/dev/null 2>&1 </dev/null & "
                f"echo $! >{self.log}.pid")

    def lines(self, since=0):
        """(when, number, how long, what) of the attempts that ended since then."""
        rows = [row.split(" ", 3) for row in self.host.sh(f"touch {self.log}; cat {self.log}").splitlines()]
        return [(float(when), int(n), float(took), what) for when, n, took, what in rows if float(when) >= since]

    def ok(self, since=0):
        return [row for row in self.lines(since) if row[3] == "OK"]

    def goes_on(self, seconds=30):
        """Waits for a write that succeeds from now on."""
        now = time.time()
        until(f"{self.host.name} writes {self.path}", lambda: self.ok(now), seconds, lambda: self.lines()[-2:])
        return self

    def errors(self, since=0):
        """What was not a success since then, each once."""
        return sorted({row[3] for row in self.lines(since)} - {"OK", "LOCKED"})

    def pause(self, since):
        """The longest time without a success between two that succeeded, since then."""
        times = [row[0] for row in self.ok(since)]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def kill(self):
        self.host.sh(f"kill -9 $(cat {self.log}.pid)")
