"""Phases: found by what they are, trained once, waited for; a run that stands on them stops and goes on with them."""

import fcntl
import threading
from dataclasses import replace

import pytest
from processes import small_autoencoder

from percepta.recipes.autoencoder import TrainAutoencoder
from percepta.recipes.ddpm import Ddpm
from percepta.recipes.prior import TrainPrior
from percepta.training import phases
from percepta.training.settings import Settings
from percepta.training.signals import Interrupted

GIVEN = Settings(data="shapes:length=6", size=8, steps=3)


class Fake:
    """Trains nothing, and leaves what a run leaves."""

    def __init__(self, ends=True):
        self.asked, self.notes, self.ends = [], [], ends

    def __call__(self, recipe, settings):
        self.asked.append((recipe, settings))
        if self.ends:
            (settings.out / "model").mkdir(parents=True)
        return self.ends

    def phase(self, root, recipe=None, settings=GIVEN, check=lambda: None):
        return phases.trained(root, self, self.notes.append, check, "what it needs", recipe or Ddpm(), settings)


def test_a_phase_is_trained_once_and_then_found(tmp_path):
    fake = Fake()
    first = fake.phase(tmp_path)
    (_, asked), *more = fake.asked
    assert (asked.out, asked.resume, asked.steps, more) == (first, True, 3, [])
    assert fake.phase(tmp_path) == first and len(fake.asked) == 1
    assert fake.notes == [f"what it needs: percepta train ddpm, 3 steps, in {first}", f"what it needs: found in {first}"]


@pytest.mark.parametrize(
    "changed",
    [{"data": "shapes:length=7"}, {"size": 16}, {"steps": 4}, {"seed": 1}, {"lr": 1e-3}, {"flip": True}, {"batch": 3}],
    ids=lambda c: next(iter(c)),
)
def test_other_data_or_flags_are_another_phase(changed, tmp_path):
    fake = Fake()
    assert fake.phase(tmp_path) != fake.phase(tmp_path, settings=replace(GIVEN, **changed))
    assert len(fake.asked) == 2


def test_knobs_count_and_where_and_how_fast_does_not(tmp_path):
    same = phases.identity(Ddpm(), GIVEN)
    assert phases.identity(Ddpm(schedule="linear"), GIVEN) != same
    moved = replace(GIVEN, out=tmp_path, workers=3, device="cpu", cache=tmp_path, log_every=7, checkpoint_every=9, sample_every=0)
    assert phases.identity(Ddpm(), moved) == same


def test_images_count_by_their_content_wherever_they_lie(tmp_path):
    from PIL import Image

    for name, grey in (("one", 10), ("two", 10), ("three", 11)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (grey, 0, 0)).save(tmp_path / name / "0.png")
    one, two, three = (phases.identity(Ddpm(), replace(GIVEN, data=str(tmp_path / name))) for name in ("one", "two", "three"))
    assert one == two != three


def test_autoencoders_count_by_their_weights_wherever_they_lie(tmp_path):
    coder = small_autoencoder()
    for name in ("a", "moved/a", "b"):
        coder.save_pretrained(tmp_path / name / "vae")

    def of(own):
        return phases.identity(TrainPrior(own=str(tmp_path / own), other=str(tmp_path / "b")), GIVEN)

    assert of("a") == of("moved/a")
    coder.decoder.conv_out.bias.data += 1
    coder.save_pretrained(tmp_path / "a" / "vae")
    assert of("a") != of("moved/a")
    latent = [phases.identity(Ddpm(), replace(GIVEN, vae=str(tmp_path / name))) for name in ("a", "b", "moved/a")]
    assert latent[0] != latent[1] == latent[2]
    with pytest.raises(ValueError, match="--own .*nowhere: does not exist"):
        of("nowhere")


def test_a_phase_that_was_stopped_stops_what_stands_on_it_and_is_gone_on_with(tmp_path):
    fake = Fake(ends=False)
    with pytest.raises(Interrupted, match="while what it needs was trained"):
        fake.phase(tmp_path)
    fake.ends = True
    folder = fake.phase(tmp_path)
    assert [asked.out for _, asked in fake.asked] == [folder, folder]


def held(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = (folder.parent / f".{folder.name}.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_phase_that_another_run_trains_is_waited_for_and_found(tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "PATIENCE", 0.01)
    fake, found = Fake(), []
    folder = tmp_path / f"ddpm-{phases.identity(Ddpm(), GIVEN)}"
    lock = held(folder)
    waiting = threading.Thread(target=lambda: found.append(fake.phase(tmp_path)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and not fake.asked
    assert fake.notes == [f"what it needs: another run trains it in {folder}; this one waits"]
    (folder / "model").mkdir(parents=True)
    lock.close()
    waiting.join(20)
    assert found == [folder] and not fake.asked
    assert fake.notes[1:] == [f"what it needs: found in {folder}"]


def test_a_signal_ends_the_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "PATIENCE", 0.01)
    folder, looks = tmp_path / f"ddpm-{phases.identity(Ddpm(), GIVEN)}", []
    lock = held(folder)

    def check():
        looks.append(1)
        if len(looks) == 3:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        Fake().phase(tmp_path, check=check)
    lock.close()


def test_an_error_in_a_phase_lets_the_next_run_have_it(tmp_path):
    def broken(recipe, settings):
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        phases.trained(tmp_path, broken, print, lambda: None, "it", TrainAutoencoder(), GIVEN)
    fake = Fake()
    assert fake.phase(tmp_path, TrainAutoencoder()).is_dir() and len(fake.asked) == 1
