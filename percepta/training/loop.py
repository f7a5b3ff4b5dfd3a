"""The training loop: steps, and between them what is due: lines of metrics, sample grids, checkpoints, and leaving when asked to."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from percepta import distributed
from percepta.estimate import Batch
from percepta.rng import Rng
from percepta.training import checkpoint as checkpoints
from percepta.training.balance import balance, weights_now
from percepta.training.folder import RunFolder
from percepta.training.log import Meter, Tracker
from percepta.training.method import Method
from percepta.training.precision import memory_mib
from percepta.training.previews import save_preview
from percepta.training.settings import Settings
from percepta.training.shares import Shares, due
from percepta.training.signals import Interrupted, StopFlag
from percepta.training.state import State
from percepta.training.step import Report, take_step

if TYPE_CHECKING:
    from percepta.training.evaluating import Evaluator

MAX_RETRIES = 2
Batches = Callable[[int, int], Iterator[tuple[tuple[int, ...], Batch]]]  # (first step, last step) -> this rank's rows of each step


class NonFinite(RuntimeError):
    """A loss or gradient that is not finite, or a limit that was passed, and what to do about it."""


@dataclass
class Loop:
    """A run in progress."""

    method: Method
    batches: Batches
    state: State
    settings: Settings
    folder: RunFolder
    device: torch.device
    flag: StopFlag
    meter: Meter
    trackers: list[Tracker] = field(default_factory=list)
    evaluator: "Evaluator | None" = None  # rank 0's, where the settings ask for evaluations
    shares_every: int = 0
    returns: dict[int, int] = field(default_factory=dict)  # step of a checkpoint -> how often the run went back to it

    def run(self) -> bool:
        """Train to the end. False if a signal came first: a checkpoint of where it stopped is then on disk."""
        if not (self._preview_if_due() and self._evaluate_if_due()):  # what a run was stopped in, it does now
            return False
        while self.state.step < self.settings.steps:
            for ordinals, batch in self.batches(self.state.step, self.settings.steps):
                rng = Rng(self.settings.seed, ordinals, self.state.step, self.state.stream, self.device)
                batch = batch.to(self.device, **({"memory_format": torch.channels_last} if self.settings.channels_last else {}))
                asked = self.settings.shares_every is not None
                shares = Shares(asked) if due(self.state.step + 1, self.shares_every, self.settings) else None
                report = take_step(self.method, self.state, self.settings, batch, rng, lambda: self.flag.asked is not None, shares)
                rolled_back = self._count(report)
                if rolled_back:
                    break
                balance(self.method, report.shares)
                self._log(report)
                step = self.state.step
                saved = report.stop or step % self.settings.checkpoint_every == 0 or step == self.settings.steps
                if saved:
                    self.save()
                if report.stop and step < self.settings.steps:
                    return False
                if not (self._preview_if_due() and self._evaluate_if_due()):
                    if not saved:
                        self.save()
                    return False
        return True

    def save(self) -> None:
        """A checkpoint of now, on rank 0, and for `--ema power` a snapshot with it."""
        if not self.folder.writes:
            return
        self.meter.pause()
        if self.settings.ema == "power" and self.state.ema is not None and self.state.ema.updates:
            self.state.ema.snapshot(self.folder.root / "snapshots")  # a profile of any length can be had at any checkpoint
        score = None if self.evaluator is None else self.evaluator.score(self.folder.evaluation(self.state.step))
        checkpoints.save(
            self.folder.root, self.state.step, self.state.tensors(), self.state.numbers(), keep_last=self.settings.keep,
            keep_best=int(self.settings.keep_best is not None), score=score,
        )  # fmt: skip
        self.meter.go_on()

    def _count(self, report: Report) -> bool:
        """Advance the counters; True if the run went back to a checkpoint."""
        state, settings = self.state, self.settings
        if report.beyond is not None and report.bad is None:  # whatever --on-nonfinite says: the same would come again
            raise NonFinite(f"step {state.step + 1}: {report.beyond}. {self._last_good()}")
        if report.bad is not None and settings.on_nonfinite == "stop":
            raise NonFinite(
                f"step {state.step + 1}: {report.bad}; this turn moved nothing. {self._last_good()} "
                "Try a lower --lr, --clip, --mixed-precision no, or --on-nonfinite skip"
            )
        state.step += 1
        state.images += settings.batch
        self.meter.tick(state.step)
        if report.bad is None:
            state.bad_in_a_row = 0
            if state.ema is not None:
                state.ema.update(state.images)
                if (
                    settings.ema == "power"
                    and self.folder.writes
                    and (state.step % settings.ema_snapshot_every == 0 or state.step == settings.steps)
                ):
                    state.ema.snapshot(self.folder.root / "snapshots")
            return False
        state.bad_in_a_row += 1
        state.bad_total += 1
        self.meter.note(f"step {state.step}: {report.bad}; skipped ({state.bad_in_a_row} in a row, {state.bad_total} in all)")
        if state.bad_in_a_row < settings.max_bad_steps:
            return False
        self._roll_back(report)
        return True

    def _roll_back(self, report: Report) -> None:
        retries = self.state.retries + 1
        good, _ = checkpoints.latest_good(self.folder.root)
        if good is not None:
            self.returns[good.step] = self.returns.get(good.step, 0) + 1
        if good is None or self.returns[good.step] > MAX_RETRIES:
            raise NonFinite(
                f"step {self.state.step}: {report.bad}; {self.settings.max_bad_steps} steps in a row failed"
                f"{f', after going back {MAX_RETRIES} times' if good else ', and there is no checkpoint to go back to'}. {self._last_good()}"
            )
        at = self.state.step
        self.state.load(good)
        self.state.retries, self.state.bad_in_a_row = retries, 0
        self.folder.reopen()
        self.folder.rewind(self.state.step)
        self.meter.note(f"step {at}: {self.settings.max_bad_steps} steps in a row failed; going on from {good.path} with new noise")

    def _last_good(self) -> str:
        good, _ = checkpoints.latest_good(self.folder.root)
        return f"The last good checkpoint is {good.path}." if good else "There is no checkpoint yet."

    def _log(self, report: Report) -> None:
        state, settings = self.state, self.settings
        values = {**report.losses, **{f"grad_norm/{k}": v for k, v in report.norms.items()}}
        if report.bad is None and all(map(math.isfinite, values.values())):  # fp16: a gradient that overflowed moved nothing
            for name, value in values.items():
                state.window[name] = state.window.get(name, 0.0) + value
                state.window_steps[name] = state.window_steps.get(name, 0) + 1
        if state.step % settings.log_every and state.step != settings.steps:
            return
        means = {k: v / state.window_steps[k] for k, v in state.window.items()}  # over the steps that had it: a critic may rest
        lr = state.schedule.lr_at(state.step if settings.warmup else state.step - 1)
        skipped = {"bad_steps": state.bad_total} if state.bad_total else {}
        shares = {f"share/{name}": value for name, value in report.shares.items()} | weights_now(self.method)
        self.folder.append("metrics.jsonl", {"step": state.step, "images": state.images, **means, **shares, "lr": lr, **skipped})
        memory = memory_mib(self.device)
        self.folder.append(
            "timing.jsonl", {"step": state.step, "images_per_s": round(self.meter.rate, 2), "memory_mib": round(memory, 1)}
        )
        self.meter.show(state.step, {k: v for k, v in means.items() if not k.startswith("grad_norm")}, memory)
        for tracker in self.trackers:
            tracker.log(state.step, {**means, **shares, "lr": lr, "images_per_s": self.meter.rate})
        state.window, state.window_steps = {}, {}

    @property
    def _begun(self) -> bool:
        """Whether there is something to look at: a model that starts from --init is shown as it came, at step 0."""
        return self.state.step > 0 or self.settings.init is not None

    def _preview_if_due(self) -> bool:
        """The grid of this step if it is due and not there; False if a signal came meanwhile (it is then drawn after a resume)."""
        step, settings = self.state.step, self.settings
        if not (settings.sample_every and self._begun and (step % settings.sample_every == 0 or step == settings.steps)):
            return True
        drawn = not self.folder.writes or self.folder.samples(step).exists() or self._preview(step)
        return self._together(drawn)

    def _together(self, done: bool) -> bool:
        """Rank 0 alone draws: the others learn here whether it was interrupted, and leave with it."""
        distributed.wait_for_first()
        return not bool(distributed.summed(torch.tensor([float(not done)], device=self.device)))

    def _evaluate_if_due(self) -> bool:
        """The evaluation of this step if it is due and not there; False if a signal came meanwhile."""
        step, settings = self.state.step, self.settings
        if not (settings.eval_every and self._begun and (step % settings.eval_every == 0 or step == settings.steps)):
            return True
        done = self.evaluator is None or self.folder.evaluation(step).exists() or self._evaluate(self.evaluator, step)
        if done and settings.keep_best is not None:
            self.save()  # with its score: the weights that were judged are those that are kept
        return self._together(done)

    def _evaluate(self, evaluator: "Evaluator", step: int) -> bool:
        from percepta.training.evaluating import keep, told

        self.meter.pause()
        started = time.monotonic()
        try:
            with averaged(self.state), distributed.alone():
                found = evaluator(step, self.state.images, self.flag.check)
        except Interrupted:
            return False
        finally:
            self.meter.go_on()
        keep(self.folder, found)
        self.meter.note(told(found, time.monotonic() - started))
        for tracker in self.trackers:
            tracker.log(step, {f"eval/{name}": value["value"] for name, value in found["metrics"].items()})
        return True

    def _preview(self, step: int) -> bool:
        self.meter.pause()
        try:
            with averaged(self.state):
                save_preview(self.method.product, self.folder.samples(step), self.settings, self.device, self.flag.check, step)
        except Interrupted:
            return False
        finally:
            self.meter.go_on()
        return True


def averaged(state: State):
    """The model with its averaged weights, for the time of the context."""
    from contextlib import nullcontext

    return state.ema.swap() if state.ema is not None and state.ema.updates else nullcontext()


def resume(state: State, folder: Path, writes: bool, settings: Settings, note: Callable[[str], None]) -> bool:
    """Load the newest good checkpoint of a run folder into the state, and say which were damaged. False if there is none."""
    if writes:
        checkpoints.tidy(folder)
    distributed.barrier()
    good, damaged = checkpoints.latest_good(folder)
    for path, reason in damaged:
        note(f"{path.name} is damaged and is not used: {reason}")
    if good is None:
        if damaged:
            raise ValueError(f"no checkpoint in {folder} is whole: start again with another --out")
        return False
    state.load(good)
    distributed.barrier()  # all have read it
    if writes:
        checkpoints.rotate(folder, state.step, settings.keep, int(settings.keep_best is not None))
    note(f"going on from {good.path} (step {state.step})")
    return True
