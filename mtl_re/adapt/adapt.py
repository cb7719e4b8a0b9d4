"""`mtl-re adapt`: masked-language modelling on unlabelled text, before an encoder is trained on labelled rows of it.

Gururangan et al. 2020 (arXiv 2004.10964): on the task's own sentences (TAPT) or on any text of its kind (DAPT). Leaves
`RUN/model`, a Hugging Face directory with the masked-LM head, which `mtl-re train` takes as `model.encoder`. The loop
is the training loop's smaller sister: the order of blocks and their masks are pure functions, a step's loss is divided
by the hidden tokens of the whole step over all processes, and the model with the lowest held-out loss is kept.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mtl_re.adapt.setup import AdaptRun, AdaptState, prepare, resume, save_state, write_records
from mtl_re.config import AdaptConfig
from mtl_re.errors import MtlReError
from mtl_re.features.collate import epoch_steps, pass_cost, sorted_batches, step_parts
from mtl_re.files import write_json
from mtl_re.model.cpu import allocator_hint
from mtl_re.model.device import autocast
from mtl_re.model.network import parameter_count
from mtl_re.training import loop
from mtl_re.training.loop import MAX_SKIPPED, agreed_to_stop, due, leave, peers_named, stop_signals
from mtl_re.training.optimizer import rate_factor, set_rates
from mtl_re.training.processes import on_main
from mtl_re.training.tracking import MetricsLog


def adapt(config: AdaptConfig, name: str = "adapt") -> Path:
    """Run an adaptation and return its directory.

    Args:
        config: validated options.
        name: of the config, for the default run directory.

    Raises:
        MtlReError: anything at fault in options, text, encoder or directory, or a loss that is not finite.
    """
    with ExitStack() as resources:
        run = prepare(config, name, resources)
        state, log = resume(run)
        on_main(run.accelerator, lambda: write_records(run))
        _announce(run, state)
        with peers_named(run):
            if finished := _fit(run, state, log):
                on_main(run.accelerator, lambda: _conclude(run, state))
            run.accelerator.wait_for_everyone()
        run.trackers.finish({}, state.step, finished)
        leave(run)
        return run.run_dir


def _fit(run: AdaptRun, state: AdaptState, log: MetricsLog | None) -> bool:
    """All remaining steps; False if a signal ended them early (a checkpoint of that moment stands)."""
    options = run.config.train
    per_epoch = math.ceil(len(run.train.blocks) / state.step_rows)
    total = per_epoch * options.epochs if options.max_steps is None else options.max_steps
    bar = tqdm(total=total, initial=state.step, unit="step", disable=not run.main, dynamic_ncols=True, smoothing=0.05)
    with stop_signals() as stopped, bar:
        if state.evaluated_step < 0:
            _evaluate(run, state, log)
        began = time.perf_counter()
        while state.step < total:
            bar.set_description(f"epoch {state.epoch + 1}/{math.ceil(total / per_epoch)}")
            rows = epoch_steps(len(run.train.blocks), state.step_rows, options.seed, state.epoch)[state.position]
            _step(run, state, rows, total)
            state.position += 1
            if finished := state.position == per_epoch:
                state.epoch, state.position = state.epoch + 1, 0
            bar.update(1)
            if state.step % run.config.tracking.log_every == 0 or state.step == total:
                _write_line(run, state, log, time.perf_counter() - began, bar)
                began = time.perf_counter()
            if due(options.evaluate_every, state.step, finished):
                _evaluate(run, state, log)
            if due(options.save_every, state.step, finished):
                save_state(run, state)
            if agreed_to_stop(run, state, stopped):
                save_state(run, state)
                _say(run, f"stopped by a signal after step {state.step}; go on with --train.resume auto")
                return False
    if state.evaluated_step != state.step:
        _evaluate(run, state, log)
    save_state(run, state)
    return True


def _step(run: AdaptRun, state: AdaptState, rows: np.ndarray, total: int) -> None:
    """One optimizer step: forward and backward over this process's passes, clip, update."""
    accelerator, lengths = run.accelerator, run.train.blocks.lengths[rows]
    cost = pass_cost(accelerator.device.type)
    parts = step_parts(rows, lengths, accelerator.num_processes, run.config.train.batch_size, cost)
    own = parts[accelerator.process_index]
    hidden = run.train.hidden(rows, state.epoch)  # of the whole step: every process knows all masks
    loss_sum = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(own):
        with nullcontext() if number == len(own) - 1 else accelerator.no_sync(run.model):
            batch = {name: tensor.to(accelerator.device) for name, tensor in run.train.batch(part, state.epoch).items()}
            loss = run.model(**batch)
            accelerator.backward(loss / max(hidden, 1) * accelerator.num_processes)  # DDP averages, we want the sum
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
    state.loss += float(accelerator.reduce(loss_sum, "sum"))
    state.hidden += hidden
    state.tokens += int(lengths.sum())


def _evaluate(run: AdaptRun, state: AdaptState, log: MetricsLog | None) -> None:
    """Held-out loss and perplexity, under the same masks each time; the model with the lowest loss is kept."""
    state.evaluated_step = state.step
    if not len(run.held_out.blocks):
        if state.step:
            on_main(run.accelerator, lambda: _write_model(run))
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
    _say(run, f"step {state.step}: held-out loss {loss:.4f}, perplexity {perplexity(loss):.2f}")
    if better:
        on_main(run.accelerator, lambda: _write_model(run))


def held_out_loss(run: AdaptRun) -> float:
    """Mean loss over the hidden tokens of the held-out texts; all processes share the work."""
    accelerator, device = run.accelerator, run.accelerator.device
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    batches = sorted_batches(run.held_out.blocks.lengths, run.config.train.batch_size)
    run.plain_model.eval()
    with torch.no_grad(), autocast(device, run.precision):
        for rows in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = {name: tensor.to(device) for name, tensor in run.held_out.batch(rows, 0).items()}
            sums += torch.stack([run.plain_model(**batch).double(), (batch["targets"] >= 0).sum().double()])
    run.plain_model.train()
    total, hidden = accelerator.reduce(sums, "sum").tolist()
    return float(total / max(hidden, 1))


def perplexity(loss: float) -> float:
    """exp of a mean loss, at most 1e9."""
    return math.exp(min(loss, math.log(1e9)))


def _write_line(run: AdaptRun, state: AdaptState, log: MetricsLog | None, seconds: float, bar: Any) -> None:
    """One line of metrics.jsonl; the sums begin anew."""
    line = {
        "kind": "train",
        "step": state.step,
        "epoch": round(state.epoch + state.position * state.step_rows / len(run.train.blocks), 4),
        "loss": state.loss / max(state.hidden, 1),
        "hidden_tokens": state.hidden,
        "lr": max(group["lr"] for group in run.optimizer.param_groups),
        "skipped_steps": state.skipped,
        "tokens_per_s": round(state.tokens / max(seconds, 1e-9), 1),
    }
    if log is not None:
        log.write(line)
        bar.set_postfix({"loss": f"{line['loss']:.3f}", "tok/s": f"{line['tokens_per_s']:.0f}"})
    run.trackers.log(line, state.step)
    state.loss, state.hidden, state.tokens = 0.0, 0, 0


def _write_model(run: AdaptRun) -> None:
    """The network with its masked-LM head, and the tokenizer, in `model/`."""
    loop.write_model(run.run_dir, "encoder", run.plain_model.network, run.tokenizer)


def _conclude(run: AdaptRun, state: AdaptState) -> None:
    """valid_metrics.json: held-out loss and perplexity before and after."""
    if state.first is None or state.best is None:
        return
    before, after = ({"loss": loss, "perplexity": perplexity(loss)} for loss in (state.first, state.best))
    write_json(run.run_dir / "valid_metrics.json", {"before": before, "best": after, "step": state.best_step})


def _announce(run: AdaptRun, state: AdaptState) -> None:
    counts, blocks, parameters = run.texts.counts, run.train.blocks, parameter_count(run.plain_model)
    _say(
        run,
        f"{counts['distinct_texts']} distinct texts, {counts['dropped_as_evaluation_text']} dropped as evaluation "
        f"text, {counts['held_out']} held out; {len(blocks)} blocks of {blocks.lengths.mean():.0f} tokens on average\n"
        f"{parameters / 1e6:.1f} M parameters; {run.accelerator.num_processes} process(es) on "
        f"{run.accelerator.device.type}, precision {run.precision}; run directory {run.run_dir}"
        + (f"\ngoing on after step {state.step}" if state.step else ""),
    )
    if not run.config.exclude:
        _say(run, "no --exclude: nothing guards against evaluation sentences in this text")
    if hint := allocator_hint(run.accelerator.device.type, parameters):
        _say(run, hint)


def _say(run: AdaptRun, text: str) -> None:
    if run.main:
        print(text, file=sys.stderr, flush=True)
