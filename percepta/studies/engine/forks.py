"""Processes for jobs that cost little to start: one process imports everything once, and forks for each job.

Much of a small job is its imports, five seconds of a core. A forked job is a process like one that was started from a shell: it has its
own threads, gets signals, and exits with its own code. Linux only: elsewhere a fork of a process with libraries of the system is not safe.

    {"words", "env", "out", "log"}  ->  the job's process id
    {"poll": PID}                   ->  its exit code (negative: a signal), or null while it runs
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Process(Protocol):
    """What running needs of a job's process; subprocess.Popen is one."""

    returncode: int | None

    def poll(self) -> int | None: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...


@runtime_checkable
class Start(Protocol):
    """Starts `percepta WORDS`: its output into `out`, its words to the reader into `log`. `lock` stays open in it."""

    def __call__(self, words: Sequence[str], env: Mapping[str, str], out: Path, log: Path, lock: int) -> Process: ...


PERCEPTA = (sys.executable, "-m", "percepta")


def spawned(words: Sequence[str], env: Mapping[str, str], out: Path, log: Path, lock: int) -> Process:
    with out.open("w") as told, log.open("a") as noted:
        return subprocess.Popen(
            [*PERCEPTA, *words], stdin=subprocess.DEVNULL, stdout=told, stderr=noted, env={**os.environ, **env}, pass_fds=(lock,)
        )


class Forked:
    """A job's process, whose parent is the server."""

    def __init__(self, forks: "Forks", pid: int) -> None:
        self.forks, self.pid = forks, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.forks.ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Forks:
    """The server, started when the first job is. Where it cannot be, jobs are started the usual way."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            assert self._server.stdin is not None and self._server.stdout is not None
            self._server.stdout.close()
            with suppress(BrokenPipeError):
                self._server.stdin.close()  # it leaves; jobs that are still running go on without it
            self._server.wait()

    def __call__(self, words: Sequence[str], env: Mapping[str, str], out: Path, log: Path, lock: int) -> Process:
        if sys.platform != "linux":
            return spawned(words, env, out, log, lock)
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "percepta.studies.engine.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                pass_fds=(lock,), env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return Forked(self, self.ask({"words": list(words), "env": dict(env), "out": str(out), "log": str(log)}))

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._server is not None and self._server.stdin is not None and self._server.stdout is not None
        try:
            print(json.dumps(request), file=self._server.stdin, flush=True)
            return json.loads(self._server.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            raise RuntimeError(
                f"the process that starts the jobs of this study has ended ({self._server.wait()}); the same command goes on"
            ) from error


def become(words: Sequence[str], env: Mapping[str, str], out: str, log: str) -> None:
    """In the fork: `percepta WORDS`, and the end."""
    import torch

    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, path, kind in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                                   (2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):  # fmt: skip
            os.dup2(os.open(path, kind, 0o666), number)
        os.environ.update(env)
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
        sys.argv = ["percepta", *words]
        code = importlib.import_module("percepta.cli").main(list(words))  # the program that jobs are, not a part of this room
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Until stdin ends. Signals are the jobs' and their master's: Ctrl-C reaches every process of a terminal, and this one stays."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, signal.SIG_IGN)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            done, status = os.waitpid(request["poll"], os.WNOHANG)
            reply = os.waitstatus_to_exitcode(status) if done else None
        elif (reply := os.fork()) == 0:
            become(**request)
        print(json.dumps(reply), file=answer, flush=True)
    os._exit(0)  # at once: the interpreter's own end takes long after so many imports


def load() -> None:
    """All that jobs import; nothing is computed, so that no thread is there to be lost in a fork."""
    for name in ("cli.train", "cli.sample", "cli.evaluate", "cli.report", "evaluation.evaluate", "interop.load",
                 "reports", "sampling", "training.job", "training.evaluating"):  # fmt: skip
        importlib.import_module(f"percepta.{name}")
    importlib.import_module("percepta.recipes").recipes()  # the rooms above this one belong to the jobs
    from diffusers import UNet2DModel  # noqa: F401  # diffusers loads it when it is asked for


if __name__ == "__main__":
    serve()
