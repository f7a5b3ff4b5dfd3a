"""Stands in for `percepta` where only the running of jobs is tested: starts in milliseconds, and does what its words say."""

import json
import os
import signal
import sys
import time
from pathlib import Path

verb, *words = sys.argv[1:]
out = Path(words[words.index("--out") + 1]) if "--out" in words else None


def stop(*_):
    (out or Path()).joinpath("stopped").write_text("by SIGTERM")
    os._exit(3)  # an exception could come while a file is closed, and be dropped there


def log(text):
    with Path(os.environ["FAKE_LOG"]).open("a") as file:
        file.write(f"{text} {time.monotonic()}\n")


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if out is not None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "ready").write_text("")
log(f"start {words[-1]}")
time.sleep(float(words[words.index("--sleep") + 1] if "--sleep" in words else os.environ.get("FAKE_SLEEP", "0")))
log(f"end {words[-1]}")
if "--fail" in words or os.environ.get("FAKE_FAILS") == verb:
    print("first line\nno room on the device", file=sys.stderr)
    sys.exit(1)
if "--json" in words:
    shown = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    text = json.dumps({"words": [verb, *words], "env": shown, "metrics": {"fid": {"value": float(len(words)), "space": "pixels"}}})
    print(text[:20] if "--cut" in words else text)
