"""Stream: the rows of a place are the same to the bit whatever the way they come: start, memory, workers, ranks."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from percepta.data import BadImage, Shapes, Stream, open_pairs, open_source
from percepta.data.reader import Store
from percepta.data.stream import _Rows

SIZE = 12


@pytest.fixture
def folder(tmp_path, make):
    return make.folder(tmp_path / "images", 23, ("a", "b", "c"))


def rows(stream, *args, **options):
    """What a run would see, as one flat record."""
    return [(ordinals, batch.x0.clone(), batch.cond, batch.source) for ordinals, batch in stream.batches(*args, **options)]


def equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a[0] == b[0]
        for x, y in zip(a[1:], b[1:], strict=True):
            assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))


def make_stream(source, **options):
    return Stream(source, **{"size": SIZE, "seed": 5, "batch": 8, "flip": True, **options})


def test_batches_are_what_the_core_reads(folder):
    ordinals, batch = next(make_stream(open_source(folder)).batches())
    assert ordinals == tuple(range(8))
    assert batch.x0.shape == (8, 3, SIZE, SIZE)
    assert batch.x0.dtype == torch.float32
    assert -1 <= batch.x0.min() < -0.2 < 0.2 < batch.x0.max() <= 1
    assert batch.cond is not None
    assert batch.cond.dtype == torch.int64
    assert next(make_stream(open_source(folder / "a")).batches())[1].cond is None


@pytest.mark.parametrize("crop", ["center-crop", "random-crop", "jitter", "stretch", "pad"])
def test_memory_and_direct_reading_give_the_same_bits_from_any_start(folder, crop):
    source = open_source(folder)
    straight = rows(make_stream(source, crop=crop, memory_limit_bytes=0), 0, 7)
    assert make_stream(source, crop=crop).way == ("direct" if crop == "random-crop" else "memory")
    equal(straight, rows(make_stream(source, crop=crop), 0, 7))
    equal(straight[4:], rows(make_stream(source, crop=crop), 4, 7))
    stream = make_stream(source, crop=crop)
    rows(stream, 5, 6)
    equal(straight, rows(stream, 0, 7))  # a used stream starts anywhere again


def test_epochs_show_each_image_once_with_flips_of_their_own(folder):
    source = open_source(folder)
    plain = torch.cat([r[1] for r in rows(make_stream(source, batch=23, flip=False), 0, 2)])
    flipped = torch.cat([r[1] for r in rows(make_stream(source, batch=23), 0, 2)])
    assert len({x.numpy().tobytes() for x in plain[:23]}) == 23
    assert {x.numpy().tobytes() for x in plain[:23]} == {x.numpy().tobytes() for x in plain[23:]}
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert all(s or torch.equal(a, b.flip(2)) for s, a, b in zip(same, plain, flipped, strict=True))
    assert 10 < sum(same) < 36


def test_labels_stay_with_their_images(folder):
    source = open_source(folder)
    known = {}
    for k in range(len(source)):
        item = source.read(k)
        known[make_stream(source)._feeds[0].transform.stage(item.image, "")[0].tobytes()] = item.label
    for _, x0, cond, _ in rows(make_stream(source, flip=False), 0, 6):
        for x, label in zip(x0, cond, strict=True):
            assert known[((x + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()] == label


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_tile_each_step(folder, world):
    source = open_source(folder)
    whole = rows(make_stream(source), 0, total=21)
    parts = [rows(make_stream(source, rank=r, world=world), 0, total=21) for r in range(world)]
    assert [len(part) for part in parts] == [3] * world  # nobody leaves early: a collective would hang
    joined = [
        (sum((p[s][0] for p in parts), ()), torch.cat([p[s][1] for p in parts]), torch.cat([p[s][2] for p in parts]), None)
        for s in range(3)
    ]
    equal(whole, joined)
    assert len(whole[-1][0]) == 5
    assert sum(len(p[-1][0]) for p in parts) == 5


def test_a_rank_without_rows_gets_an_empty_batch(folder):
    ordinals, x0, cond, _ = rows(make_stream(open_source(folder), rank=2, world=3), total=2)[0]
    assert (ordinals, x0.shape, cond.shape) == ((), (0, 3, SIZE, SIZE), (0,))


def test_the_stream_ends_where_it_is_told(folder):
    stream = make_stream(open_source(folder))
    assert [len(r[0]) for r in rows(stream, 1, total=20)] == [8, 4]
    assert [r[0][0] for r in rows(stream, 2, 4, total=1000)] == [16, 24]
    assert rows(stream, 3, 3) == rows(stream, 0, total=0) == rows(stream, 9, total=20) == []


@pytest.mark.filterwarnings("ignore:.*skipped bad image")
def test_spawned_workers_give_the_same_bits(tmp_path, make):
    make.folder(tmp_path, 9)
    (tmp_path / "004.png").write_bytes(b"\x89PNG no")
    options = {"crop": "jitter", "on_bad": "skip", "rank": 1, "world": 2}
    ours = rows(make_stream(open_source(tmp_path), **options), 1, 5)
    before = torch.get_rng_state()
    stream = make_stream(open_source(tmp_path), memory_limit_bytes=0, workers=2, **options)
    assert stream.way == "workers"
    equal(ours, rows(stream, 1, 5))
    assert torch.equal(before, torch.get_rng_state())  # a DataLoader draws its seed from the global generator if it may
    assert stream.skipped == {str(tmp_path / "004.png"): stream.skipped[str(tmp_path / "004.png")]}


def test_what_a_worker_runs_returns_a_bad_image_as_a_value(broken):
    stream = make_stream(open_source(broken), memory_limit_bytes=0, workers=1)
    worker = pickle.loads(pickle.dumps(_Rows(stream._feeds)))
    ordinals, error = pickle.loads(pickle.dumps(worker.__getitems__(list(range(12)))))
    assert ordinals == list(range(12))
    assert isinstance(error, BadImage)
    assert error.name.startswith(str(broken))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_changes_nothing(folder):
    source = open_source(folder)
    for workers in (1, 4):
        equal(rows(make_stream(source), 2, 9), rows(make_stream(source, memory_limit_bytes=0, workers=workers), 2, 9))
    (folder / "a" / "000.jpeg").write_bytes(b"")
    with pytest.raises(BadImage, match=r"000\.jpeg: is empty"):
        rows(make_stream(source, memory_limit_bytes=0, workers=1), 0, 3)


@pytest.fixture
def broken(tmp_path, make):
    make.folder(tmp_path, 12)
    (tmp_path / "004.png").write_bytes(b"")
    (tmp_path / "005.png").write_text("hello")
    return tmp_path


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_bad_image_stops_the_run_by_name(broken, limit):
    with pytest.raises(BadImage, match=r"00[45]\.png: is"):
        rows(make_stream(open_source(broken), memory_limit_bytes=limit), 0, 2)


def test_or_is_skipped_counted_and_warned_of_once(broken):
    records = {}
    for limit in (0, 2**30):
        stream = make_stream(open_source(broken), memory_limit_bytes=limit, on_bad="skip")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            records[limit] = rows(stream, 0, 6)
        assert sorted(str(w.message).split(":")[0].rpartition("/")[2] for w in said) == ["004.png", "005.png"]
        assert stream.skipped == {
            str(broken / "004.png"): "is empty (0 bytes)",
            str(broken / "005.png"): stream.skipped[str(broken / "005.png")],
        }
    equal(records[0], records[2**30])


@pytest.mark.filterwarnings("ignore:.*skipped bad image")
@pytest.mark.parametrize("limit", [0, 2**30])
def test_the_next_good_image_stands_in(broken, limit):
    x0 = rows(make_stream(open_source(broken), batch=12, flip=False, on_bad="skip", memory_limit_bytes=limit), 0, 1)[0][1]
    six = make_stream(open_source(broken))._feeds[0].load([6])[0].stage
    shown = ((x0 + 1) * 127.5).round().to(torch.uint8).numpy()
    assert sum(np.array_equal(image, six) for image in shown) == 3
    for k in range(12):
        (broken / f"{k:03d}.{'jpeg' if k % 3 == 0 else 'png'}").write_bytes(b"bad")
    with pytest.raises(ValueError, match="12 images in a row cannot be used"):
        rows(make_stream(open_source(broken), on_bad="skip", memory_limit_bytes=limit), 0, 1)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_conversions_are_counted_once_per_image(tmp_path, make, limit):
    make.folder(tmp_path, 4)
    (tmp_path / "grey.png").write_bytes(make.encoded(make.picture(9)[..., 0]))
    (tmp_path / "small.png").write_bytes(make.encoded(make.picture(8, 6, 6)))
    stream = make_stream(open_source(tmp_path), memory_limit_bytes=limit)
    rows(stream, 0, 9)
    assert stream.changes == {"grey": 1, "upsampled": 1}


def test_pairs_are_independent_draws(tmp_path, make):
    make.folder(tmp_path / "A", 6)
    make.folder(tmp_path / "B", 10, first=100)
    pairs = open_pairs(tmp_path)
    record = rows(make_stream(pairs, batch=6, flip=False), 0, 5)
    equal(record, rows(make_stream(pairs, batch=6, flip=False, memory_limit_bytes=0), 0, 5))
    assert all(x0.shape == source.shape and cond is None for _, x0, cond, source in record)
    a, b = (torch.cat([r[k] for r in record]) for k in (3, 1))
    for images, n in ((a, 6), (b, 10)):
        assert len({x.numpy().tobytes() for x in images}) == n
        assert len({x.numpy().tobytes() for x in images[:n]}) == n  # each in epochs of its own
    partners = {}
    for x, y in zip(a, b, strict=True):
        partners.setdefault(x.numpy().tobytes(), set()).add(y.numpy().tobytes())
    assert min(map(len, partners.values())) > 1  # another partner in another epoch: never by name
    assert next(make_stream(pairs, crop="random-crop").batches())[1].source.shape == (8, 3, SIZE, SIZE)


def test_each_image_is_decoded_once_in_memory(folder, monkeypatch):
    source = open_source(folder)
    stream, read, decoded = make_stream(source), type(source).read, []
    monkeypatch.setattr(type(source), "read", lambda self, k: decoded.append(k) or read(self, k))
    rows(stream, 0, 9)
    assert sorted(decoded) == list(range(23))
    assert stream._stores[0].pool is None  # no thread is left when all is there
    assert Store.bytes_of(23, stream._feeds[0].transform) == 23 * (3 * SIZE * SIZE + 9)


def test_shapes_stream_without_files():
    source = Shapes(size=16, length=100)
    record = rows(Stream(source, 16, 0, 32), 0, 3)
    equal(record, rows(Stream(source, 16, 0, 32, memory_limit_bytes=0), 0, 3))


def test_wrong_options_say_what_to_do(folder):
    source = open_source(folder)
    for options, words in (
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, r"rank must lie in 0 \.\. 1, got 2"),
        ({"on_bad": "ignore"}, "on_bad must be error or skip"),
        ({"crop": "middle"}, "unknown crop 'middle'; known: center-crop"),
        ({"device": "meta", "memory_limit_bytes": 10}, "cannot be kept on meta"),
    ):
        with pytest.raises(ValueError, match=words):
            make_stream(source, **options)
    with pytest.raises(ValueError, match="must not be negative"):
        next(make_stream(source).batches(-1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("crop", ["center-crop", "jitter"])
def test_a_set_on_the_gpu_gives_the_same_bits(folder, crop):
    source = open_source(folder)
    device = [(o, x0.cpu(), cond.cpu(), None) for o, x0, cond, _ in rows(make_stream(source, crop=crop, device="cuda"), 0, 7)]
    equal(rows(make_stream(source, crop=crop, pin=True), 0, 7), device)
