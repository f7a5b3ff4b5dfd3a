"""A folder for studies, and a stand-in for the commands."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from percepta.studies.engine import forks, perform
from percepta.studies.engine.store import Store
from percepta.studies.engine.study import At

AT = At("pocket", None, "shapes:length=4", 8)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "studies")
    made.open(AT)
    yield made
    made.close()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The log of what ran: lines `start NAME TIME` and `end NAME TIME`."""
    monkeypatch.setattr(forks, "PERCEPTA", (sys.executable, "-S", str(Path(__file__).with_name("fake.py"))))
    monkeypatch.setattr(perform, "Forks", lambda: nullcontext(forks.spawned))
    log = tmp_path / "fake.log"
    log.touch()
    monkeypatch.setenv("FAKE_LOG", str(log))
    return lambda: [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()]
