"""Real processes for little: one process imports everything once and forks, for each line of JSON on stdin, a child that runs code.

    {"code": TEXT, "env": {NAME: VALUE}, "out": FILE, "err": FILE}  ->  the child's process id
    {"wait": PID, "timeout": SECONDS}                               ->  its exit code (negative: a signal), or null and it is killed

The child is a process like one that was started from a shell: it gets signals, dies, and exits with a code of its own.
"""

import json
import os
import signal
import sys
import time
import traceback


def child(job: dict) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job["env"])
    code = 1
    try:
        exec(job["code"], {"__name__": "__zygote__"})
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> None:
    import torch

    torch.set_num_threads(1)
    import importlib
    import pkgutil

    import diffusers
    import torch.distributed.elastic
    from diffusers import UNet2DModel  # noqa: F401

    import percepta.cli
    import percepta.interop.load
    import percepta.recipes
    import percepta.training.job

    for info in pkgutil.iter_modules(percepta.cli.__path__):
        if info.name != "__main__":
            importlib.import_module(f"percepta.cli.{info.name}")
    percepta.recipes.recipes()
    assert diffusers.__version__
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what children print before they have files of their own is no answer
    print("ready", file=answer, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            print(json.dumps(wait(job["wait"], job["timeout"])), file=answer, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(job)
        print(pid, file=answer, flush=True)
    os._exit(0)  # at once: the interpreter's own end takes seconds after so many imports


if __name__ == "__main__":
    main()
