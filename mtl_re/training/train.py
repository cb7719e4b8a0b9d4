"""Training, written out: what its steps are, one code path for one process, several, and accumulation.

A step's rows are fixed by `collate.epoch_steps`; they are dealt to the processes and their forward passes, and every
loss is divided by counts over the whole step (`global_counts`). So the gradient of a step does not depend on how the
step was split. DDP averages gradients over processes where the algebra wants their sum: the loss is multiplied by the
number of processes once, in `step`.

When a step, a line, an evaluation or a checkpoint is due is in `loop`, what the loop needs to go on after a kill in
`resume` and `state`, what it says of itself in `step_log`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader

from mtl_re import files
from mtl_re.config import Config
from mtl_re.features.collate import Batch, epoch_steps, pass_cost, step_parts
from mtl_re.model.network import split_heads
from mtl_re.scoring import evaluation, inference
from mtl_re.scoring.decoding import Decoded, Decoding, decode
from mtl_re.scoring.summary import percent
from mtl_re.taxonomy import IGNORE
from mtl_re.training import checkpoint, run_report
from mtl_re.training.bad_steps import check_step, roll_back
from mtl_re.training.loop import BadStepError, Clock, Loop, epoch_reached
from mtl_re.training.losses import HeadLoss, combine, head_losses, normalise
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.optimizer import rate_factor, set_rates
from mtl_re.training.processes import on_main
from mtl_re.training.resume import network_tensors
from mtl_re.training.run import fit_and_conclude, write_network
from mtl_re.training.setup import TrainRun, prepare_training, write_training_records
from mtl_re.training.state import State, resume_training, save_training
from mtl_re.training.step_log import add_step, write_window
from mtl_re.training.tracking import Answers


def train(config: Config, name: str = "train") -> Path:
    """Run a training and return its directory.

    Args:
        config: Validated options.
        name: Of the config, for the default run directory.

    Raises:
        MtlReError: Anything at fault in options, rows, encoder, directory, or a loss that is not finite.
    """
    with ExitStack() as resources:
        run = prepare_training(config, name, resources)
        state, log = resume_training(run)
        on_main(run.accelerator, lambda: write_training_records(run))
        return fit_and_conclude(run, state, TrainingLoop(run, state, log).fit, lambda: _conclude(run, state))


class TrainingLoop(Loop):
    """`Loop` over training rows."""

    def __init__(self, run: TrainRun, state: State, log: MetricsLog | None) -> None:
        self.run, self.state, self.log = run, state, log
        options = run.config
        super().__init__(run, state, len(run.train_table), options.tracking.log_every, options.eval.every)

    def steps(self) -> Iterator[None]:
        run, state, options = self.run, self.state, self.run.config.train
        steps = epoch_steps(len(run.train_table), state.step_rows, options.seed, state.epoch)[state.position :]
        parts = [own_parts(run, rows) for rows in steps]
        batches = iter(
            DataLoader(
                [part for passes in parts for part in passes],  # type: ignore[arg-type] # any sequence serves
                collate_fn=run.collate,
                batch_size=None,
                num_workers=options.workers,
                pin_memory=run.accelerator.device.type == "cuda",
                generator=torch.Generator(),  # the loader must not draw from the generator that dropout uses
            )
        )
        for rows, passes in zip(steps, parts, strict=True):
            taken = [next(batches) for _ in passes]
            if state.step in state.left_out:
                state.step += 1
            else:
                step(run, state, rows, taken, self.total)
            yield

    def start(self) -> None:
        if self.state.step == 0 and self.run.config.train.on_bad_step == "rollback":
            self.save()  # the first steps too need a checkpoint to go back to

    def write_line(self) -> None:
        if self.state.window.rows:
            write_window(self.run, self.state, self.log, self.clock, self.bar)

    def evaluate(self) -> None:
        evaluate_now(self.run, self.state, self.log)

    def save(self) -> None:
        save_training(self.run, self.state)

    def new_clock(self) -> Clock:
        return Clock(self.state.window.rows, self.state.window.tokens)

    def end_epoch(self) -> None:
        self.run.weighting.end_epoch()

    def gave_up(self) -> bool:
        patience = self.run.config.train.early_stop
        return patience is not None and self.state.evaluations_without_gain >= patience

    def go_back(self, bad: BadStepError) -> None:
        roll_back(self.run, self.state, self.log, bad)

    def fit(self) -> bool:
        finished = super().fit()
        if finished and self.state.step < self.total:
            evaluations, metric = self.run.config.train.early_stop, self.run.config.eval.metric
            self.run.say(f"stopped early: {evaluations} evaluations without a better {metric}")
        return finished


def own_parts(run: TrainRun, rows: np.ndarray) -> list[np.ndarray]:
    """Return this process's forward passes over a step's rows.

    Rows without a label for any trained head are left out: under fixed weights a head of weight 0 is never trained, so
    one network a head costs what its own rows cost.
    """
    columns = [head.name in run.trained_heads for head in run.taxonomy.heads]
    labelled = rows[(run.train_table.targets[rows][:, columns] != IGNORE).any(axis=1)]
    accelerator, lengths = run.accelerator, run.train_table.lengths[labelled]
    cost = pass_cost(accelerator.device.type, run.plain_model.packed)
    parts = step_parts(labelled, lengths, accelerator.num_processes, run.config.train.batch_size, cost)
    return parts[accelerator.process_index]


def step(run: TrainRun, state: State, rows: np.ndarray, batches: Sequence[Batch], total: int) -> None:
    """Take one optimizer step: forward and backward over this process's passes, clip, update.

    Args:
        rows: Table rows of the whole step, over all processes and passes.
        batches: This process's share of them.
        total: Steps of the run, for the schedule.
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
    if not skipped:  # its losses may be infinite, and no weighting may learn from such
        _update_weighting(run, batches, sums, counts)
    add_step(run, state.window, sums, counts, rows, norm, skipped)
    if run.config.loss.weighting != "fixed":
        state.window.weights.append(weights)


def step_weights(run: TrainRun, step: int) -> dict[str, float]:
    """Return the weights of a step: `loss.weights` times the weighting's factors, normalised."""
    factors = run.weighting.factors(step)
    heads = list(run.weights)
    return normalise({head: run.weights[head] * factors.get(head, 0.0) for head in heads}, heads)


def _forward(run: TrainRun, batch: Batch) -> dict[str, HeadLoss]:
    """Return the raw losses of one forward pass."""
    device, options = run.accelerator.device, run.config.loss
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}  # type: ignore[attr-defined]
    targets = moved.pop("targets")
    if options.rdrop:  # one pass over every row twice: DDP wants one forward pass for each backward pass
        moved = {name: torch.cat([tensor, tensor]) for name, tensor in moved.items()}
        if "pairs" in moved:  # the second half's pairs stand in the second half of the sequences
            moved["positions"][len(moved["positions"]) // 2 :, 0] += len(moved["pairs"]) // 2
    return head_losses(run.model(**moved), targets, options, run.class_weights)


def _gather(sums: dict[str, Tensor], losses: dict[str, HeadLoss]) -> None:
    for name, head in losses.items():
        value = head.sum.detach()
        sums[name] = sums[name] + value if name in sums else value


def _update_weighting(run: TrainRun, batches: Sequence[Batch], sums: dict[str, Tensor], counts: dict[str, int]) -> None:
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


def global_counts(run: TrainRun, rows: np.ndarray) -> tuple[dict[str, int], int]:
    """Return the labelled rows of a step by head, and those of the root head, over all processes and passes.

    The only place where counts are made global. Every process knows the whole step, because the batch order is a pure
    function: no communication, and no difference between ranks.
    """
    targets = run.train_table.targets[rows]  # (rows of the step, heads)
    known = (targets != IGNORE).sum(axis=0)
    counts = {head.name: int(count) for head, count in zip(run.taxonomy.heads, known, strict=True)}
    return counts, counts[run.taxonomy.root.name]


def _clip(run: TrainRun) -> Tensor:
    """Unscale (fp16), clip, and return the gradients' global norm before clipping."""
    limit = run.config.optim.max_grad_norm or math.inf
    parameters = [parameter for parameter in run.plain_model.parameters() if parameter.requires_grad]
    norm: Tensor = run.accelerator.clip_grad_norm_(parameters, limit)
    return norm


# ---- evaluation and selection --------------------------------------------------------------------------------


def evaluate_now(run: TrainRun, state: State, log: MetricsLog | None) -> None:
    """Score the validation rows; a new best model is written to `model/`.

    The last one is kept where there are no validation rows, or a head is untrained: labels that it has a part in would
    choose at random.
    """
    state.evaluated_step = state.step
    with run.averaged():
        if len(run.valid_table):
            _score_and_select(run, state, log)
        else:
            state.best_weights = on_main(run.accelerator, lambda: keep_model(run))


def _score_and_select(run: TrainRun, state: State, log: MetricsLog | None) -> None:
    options = run.config.eval
    decoded, gold = _score_valid(run)
    score = on_main(run.accelerator, lambda: evaluation.selection_score(decoded, gold, options))  # one decides for all
    figures = evaluation.score_decoded(decoded, gold, resamples=0)
    better = state.best_score is None or score > state.best_score or not run.selects
    if better:
        state.best_score, state.best_step, state.evaluations_without_gain = score, state.step, 0
    else:
        state.evaluations_without_gain += 1
    kept = {k: v for k, v in figures.items() if k not in {"per_label", "ci", "empty_classes"}}
    line = {"kind": "valid", "step": state.step, "epoch": epoch_reached(state, len(run.train_table))}
    line |= {"selection": score, "best": better, **kept}
    if log is not None:
        log.write(line)
    run.trackers.log({"valid": {k: v for k, v in kept.items() if k != "coarse"} | {"selection": score}}, state.step)
    kept_as = (" (best)" if run.selects else " (kept)") if better else ""
    run.say(
        f"step {state.step}: valid F1 {figures['micro_f1']:.2f}, AUPRC {figures['auprc']:.2f}, gate F1 "
        f"{percent(figures['gate']['f1'])}, {options.metric} for selection {score:.2f}{kept_as}"
    )
    if better:
        state.best_weights = on_main(run.accelerator, lambda: keep_model(run))


def _score_valid(run: TrainRun) -> tuple[Decoded, np.ndarray]:
    """Decode the validation rows, all processes together; also return their gold labels (rows,)."""
    logits = inference.all_logits(
        run.plain_model,
        run.valid_table,
        run.tokenizer.pad_token_id,
        run.config.eval.batch_size,
        run.precision,
        run.accelerator,
    )
    decoded = decode(split_heads(logits, run.taxonomy), run.taxonomy, Decoding(run.config.eval.gate))
    return decoded, evaluation.gold_indices(run.rows.valid, run.taxonomy)


def keep_model(run: TrainRun) -> str:
    """Write the present model as a CKPT directory in `model/`; return the SHA-256 of its weights file."""
    write_network(run.run_dir, "model", run.plain_model, run.tokenizer)
    return files.sealed_digest(run.run_dir / "model")


def _conclude(run: TrainRun, state: State) -> dict[str, Any]:
    """Score the best model on the validation rows, all processes together, and write down what it reaches.

    Returns:
        The best model's validation scores; empty without validation rows.
    """
    if not len(run.valid_table):
        return on_main(run.accelerator, lambda: _write_results(run, state, None))
    on_main(run.accelerator, lambda: _load_best(run, state))
    for tensor in network_tensors(run.plain_model).values():
        broadcast(tensor)
    scored = _score_valid(run)
    return on_main(run.accelerator, lambda: _write_results(run, state, scored))


def _load_best(run: TrainRun, state: State) -> None:
    """Load the best model; where `model/` is of a future that a resume has forgotten, the last one takes its place."""
    files.check_weights(run.run_dir / "model")  # it may be of a step long before a kill
    if state.best_weights not in (None, files.sealed_digest(run.run_dir / "model")):
        run.say(
            f"model/ was of a step that this run has not taken; the last model, of step {state.step}, is kept instead"
        )
        with run.averaged():
            state.best_weights, state.best_step, state.best_score = keep_model(run), state.step, None
    weights = checkpoint.load_weights(run.run_dir / "model" / files.WEIGHTS)
    run.plain_model.load_state_dict(weights)


def _write_results(run: TrainRun, state: State, scored: tuple[Decoded, np.ndarray] | None) -> dict[str, Any]:
    """Write valid_metrics.json of the best model, with intervals, its charts for the trackers, and the run's report."""
    figures: dict[str, Any] = {}
    if scored is not None:
        decoded, gold = scored
        taxonomy = run.taxonomy
        figures = evaluation.score_decoded(decoded, gold, resamples=1000)
        files.write_json(run.run_dir / "valid_metrics.json", {**figures, "step": state.best_step})
        coarse = {label: taxonomy.coarse_of(label) for label in taxonomy.labels}
        predicted, probs = decoded.labels.numpy(), decoded.probs.numpy()
        run.trackers.charts(Answers(taxonomy.labels, coarse, gold, predicted, probs), state.step)
        figures["selection"] = state.best_score
    run_report.write_run_report(run.run_dir)
    return figures
