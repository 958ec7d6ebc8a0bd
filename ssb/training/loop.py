"""fit(config) → Run: the one training loop, its checkpoints, and the files of a finished run."""

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, load_model, save_model

from ssb import files, losses, machine, processes
from ssb.config import Config, ConfigError
from ssb.corpora.load import load_corpus
from ssb.machine import provenance, threads
from ssb.metrics import retrieval
from ssb.model import DECODER, SupportSetModel
from ssb.training.collapse import Watch, at_chance
from ssb.training.device import fetched, tf32
from ssb.training.identity import identity
from ssb.training.protocol import TrainingCorpus, training_items
from ssb.training.runs import (
    IDENTITY,
    NOTE,
    Collapsed,
    Run,
    TrainingError,
    build,
    check,
    check_sound,
    data_for,
    decoder_run,
    finished_run,
    measured,
)

CHECKPOINT_SECONDS = 30.0  # between two checkpoints, the work that a killed run loses; 0: one after every step
SAVINGS = 20  # or so many times what the last checkpoint took, where that is longer: 5 % of the time of the run at most
KEPT = ("sums", "log", "trace", "memory", "best", "seconds")  # of Training, in a checkpoint
LOST = re.compile("[Cc]onnection|peer|socket|Broken pipe")  # in the words of gloo and NCCL
# of each step: contrastive loss, deviation of similarities, norm clipped with the heads, `losses.share` at the epoch's
# first step, captioning loss (0 without)
TRACE = ("contrast", "spread", "gradient", "share", "captioning")


def begin_with(model: SupportSetModel, run: Run):
    """Load the weights of a finished run into the model; the statistics of the features stay the model's own. The
    decoder and the EMCL layer may be in one of the two only; any other difference is a ConfigError."""
    shift, scale = model.shift.clone(), model.scale.clone()
    hint = "take the same preset, and streams that are as wide in sum"
    try:
        missing, further = load_model(model, run.folder / "model.safetensors", strict=False)
    except RuntimeError as error:  # torch's, a line for each weight of another shape
        raise ConfigError(f"pretrained = {run.name!r}: {_mismatch(error)}; {hint}") from None
    for difference, names in (("that run has no", missing), ("this one has no", further)):
        if names := [name for name in names if not name.startswith((*DECODER, "emcl."))]:
            raise ConfigError(f"pretrained = {run.name!r}: {difference} {names[0]}; {hint}")
    model.shift.copy_(shift)
    model.scale.copy_(scale)


def _mismatch(error: RuntimeError) -> str:
    """The first weight of another shape."""
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return (lines or [str(error)])[0]


def decode_with(model: SupportSetModel, run: Run):
    """Load the decoder of a finished run into the model, and the layer before it where the features are as wide."""
    weights, own = load_file(run.folder / "model.safetensors"), model.state_dict()
    names = [name for name in weights if name.startswith(DECODER)]
    if weights["to_decoder.0.weight"].shape != own["to_decoder.0.weight"].shape:
        names = [name for name in names if name.startswith("decoder.")]
    try:
        model.load_state_dict({name: weights[name] for name in names}, strict=False)  # of tied weights the file has one
    except RuntimeError as error:  # torch's, a line for each weight of another shape
        raise ConfigError(f"pretrained_decoder = {run.name!r}: {_mismatch(error)}; take the same decoder") from None


def fit(config: Config, corpus: TrainingCorpus | None = None, quiet: bool = False) -> Run:
    """Train one run, or return it if it is finished; a run that was killed continues from its checkpoint.

    corpus: None: that of the Config. quiet: print nothing but warnings. The same Config on the same corpus and CPU
    gives the same bits, whatever else the process does. Of several studies one at a time trains a run; the others wait
    for it and read it. Under `accelerate launch` its processes train the run together (see `ssb.processes`).
    ConfigError, CorpusError and ModelError for wrong input; Collapsed and TrainingError for a run that fails.
    """
    config = check(config.effective())
    processes.join()
    corpus = corpus or load_corpus(config.corpus, **config.corpus_options)
    parts = identity(config, corpus)
    folder = files.runs() / files.digest(*parts)

    def waiting(holder: str):
        print(f"run {folder.name} is being trained by {holder}; waiting for it", flush=True)

    if not processes.agreed(ended(folder)):
        first = processes.index() == 0
        with _explained(folder), files.lock(folder, waiting) if first else contextlib.nullcontext():
            if not processes.agreed(ended(folder)):
                with _explained(folder, config), threads(config.threads), torch.random.fork_rng():
                    torch.manual_seed(config.seed)
                    Training(config, corpus, folder, quiet or not first, parts).run()
            processes.agreed(True)  # the first has written the run
    return read_back(folder)


def read_back(folder: Path) -> Run:
    """A run that has ended; checkpoints that a power cut has left beside it are removed. TrainingError where it is
    damaged."""
    run = Run(folder)
    shutil.rmtree(partial(folder), ignore_errors=True)
    return run


def ended(folder: Path) -> bool:
    """Has a run been trained to its end? Collapsed where it has, and has no result. A folder that lacks the file which
    says how it ended does not count, and is replaced."""
    kept = folder.with_name(folder.name + ".collapsed")
    if (kept / "why.txt").exists():
        check_sound(kept)
        shutil.rmtree(partial(folder), ignore_errors=True)
        raise Collapsed((kept / "why.txt").read_text(), kept)
    return (folder / "metrics.json").exists()


def partial(folder: Path) -> Path:
    """Where a run that is not finished keeps its checkpoints."""
    return folder.with_name(folder.name + ".part")


@contextlib.contextmanager
def _explained(folder: Path, config: Config | None = None):
    """TrainingError where memory or the disk is full, or the disk refuses: what happened, and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # RuntimeError: torch's on a CPU
        cause = str(error).strip().partition("\n")[0]
        if processes.count() > 1 and LOST.search(cause):
            raise TrainingError(
                f"run {folder.name} stopped: another process of it has ended, and says why; the same command continues "
                "from the last checkpoint"
            ) from error
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in cause:
            raise
        less = f" = {config.batch}" if config else ""
        raise TrainingError(
            f"run {folder.name} does not fit into the memory ({cause or type(error).__name__}): take fewer runs at the "
            f"same time (jobs), a smaller batch{less} or a smaller model; the same command continues from what is there"
        ) from error
    except OSError as error:
        if not (explained := files.explained(error, Path(str(error.filename or folder.parent)))):
            raise
        raise TrainingError(f"run {folder.name} stopped: {explained}") from error


class Training:
    """The state of a run while it trains. folder: of the run, written when it is finished; its checkpoints are in
    <folder>.part/ until then. parts: the `identity` that its name is the digest of."""

    def __init__(self, config: Config, corpus: TrainingCorpus, folder: Path, quiet: bool, parts: Sequence[str] = ()):
        self.config, self.folder, self.quiet, self.parts = config, folder, quiet, list(parts)
        self.partial = partial(folder)
        # Accelerate keeps one precision for the whole process, and refuses another; its public API cannot change it.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=config.precision)
        device = self.accelerator.device
        if config.precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision = 'fp16' needs a GPU; on a CPU take 'no' or 'bf16'")
        if processes.count() > min(config.batch, len(training_items(config, corpus))):
            raise ConfigError(f"{processes.count()} processes for batch = {config.batch}: each needs a row of a batch")
        self.first = processes.index() == 0  # it writes what the run writes
        self.data = data_for(config, corpus, device)
        if not quiet:
            for line in self.data.cut:
                print(line, flush=True)
        model = build(self.data)
        if config.pretrained:
            begin_with(model, finished_run(config.pretrained))
        if config.pretrained_decoder:
            decode_with(model, decoder_run(config))
        rates = (config.lr, config.text_lr, config.decoder_lr)
        parts = (model.head_parameters(), model.encoder_parameters(), model.decoder_parameters())
        groups = [{"params": part, "initial_lr": lr} for part, lr in zip(parts, rates)]
        optimizer = torch.optim.Adam(groups, fused=True)
        if config.weight_decay:
            heads, *others = groups
            single, several = ([p for p in heads["params"] if (p.ndim > 1) == more] for more in (False, True))
            decayed = {"params": several, "weight_decay": config.weight_decay}
            groups = [heads | {"params": single}, heads | decayed, *others]  # biases and norms do not decay
            optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # gradients: processes.sum_gradients
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        torch.manual_seed(config.seed)  # dropout of a seed is the same whatever was built before
        self.steps = len(self.data.order(0))  # of an epoch; with epoch = 'pairs' some orders fill one batch more
        self.epoch = self.step = 0  # the next step to take
        self.watch = Watch(model.contrast)
        self.sums: dict[str, float] = {}
        self.log: list[dict] = []
        self.trace: list[tuple[float, ...]] = []  # TRACE of each step
        self.share = torch.zeros((), device=device)  # of captioning, at the last step that measured it
        self.memory: tuple[torch.Tensor, ...] = ()  # clips (P,) and c_v (P, d) of earlier batches
        self.best: dict = {"score": -math.inf, "epoch": -1, "weights": {}}
        self.seconds = 0.0
        self.saving = 0.0  # seconds that the last checkpoint took
        self.unread: list[tuple] = []  # the numbers of the last steps, where they are on their way from a GPU

    def run(self):
        """Train from the first step, or from the checkpoint, to the finished run; Collapsed or TrainingError where that
        fails."""
        self.resume()
        self.start = self.saved = time.perf_counter()
        for self.epoch in range(self.epoch, self.config.epochs):
            order = self.data.order(self.epoch)
            self.steps = len(order)
            for self.step in range(self.step, self.steps):
                if self.step + 1 < self.steps:
                    self.data.prefetch(order[self.step + 1])
                self.take_step(order[self.step])
                if self.first and time.perf_counter() - self.saved > self.interval:
                    self.save()
            self.step = 0
            if (self.epoch + 1) % self.config.validate_every == 0 or self.epoch + 1 == self.config.epochs:
                self.validate()
        self.finish()

    @property
    def raw(self) -> SupportSetModel:
        """The model without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before a resumption included."""
        return self.seconds + time.perf_counter() - self.start

    @property
    def interval(self) -> float:
        """Seconds from one checkpoint to the next."""
        return CHECKPOINT_SECONDS and max(CHECKPOINT_SECONDS, SAVINGS * self.saving)

    def lr_factor(self, progress: float) -> float:
        """By which every learning rate is multiplied. progress: share of the steps done."""
        if self.config.lr_schedule == "decay":
            return 0.95**self.epoch
        return (1 + math.cos(math.pi * progress)) / 2 if self.config.lr_schedule == "cosine" else 1.0

    def take_step(self, captions: np.ndarray):
        """One optimizer step on a batch, a row of `Data.order`; Collapsed after too many steps at the floor,
        TrainingError where the loss has no gradient or is not finite. A GPU is not waited for: there the first and the
        last are found a step later."""
        config = self.config
        progress = (self.epoch + self.step / self.steps) / config.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.lr_factor(progress)
        if not self.model.training:
            self.model.train()
        batch = self.data.batch(captions, self.memory)
        with tf32(self.accelerator.device):
            terms = self.model(batch, progress, with_share=self.step == 0)
            if not terms["loss"].requires_grad:
                raise TrainingError(f"contrast = {config.contrast!r} {losses.WITHOUT_GRADIENT}")
            self.accelerator.backward(terms["loss"])
        terms["loss"] = processes.total(terms["loss"].detach())
        *heads, encoder, decoder = (group["params"] for group in self.optimizer.param_groups)
        heads = sum(heads, [])
        processes.sum_gradients([*heads, *encoder, *decoder])
        self.accelerator.unscale_gradients()
        parts = [heads + encoder, decoder] if config.clip_apart else [heads + encoder + decoder]
        norms = [torch.nn.utils.clip_grad_norm_(weights, config.clip) for weights in parts]
        self.optimizer.step()
        self.optimizer.zero_grad()
        spread = terms.pop("similarity").std()
        self.remember(batch.clips, terms.pop("c_v"))
        self.share = terms.pop("share", self.share)
        numbers = fetched(torch.stack([spread, norms[0], self.share, *terms.values()]))
        self.unread.append((self.epoch + 1, [*terms], numbers))
        self.read(keep=1 if machine.on_gpu(self.accelerator.device) else 0)

    def read(self, keep: int = 0):
        """Log the numbers of the steps taken, and watch them. keep: how many of the last steps wait for a later call,
        because a GPU may still be computing them."""
        while len(self.unread) > keep:
            epoch, names, numbers = self.unread.pop(0)
            spread, norm, share, *values = numbers()
            terms = dict(zip(names, values)) | {"steps": 1.0}
            if not math.isfinite(terms["loss"]):
                raise TrainingError(f"loss is {terms['loss']} in epoch {epoch}; lower lr = {self.config.lr}")
            self.trace.append((terms["contrast"], spread, norm, share, terms.get("captioning", 0.0)))
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            if why := self.watch.after_step(terms["contrast"], spread):
                self.collapse(f"in epoch {epoch}: {why}")

    def remember(self, clips: torch.Tensor, c_v: torch.Tensor):
        """First in, first out: as many past clips as the support set is larger than the batch."""
        room = (self.config.support_set or 0) - len(clips)
        if room > 0:
            new = clips, c_v
            self.memory = tuple(torch.cat(parts)[-room:] for parts in zip(self.memory or [x[:0] for x in new], new))

    def collapse(self, how: str):
        """End the run: raise Collapsed, and keep the trace, the settings and the reason. how: when and by what sign."""
        why = f"collapsed: {how}. {self.watch.contrast.advice()} No number of this run is reported."
        kept = self.folder.with_name(self.folder.name + ".collapsed")
        if self.first:
            with files.written(kept, sealed=True) as draft:
                draft.mkdir()
                self.write_record(draft)
                (draft / "why.txt").write_text(why)
            shutil.rmtree(self.partial, ignore_errors=True)
        processes.agreed(True)
        raise Collapsed(why, kept)

    def write_record(self, folder: Path):
        """What the run is, and the trace of its steps."""
        (folder / IDENTITY).write_text(json.dumps(self.parts, indent=1))
        (folder / "config.json").write_text(self.config.model_dump_json(indent=1))
        trace = pd.DataFrame([dict(zip(TRACE, row)) for row in self.trace], columns=TRACE)
        trace.to_csv(folder / "trace.csv", index_label="step", float_format="%.6g")

    def validate(self):
        """Log the epoch, and keep its weights if they are the best so far on the validation clips by R@1 + R@5 + R@10,
        text to video."""
        self.read()
        metrics = retrieval.metrics(self.data.ranks(self.raw, "val", every=False)["t2v"])
        score = metrics["R@1"] + metrics["R@5"] + metrics["R@10"]
        steps = self.sums.pop("steps")
        means = {name: total / steps for name, total in self.sums.items()}
        self.sums = {}
        if "captioning" in means:
            means["ratio"] = self.config.ratio(means["captioning"], means["contrast"])
        self.log.append({"epoch": self.epoch + 1, **means, **{f"val {k}": v for k, v in metrics.items()}})
        if score > self.best["score"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.raw.state_dict().items()}
            self.best = {"score": score, "epoch": self.epoch + 1, "weights": weights}
        terms = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        if not self.quiet:
            epoch = f"epoch {self.epoch + 1:>3}/{self.config.epochs}"
            print(f"{epoch}  {terms}  val R@1 {metrics['R@1']:.1f}  {self.elapsed:.0f} s", flush=True)

    def save(self):
        """Write a checkpoint, from which a resumed run takes the same next step."""
        self.read()
        self.seconds, begun = self.elapsed, time.perf_counter()
        self.start = begun
        state = {
            "model": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),  # [] without a GPU
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            "stuck": self.watch.stuck,
            **{name: getattr(self, name) for name in KEPT},
            "next": (self.epoch, self.step + 1),
        }
        with files.written(self.partial / "checkpoint.pt") as draft:
            torch.save(state, draft)
        earlier = self.checkpoints()
        written = self.partial / "checkpoint.pt"
        os.replace(written, written.with_stem(f"checkpoint-{files.sha256(written)[:12]}"))
        for path in earlier[1:]:  # the last one stays, in case that this one is damaged
            path.unlink(missing_ok=True)
        self.saved = time.perf_counter()
        self.saving = self.saved - begun

    def checkpoints(self) -> list[Path]:
        """The checkpoints, named by their content, the newest first."""
        return sorted(self.partial.glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def resume(self):
        """Load the newest undamaged checkpoint, if any; TrainingError where it does not fit this run."""
        sums = []
        for path in self.checkpoints() if self.first else ():
            sums.append(files.sha256(path)[:12])
            if path.stem == f"checkpoint-{sums[-1]}":
                break
            print(f"skipped {files.short(path)}, which is damaged", flush=True)
            path.unlink()
            sums.pop()
        if newest := processes.agreed(int(sums[0], 16) if sums else 0):
            self.load(self.partial / f"checkpoint-{newest:012x}.pt")

    def load(self, path: Path):
        """Set the state of training to that of a checkpoint; TrainingError where this is not possible."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.raw.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            torch.cuda.set_rng_state_all(state["cuda"])
            if state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.watch.stuck = state["stuck"]
            for name in KEPT:
                setattr(self, name, state[name])
            self.memory = tuple(x.to(self.accelerator.device) for x in self.memory)
            self.share.fill_(dict(zip(TRACE, self.trace[-1])).get("share", math.nan))
            self.epoch, self.step = state["next"]
        except Exception as error:  # torch raises nearly anything for a file that is no checkpoint
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"{path} cannot be read ({reason}); delete it to train this run from the start"
            ) from None
        if not self.quiet:
            print(f"continues from its checkpoint, epoch {self.epoch + 1}", flush=True)

    def finish(self):
        """Rank the clips of `Config.evaluate` by the best epoch's weights, write the run's folder, delete the
        checkpoint."""
        config, note = self.config, at_chance(self.best["score"], len(self.data.pairs("val")))
        if why := self.watch.at_the_end(self.raw, self.data, note):
            self.collapse(why)
        self.raw.load_state_dict(self.best["weights"])
        ranks = self.data.ranks(self.raw, config.evaluate)
        metrics = measured(ranks) | {"best_epoch": self.best["epoch"]}
        if not self.first:
            return
        with files.written(self.folder, sealed=True) as draft:
            draft.mkdir()
            # on a GPU, unlike on a CPU, the weights of a GRU are parts of one block, which safetensors refuses
            save_model(self.raw.cpu(), str(draft / "model.safetensors"))
            np.savez(draft / "ranks.npz", **ranks)
            pd.DataFrame(self.log).to_csv(draft / "log.csv", index=False)
            self.write_record(draft)
            origin = {"corpus_sha": self.data.corpus.fingerprint, **provenance(), "seconds": round(self.elapsed, 1)}
            (draft / "provenance.json").write_text(json.dumps(origin, indent=1))
            if note:
                (draft / NOTE).write_text(note, encoding="utf-8")
            (draft / "metrics.json").write_text(json.dumps(metrics, indent=1))
        if note:
            print(f"warning: run {self.folder.name}, {config.objective}, seed {config.seed}: {note}", flush=True)
        shutil.rmtree(self.partial, ignore_errors=True)
