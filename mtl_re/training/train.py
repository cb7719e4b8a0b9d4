"""Training, written out: `fit` → `epoch` → `step`, one code path for one process, several, and accumulation.

A step's rows are fixed by `collate.epoch_steps`; they are dealt to the processes and their forward passes, and every
loss is divided by counts over the whole step (`global_counts`). So the gradient of a step does not depend on how the
step was split. DDP averages gradients over processes where the algebra wants their sum: the loss is multiplied by the
number of processes once, in `step`.

What the loop needs to go on after a kill is in `train_state`, what it says of itself in `train_log`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mtl_re import files
from mtl_re.config import Config
from mtl_re.features.collate import Batch, Collator, epoch_steps, pass_cost, step_parts
from mtl_re.scoring import evaluation, inference
from mtl_re.taxonomy import IGNORE
from mtl_re.training import checkpoint, loop, report
from mtl_re.training.bad_steps import BadStepError, check_step, roll_back
from mtl_re.training.loop import agreed_to_stop, due, leave, peers_named, stop_signals
from mtl_re.training.losses import HeadLoss, combine, head_losses, normalise
from mtl_re.training.optimizer import rate_factor, set_rates
from mtl_re.training.processes import on_main
from mtl_re.training.setup import Run, prepare, write_records
from mtl_re.training.state import State, resume, save_state
from mtl_re.training.step_log import Clock, add_step, write_window
from mtl_re.training.tracking import Answers, MetricsLog


class Parts(Dataset[Batch]):
    """The batches of one process for the rest of an epoch, padded when asked for."""

    def __init__(self, parts: Sequence[np.ndarray], collate: Collator) -> None:
        self.parts, self.collate = parts, collate

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch:
        return self.collate(self.parts[index])


def train(config: Config, name: str = "train") -> Path:
    """Run a training and return its directory.

    Args:
        config: validated options.
        name: of the config, for the default run directory.

    Raises:
        MtlReError: anything at fault in options, rows, encoder, directory, or a loss that is not finite.
    """
    with ExitStack() as resources:
        run = prepare(config, name, resources)
        state, log = resume(run)
        on_main(run.accelerator, lambda: write_records(run))
        with peers_named(run):
            finished = fit(run, state, log)
            scores = on_main(run.accelerator, lambda: _conclude(run, state)) if finished else {}
            run.accelerator.wait_for_everyone()
        run.trackers.finish(scores, state.step, finished)
        leave(run)
        return run.run_dir


def fit(run: Run, state: State, log: MetricsLog | None) -> bool:
    """All remaining epochs; False if a signal ended them early (a checkpoint of that moment stands)."""
    total, epochs = planned_steps(run, state)
    if state.step == 0 and run.config.train.on_bad_step == "rollback":
        save_state(run, state)  # the first steps too need a place to go back to
    bar = tqdm(total=total, initial=state.step, unit="step", disable=not run.main, dynamic_ncols=True, smoothing=0.05)
    with stop_signals() as stopped, bar:
        clock = Clock(rows=state.window.rows, tokens=state.window.tokens)
        while state.epoch < epochs and state.step < total and not _gave_up(run, state):
            bar.set_description(f"epoch {state.epoch + 1}/{epochs}")
            try:
                going = epoch(run, state, log, total, bar, stopped, clock)
            except BadStepError as bad:
                roll_back(run, state, log, bad)
                clock, bar.n = Clock(rows=state.window.rows, tokens=state.window.tokens), state.step
                continue
            if not going:
                save_state(run, state)
                run.say(f"stopped by a signal after step {state.step}; go on with --train.resume auto")
                return False
    if _gave_up(run, state):
        metric, patience = run.config.eval.metric, run.config.train.early_stop
        run.say(f"stopped early: {patience} evaluations without a better {metric}")
    if state.window.rows:
        write_window(run, state, log, clock, bar)
    if state.evaluated_step != state.step:
        evaluate_now(run, state, log)
    save_state(run, state)
    return True


def planned_steps(run: Run, state: State) -> tuple[int, int]:
    """Steps of the whole run and the epochs they span."""
    options = run.config.train
    per_epoch = math.ceil(len(run.train_table) / state.step_rows)
    total = per_epoch * options.epochs
    if options.max_steps is not None:
        total = options.max_steps
    return total, math.ceil(total / per_epoch)


def epoch(
    run: Run, state: State, log: MetricsLog | None, total: int, bar: Any, stopped: list[int], clock: Clock
) -> bool:
    """The rest of one epoch; False if a signal asks to stop."""
    options = run.config
    accelerator = run.accelerator
    steps = epoch_steps(len(run.train_table), state.step_rows, options.train.seed, state.epoch)
    parts = [own_parts(run, rows) for rows in steps[state.position :]]
    batches = iter(
        DataLoader(
            Parts([part for passes in parts for part in passes], run.collate),
            batch_size=None,
            num_workers=options.train.workers,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # the loader must not draw from the generator that dropout uses
        )
    )
    for rows, passes in zip(steps[state.position :], parts, strict=True):
        if state.step >= total:
            break
        taken = [next(batches) for _ in passes]
        if state.step in state.left_out:
            state.step += 1
        else:
            step(run, state, rows, taken, total)
        state.position += 1
        finished = state.position == len(steps)
        if finished:
            state.epoch, state.position = state.epoch + 1, 0
            run.weighting.end_epoch()
        if state.window.rows and (state.step % options.tracking.log_every == 0 or state.step == total):
            write_window(run, state, log, clock, bar)
        bar.update(1)
        if due(options.eval.every, state.step, finished):
            with clock.paused():
                evaluate_now(run, state, log)
        if due(options.train.save_every, state.step, finished):
            with clock.paused():
                save_state(run, state)
        if agreed_to_stop(run, state, stopped):
            return False
        if _gave_up(run, state):
            break
    return True


def own_parts(run: Run, rows: np.ndarray) -> list[np.ndarray]:
    """This process's forward passes over a step's rows. Rows that teach no head are not read at all: under fixed
    weights a head of weight 0 is never taught, so one network a head costs what its own rows cost."""
    columns = [head.name in run.taught for head in run.taxonomy.heads]
    taught = rows[(run.train_table.targets[rows][:, columns] != IGNORE).any(axis=1)]
    accelerator, lengths = run.accelerator, run.train_table.lengths[taught]
    cost = pass_cost(accelerator.device.type, run.plain_model.packed)
    parts = step_parts(taught, lengths, accelerator.num_processes, run.config.train.batch_size, cost)
    return parts[accelerator.process_index]


def step(run: Run, state: State, rows: np.ndarray, batches: Sequence[Batch], total: int) -> None:
    """One optimizer step: forward and backward over this process's passes, clip, update.

    Args:
        rows: table rows of the whole step, over all processes and passes.
        batches: this process's share of them.
        total: steps of the run, for the schedule.
    """
    accelerator, options = run.accelerator, run.config
    counts, labelled = global_counts(run, rows)
    weights = step_weights(run, state.step)

    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(run.model):
            losses = _forward(run, batch)
            loss = combine(losses, counts, labelled, weights, options.loss.reduction)
            accelerator.backward(loss * accelerator.num_processes)
        _gather(sums, losses)
    norm = _clip(run)
    set_rates(run.optimizer, rate_factor(state.step, total, options.optim))
    skipped = check_step(run, state, norm, sums, rows)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.average is not None and not skipped:
        run.average.update()
    state.step += 1
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
    state.skipped += skipped
    _update_weighting(run, batches, sums, counts)
    add_step(run, state.window, sums, counts, rows, norm)
    if run.config.loss.weighting != "fixed":
        state.window.weights.append(weights)


def step_weights(run: Run, step: int) -> dict[str, float]:
    """Weights of a step: `loss.weights` times the weighting's factors, normalised."""
    factors = run.weighting.factors(step)
    heads = list(run.weights)
    return normalise({head: run.weights[head] * factors.get(head, 0.0) for head in heads}, heads)


def _forward(run: Run, batch: Batch) -> dict[str, HeadLoss]:
    """Raw losses of one forward pass."""
    device, options = run.accelerator.device, run.config.loss
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}  # type: ignore[attr-defined]
    targets = moved.pop("targets")
    if options.rdrop:  # one pass over every row twice: DDP wants one forward pass for each backward pass
        moved = {name: torch.cat([tensor, tensor]) for name, tensor in moved.items()}
    return head_losses(run.model(**moved), targets, options)


def _gather(sums: dict[str, Tensor], losses: dict[str, HeadLoss]) -> None:
    for name, head in losses.items():
        value = head.sum.detach()
        sums[name] = sums[name] + value if name in sums else value


def _update_weighting(run: Run, batches: Sequence[Batch], sums: dict[str, Tensor], counts: dict[str, int]) -> None:
    """Show the step's losses, reduced over processes, to the weighting."""
    if not run.weighting.needs_losses:
        return

    def means(values: dict[str, Tensor]) -> dict[str, float]:
        total = run.accelerator.reduce(torch.stack([values[name] for name in run.weighting.heads]), "sum").tolist()
        named = zip(run.weighting.heads, total, strict=True)
        return {name: value / counts[name] for name, value in named if counts[name]}

    after: dict[str, Tensor] = {}
    if run.weighting.needs_after:
        with torch.no_grad():
            for batch in batches:
                _gather(after, _forward(run, batch))
    run.weighting.update(means(sums), means(after) if after else None)


def global_counts(run: Run, rows: np.ndarray) -> tuple[dict[str, int], int]:
    """Labelled rows of a step by head, and rows that train anything, over all processes and forward passes.

    The only place where counts are made global. Every process knows the whole step, because the batch order is a pure
    function: no communication, and no difference between ranks.
    """
    targets = run.train_table.targets[rows]  # (rows of the step, heads)
    known = (targets != IGNORE).sum(axis=0)
    counts = {head.name: int(count) for head, count in zip(run.taxonomy.heads, known, strict=True)}
    return counts, counts[run.taxonomy.root.name]


def _clip(run: Run) -> Tensor:
    """Unscale (fp16), clip, and give the gradients' global norm before clipping."""
    limit = run.config.optim.max_grad_norm or math.inf
    parameters = [parameter for parameter in run.plain_model.parameters() if parameter.requires_grad]
    norm: Tensor = run.accelerator.clip_grad_norm_(parameters, limit)
    return norm


# ---- evaluation and selection --------------------------------------------------------------------------------


def evaluate_now(run: Run, state: State, log: MetricsLog | None) -> None:
    """Score the validation rows; a new best model is written to `model/`. Without validation rows the last is kept."""
    state.evaluated_step = state.step
    with run.averaged():
        _evaluate(run, state, log)


def _evaluate(run: Run, state: State, log: MetricsLog | None) -> None:
    if not len(run.valid_table):
        on_main(run.accelerator, lambda: write_model(run))
        return
    options = run.config.eval
    probs, gold = _score_valid(run, run.accelerator)
    score = evaluation.selection_score(probs, gold, run.taxonomy, options)
    figures = evaluation.report(probs, gold, run.taxonomy, options.gate, resamples=0)
    better = state.best_score is None or score > state.best_score
    if better:
        state.best_score, state.best_step, state.evaluations_without_gain = score, state.step, 0
    else:
        state.evaluations_without_gain += 1
    kept = {k: v for k, v in figures.items() if k not in {"per_label", "ci", "empty_classes"}}
    line = {"kind": "valid", "step": state.step, "epoch": state.epoch, "selection": score, "best": better, **kept}
    if log is not None:
        log.write(line)
    run.trackers.log({"valid": {k: v for k, v in kept.items() if k != "coarse"} | {"selection": score}}, state.step)
    run.say(
        f"step {state.step}: valid F1 {figures['micro_f1']:.2f}, AUPRC {figures['auprc']:.2f}, gate F1 "
        f"{figures['gate']['f1'] or 0:.2f}, {options.metric} for selection {score:.2f}{' (best)' if better else ''}"
    )
    if better:
        on_main(run.accelerator, lambda: write_model(run))


def _score_valid(run: Run, accelerator: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (rows, labels) and gold labels (rows,) of the validation rows; all processes share the work if
    their accelerator is given."""
    logits = inference.all_logits(
        run.plain_model,
        run.valid_table,
        run.tokenizer.pad_token_id,
        run.config.eval.batch_size,
        run.precision,
        accelerator,
    )
    return inference.probabilities(logits, run.taxonomy), evaluation.gold_indices(run.rows.valid, run.taxonomy)


def write_model(run: Run) -> None:
    """The current model as a CKPT directory in `model/`."""
    loop.write_model(run.run_dir, "model", run.plain_model, run.tokenizer)


def _conclude(run: Run, state: State) -> dict[str, Any]:
    """valid_metrics.json of the best model, with intervals, its charts for the trackers, and the run's report.

    Returns:
        The best model's validation scores; empty without validation rows.
    """
    figures: dict[str, Any] = {}
    if len(run.valid_table):
        files.check_weights(run.run_dir / "model")  # it may be of a step long before a kill
        weights = checkpoint.load_weights(run.run_dir / "model" / files.WEIGHTS)
        run.plain_model.load_state_dict(weights)
        probs, gold = _score_valid(run)
        gate, taxonomy = run.config.eval.gate, run.taxonomy
        figures = evaluation.report(probs, gold, taxonomy, gate, resamples=1000)
        files.write_json(run.run_dir / "valid_metrics.json", {**figures, "step": state.best_step})
        coarse = {label: taxonomy.coarse_of(label) for label in taxonomy.labels}
        predicted = evaluation.predicted_labels(probs, taxonomy, gate)
        run.trackers.charts(Answers(taxonomy.labels, coarse, gold, predicted, probs), state.step)
        figures["selection"] = state.best_score
    report.write_run_report(run.run_dir)
    return figures


def _gave_up(run: Run, state: State) -> bool:
    patience = run.config.train.early_stop
    return patience is not None and state.evaluations_without_gain >= patience
