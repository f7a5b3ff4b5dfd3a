"""The up-front check finds every kind of bad file by name, and says nothing of good ones."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from percepta.data import Shapes, open_source
from percepta.data.check import check_source


@pytest.fixture
def mixed(tmp_path, make):
    make.folder(tmp_path, 8, ("a", "b"))
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    (tmp_path / "a" / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "b" / "cut.png").write_bytes(make.encoded(make.picture(1))[:-30])
    (tmp_path / "b" / "huge.png").write_bytes(make.encoded(np.zeros((8200, 8200), np.uint8)))
    (tmp_path / "b" / "grey.png").write_bytes(make.encoded(make.picture(2)[..., 0]))
    (tmp_path / "b" / "tiny.png").write_bytes(make.encoded(make.picture(3, 5, 9)))
    (tmp_path / "b" / "twin.png").write_bytes((tmp_path / "b" / "001.png").read_bytes())
    return tmp_path


def test_every_fault_is_listed_by_name(mixed):
    report = check_source(open_source(mixed), size=12, threads=2)
    assert not report.ok
    assert {name.removeprefix(f"{mixed}/"): kind for name, (kind, _) in report.bad.items()} == {
        "a/empty.png": "empty", "a/text.jpg": "not-an-image", "b/cut.png": "corrupt", "b/huge.png": "oversized"}  # fmt: skip
    assert report.too_small == {f"{mixed}/b/tiny.png": "9 x 5"}
    assert report.conversions == {"grey": [f"{mixed}/b/grey.png"]}
    assert report.duplicates == [[f"{mixed}/b/001.png", f"{mixed}/b/twin.png"]]
    assert report.classes == {"a": 4, "b": 7}
    assert report.formats == {"PNG": 8, "JPEG": 3}
    assert report.shorter_side[0] == 5
    assert report.jpeg_share == pytest.approx(3 / 11)


def test_the_report_prints_and_is_json(mixed):
    report = check_source(open_source(mixed), size=12)
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is False
    assert data["num_images"] == 15
    out = io.StringIO()
    Console(file=out, width=300).print(report.table())
    for words in ("corrupt", "cut.png", "smaller than 12", "tiny.png (9 x 5)", "001.png", "twin.png", "27%"):
        assert words in out.getvalue()


def test_a_good_set_is_ok(tmp_path, make):
    report = check_source(open_source(make.folder(tmp_path, 5)), size=16)
    assert report.ok
    assert [*report.bad, *report.too_small, *report.conversions, *report.duplicates] == []
    assert check_source(Shapes(size=16, length=100)).classes.keys() == set(Shapes().class_names)
