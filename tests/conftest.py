"""Every test runs with shapes and dtypes of public signatures checked (jaxtyping with beartype), and without the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jaxtyping

if os.environ.get("PERCEPTA_CHECK_SHAPES", "1") != "0":
    jaxtyping.install_import_hook("percepta", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import pytest


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    """Latent caches go to a temporary folder."""
    monkeypatch.setenv("PERCEPTA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
