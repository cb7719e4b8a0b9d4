"""`mtl-re adapt`: masked-language modelling on unlabelled text, before an encoder is trained on labelled rows of it.

Gururangan et al. 2020 (arXiv 2004.10964): on the task's own sentences (TAPT) or on any text of its kind (DAPT). Leaves
`RUN/model`, a Hugging Face directory with the masked-LM head, which `mtl-re train` takes as `model.encoder`. The loop
is `training.loop`'s: the order of blocks and their masks are pure functions, a step's loss is divided
by the masked tokens of the whole step over all processes, and the model with the lowest held-out loss is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtl_re.adapt.setup import (
    AdaptRun,
    AdaptState,
    prepare_adaptation,
    resume_adaptation,
    write_adaptation_records,
)
from mtl_re.config import AdaptConfig
from mtl_re.errors import MtlReError
from mtl_re.features.collate import epoch_steps, pass_cost, sorted_batches, step_parts
from mtl_re.files import write_json
from mtl_re.model.device import autocast
from mtl_re.training.loop import MAX_SKIPPED, Clock, Loop, epoch_reached, show
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.optimizer import rate_factor, set_rates
from mtl_re.training.processes import on_main
from mtl_re.training.resume import save_run
from mtl_re.training.run import fit_and_conclude, write_network


def adapt(config: AdaptConfig, name: str = "adapt") -> Path:
    """Run an adaptation and return its directory.

    Args:
        config: Validated options.
        name: Of the config, for the default run directory.

    Raises:
        MtlReError: Anything at fault in options, text, encoder or directory, or a loss that is not finite.
    """
    with ExitStack() as resources:
        run = prepare_adaptation(config, name, resources)
        state, log = resume_adaptation(run)
        on_main(run.accelerator, lambda: write_adaptation_records(run))
        return fit_and_conclude(
            run, state, AdaptLoop(run, state, log).fit, lambda: on_main(run.accelerator, lambda: _conclude(run, state))
        )


class AdaptLoop(Loop):
    """`Loop` over blocks of text."""

    def __init__(self, run: AdaptRun, state: AdaptState, log: MetricsLog | None) -> None:
        self.run, self.state, self.log = run, state, log
        options = run.config
        super().__init__(run, state, len(run.train.blocks), options.tracking.log_every, options.train.evaluate_every)

    def steps(self) -> Iterator[None]:
        state, seed = self.state, self.run.config.train.seed
        for rows in epoch_steps(len(self.run.train.blocks), state.step_rows, seed, state.epoch)[state.position :]:
            _step(self.run, state, rows, self.total)
            yield

    def start(self) -> None:
        if self.state.evaluated_step < 0:
            self.evaluate()

    def write_line(self) -> None:
        if self.state.tokens:
            _write_line(self.run, self.state, self.log, self.clock, self.bar)

    def evaluate(self) -> None:
        _evaluate(self.run, self.state, self.log)

    def save(self) -> None:
        save_run(self.run, self.state, {}, {})

    def new_clock(self) -> Clock:
        return Clock(tokens=self.state.tokens)


def _step(run: AdaptRun, state: AdaptState, rows: np.ndarray, total: int) -> None:
    """One optimizer step: forward and backward over this process's passes, clip, update."""
    accelerator, lengths = run.accelerator, run.train.blocks.lengths[rows]
    cost = pass_cost(accelerator.device.type)
    parts = step_parts(rows, lengths, accelerator.num_processes, run.config.train.batch_size, cost)
    own = parts[accelerator.process_index]
    masked = run.train.masked_tokens(rows, state.epoch)  # of the whole step: every process knows all masks
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(own):
        with nullcontext() if number == len(own) - 1 else accelerator.no_sync(run.model):
            batch = {name: tensor.to(accelerator.device) for name, tensor in run.train.batch(part, state.epoch).items()}
            loss = run.model(**batch)
            accelerator.backward(loss / max(masked, 1) * accelerator.num_processes)  # DDP averages, we want the sum
        loss_sum += loss.detach()
    norm = accelerator.clip_grad_norm_(run.plain_model.parameters(), run.config.optim.max_grad_norm or math.inf)
    finite = bool(torch.isfinite(norm))
    if not finite and (accelerator.scaler is None or state.skipped_in_a_row >= MAX_SKIPPED):
        raise MtlReError(
            f"step {state.step + 1}: the loss or its gradient is not finite; lower optim.lr, or look at the text"
        )
    set_rates(run.optimizer, rate_factor(state.step, total, run.config.optim))
    run.optimizer.step()
    run.optimizer.zero_grad()
    state.step += 1
    state.skipped += not finite  # fp16: the scaler has left this step out and halves its scale
    state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1
    if finite:
        state.loss += float(accelerator.reduce(loss_sum, "sum"))
        state.hidden += masked
    state.tokens += int(lengths.sum())


def _evaluate(run: AdaptRun, state: AdaptState, log: MetricsLog | None) -> None:
    """Held-out loss and perplexity, under the same masks each time; the model with the lowest loss is kept."""
    state.evaluated_step = state.step
    if not len(run.held_out.blocks):
        if state.step:
            on_main(run.accelerator, lambda: _keep_model(run))
        return
    loss = held_out_loss(run)
    if state.first is None:
        state.first = loss
    better = state.best is None or not math.isfinite(state.best) or loss < state.best
    if better:
        state.best, state.best_step = loss, state.step
    line = {"kind": "valid", "step": state.step, "loss": loss, "perplexity": perplexity(loss), "best": better}
    if log is not None:
        log.write(line)
    run.trackers.log({"valid": {"loss": loss, "perplexity": perplexity(loss)}}, state.step)
    run.say(f"step {state.step}: held-out loss {loss:.4f}, perplexity {perplexity(loss):.2f}")
    if better:
        on_main(run.accelerator, lambda: _keep_model(run))


def held_out_loss(run: AdaptRun) -> float:
    """Return the mean loss over the masked tokens of the held-out texts; all processes share the work."""
    accelerator, device = run.accelerator, run.accelerator.device
    exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(2, device=device, dtype=exact)
    batches = sorted_batches(run.held_out.blocks.lengths, run.config.train.batch_size)
    run.plain_model.eval()
    with torch.no_grad(), autocast(device, run.precision):
        for rows in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = {name: tensor.to(device) for name, tensor in run.held_out.batch(rows, 0).items()}
            sums += torch.stack([run.plain_model(**batch).to(exact), (batch["targets"] >= 0).sum().to(exact)])
    run.plain_model.train()
    total, masked = accelerator.reduce(sums, "sum").tolist()
    return float(total / max(masked, 1))


def perplexity(loss: float) -> float:
    """Return exp of a mean loss, at most 1e9."""
    return math.exp(min(loss, math.log(1e9)))


def _write_line(run: AdaptRun, state: AdaptState, log: MetricsLog | None, clock: Clock, bar: Any) -> None:
    """Write one line of metrics.jsonl; the sums begin anew."""
    _, tokens_per_s = clock.rates(0, state.tokens)
    line = {
        "kind": "train",
        "step": state.step,
        "epoch": epoch_reached(state, len(run.train.blocks)),
        "loss": state.loss / max(state.hidden, 1),
        "hidden_tokens": state.hidden,
        "lr": max(group["lr"] for group in run.optimizer.param_groups),
        "skipped_steps": state.skipped,
        "tokens_per_s": round(tokens_per_s, 1),
    }
    if log is not None:
        log.write(line)
        show(bar, {"loss": line["loss"]}, tokens_per_s)
    run.trackers.log(line, state.step)
    state.loss, state.hidden, state.tokens = 0.0, 0, 0


def _keep_model(run: AdaptRun) -> None:
    """Write the network with its masked-LM head, and the tokenizer, in `model/`."""
    write_network(run.run_dir, "encoder", run.plain_model.network, run.tokenizer)


def _conclude(run: AdaptRun, state: AdaptState) -> dict[str, Any]:
    """Write valid_metrics.json, the held-out loss and perplexity before and after; the trackers get no scores."""
    if state.first is not None and state.best is not None:
        before, after = ({"loss": loss, "perplexity": perplexity(loss)} for loss in (state.first, state.best))
        write_json(run.run_dir / "valid_metrics.json", {"before": before, "best": after, "step": state.best_step})
    return {}
