"""Options of `adapt` → everything the loop needs: text, masks, network, optimizer; and its state, on disk and back.

Checkpoints have the form of a training run's (`checkpoint`), with the network's parameters by name: tied ones once.
A run is resumed only into the same options and the same blocks; equal states then continue equally.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from mtl_re import files
from mtl_re.adapt.masking import MaskRule, mask_tokens
from mtl_re.adapt.text import Blocks, Texts, make_blocks, select_texts
from mtl_re.config import AdaptConfig, Config, TrainConfig
from mtl_re.data.loading import write_rejected
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.features.collate import LENGTH_STEP
from mtl_re.files import write_json
from mtl_re.model import encoders
from mtl_re.model.network import parameter_count
from mtl_re.taxonomy import IGNORE
from mtl_re.training import checkpoint
from mtl_re.training.optimizer import make_optimizer
from mtl_re.training.processes import make_accelerator, on_all, on_main
from mtl_re.training.run_dir import claim_run_dir
from mtl_re.training.state import optimizer_tensors, put_optimizer, put_random, random_tensors, recorded
from mtl_re.training.tracking import MetricsLog, Trackers, manifest

_ROOM = 512  # positions of a new encoder at least, so that a later training may read longer rows
HIDDEN_STEP = 64
"""Hidden tokens are padded to a multiple of this. Logits are as wide as the vocabulary: with another size at each
pass, an allocator that keeps its pages (see `allocator`) grew by 15 MB a step, to 22 GB after a thousand."""
_TRAIN, _HELD_OUT = 0, 1  # which masks a generator is for


class MaskedLanguageModel(nn.Module):
    """An encoder with its masked-LM head; gives the summed loss over the hidden tokens.

    The head, as wide as the vocabulary, sees hidden tokens only: it works token by token in every family, so what the
    encoder says of the other tokens is cut away before it. Parameters are named `encoder.*` and `network.*`, so that
    `optim` finds the encoder's layers.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.base_model
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross entropy, fp32.

        Shapes: all (batch, length); targets are `IGNORE` where nothing is hidden.
        """
        hidden = (targets != IGNORE).flatten().nonzero().squeeze(1)
        spare = -len(hidden) % HIDDEN_STEP
        chosen = F.pad(hidden, (0, spare))  # the spare places repeat the first token and count for nothing

        def cut(module: nn.Module, arguments: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[chosen].unsqueeze(0)  # (1, chosen, dim)
            return output

        handle = self.encoder.register_forward_hook(cut)
        try:
            logits = self.network(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(0)
        finally:
            handle.remove()
        wanted = F.pad(targets.flatten()[hidden], (0, spare), value=IGNORE)
        return F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE, reduction="sum")


class Masker:
    """Rows of blocks → a padded batch with masks."""

    def __init__(self, blocks: Blocks, rule: MaskRule, pad_id: int, seed: int, stream: int) -> None:
        self.blocks, self.rule, self.pad_id, self.seed, self.stream = blocks, rule, pad_id, seed, stream

    def masked(self, block: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of one block; a pure function of seed, epoch and block."""
        generator = np.random.default_rng([self.seed, self.stream, epoch, block])
        return mask_tokens(*self.blocks[block], self.rule, generator)

    def hidden(self, rows: np.ndarray, epoch: int) -> int:
        """Hidden tokens of some blocks."""
        return sum(int((self.masked(int(row), epoch)[1] != IGNORE).sum()) for row in rows)

    def batch(self, rows: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Tensors of `MaskedLanguageModel.forward`; without rows block 0 with nothing hidden, which adds exactly 0."""
        chosen = [self.masked(int(row), epoch) for row in rows]
        if not chosen:
            ids = self.blocks[0][0].astype(np.int64)
            chosen = [(ids, np.full(len(ids), IGNORE))]
        longest = -(-max(len(inputs) for inputs, _ in chosen) // LENGTH_STEP) * LENGTH_STEP
        longest = min(longest, max(int(self.blocks.lengths.max()), 1))
        shape = (len(chosen), longest)
        filled = {"input_ids": np.full(shape, self.pad_id), "targets": np.full(shape, IGNORE)}
        attention = np.zeros(shape, np.int64)
        for line, (inputs, targets) in enumerate(chosen):
            filled["input_ids"][line, : len(inputs)], filled["targets"][line, : len(inputs)] = inputs, targets
            attention[line, : len(inputs)] = 1
        return {name: torch.from_numpy(array) for name, array in {**filled, "attention_mask": attention}.items()}


@dataclass
class AdaptState:
    """Where a run stands. Plain JSON values.

    Attributes:
        step: optimizer steps taken. epoch, position: the next step is number `position` of `epoch`.
        step_rows: blocks of a full step. loss, hidden, tokens: sums over the steps since the last logged line.
        first, best, best_step: held-out loss before the first step, the lowest so far, and its step.
        evaluated_step: of the last evaluation. skipped: fp16 steps skipped for overflow, in all and in a row.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    step_rows: int = 0
    loss: float = 0.0
    hidden: int = 0
    tokens: int = 0
    first: float | None = None
    best: float | None = None
    best_step: int = 0
    evaluated_step: int = -1
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class AdaptRun:
    """Everything the loop works on."""

    config: AdaptConfig
    accelerator: Accelerator
    run_dir: Path
    texts: Texts
    tokenizer: Any
    model: Any
    plain_model: MaskedLanguageModel
    optimizer: Any
    train: Masker
    held_out: Masker
    trackers: Trackers
    precision: str
    identity: dict[str, str]

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)


def prepare(config: AdaptConfig, name: str, resources: ExitStack) -> AdaptRun:
    """Set a run up.

    Raises:
        MtlReError: anything at fault in the options, the text, the encoder or the directory.
    """
    options = config.train
    common = TrainConfig(run_dir=options.run_dir, resume=options.resume, precision=options.precision)
    shared = Config(train=common, tracking=config.tracking)  # what a run of either kind needs first
    accelerator = make_accelerator(shared)
    run_dir = on_main(accelerator, lambda: claim_run_dir(shared, name, resources))
    accelerator.project_configuration.logging_dir = str(run_dir)
    texts = on_all(accelerator, lambda: select_texts(config))
    network, tokenizer = on_all(accelerator, lambda: _network(config, texts))
    blocks = [make_blocks(part, tokenizer, config) for part in (texts.train, texts.held_out)]
    if not len(blocks[0]):
        raise MtlReError("data.train: the texts have no token that this tokenizer knows of")
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = MaskedLanguageModel(network).train()
    model, optimizer = accelerator.prepare(wrapped, make_optimizer(wrapped, config.optim))
    torch.manual_seed(options.seed + 1_000_003 * accelerator.process_index)  # dropout differs by process
    rule = mask_rule(config, tokenizer)
    maskers = [
        Masker(part, rule, tokenizer.pad_token_id, options.seed, stream)
        for part, stream in zip(blocks, (_TRAIN, _HELD_OUT), strict=True)
    ]
    return AdaptRun(
        config=config,
        accelerator=accelerator,
        run_dir=run_dir,
        texts=texts,
        tokenizer=tokenizer,
        model=model,
        plain_model=accelerator.unwrap_model(model),
        optimizer=optimizer,
        train=maskers[0],
        held_out=maskers[1],
        trackers=Trackers(accelerator, config.tracking, run_dir, config.to_dict()),
        precision=accelerator.mixed_precision,
        identity=_identity(config, blocks),
    )


def mask_rule(config: AdaptConfig, tokenizer: Any) -> MaskRule:
    """The options of `mask` for one tokenizer."""
    options = config.mask
    entities = options.probability if isinstance(options.entities, bool) else options.entities
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    return MaskRule(options.probability, entities, tokenizer.mask_token_id, ordinary)


def _network(config: AdaptConfig, texts: Texts) -> tuple[Any, Any]:
    """Encoder with its head, and tokenizer; made from the training text for `scratch:`."""
    name, length = config.model.encoder, config.data.max_length
    if not name.startswith(encoders.SCRATCH):
        return encoders.load_masked_lm(name, length)
    words = [
        " ".join(markers.pieces(scheme, list(markers.TYPE_WORDS)))
        for scheme in markers.MARKERS
        if scheme not in markers.ADDS_TOKENS
    ]
    lines = [text.text for text in texts.train] + 2 * words  # so that every marker is a piece when this is trained on
    tokenizer = encoders.scratch_tokenizer(lines, "entity_punct", [], config.model.vocabulary)
    return encoders.scratch_masked_lm(name, tokenizer, max(length, _ROOM), config.train.seed), tokenizer


def _identity(config: AdaptConfig, blocks: list[Blocks]) -> dict[str, str]:
    """What must be the same for a resumed run to be the same run."""
    options = config.to_dict()
    del options["tracking"], options["exclude"], options["data"]["train"]  # the blocks tell what they led to
    for name in ("run_dir", "resume", "keep", "save_every", "batch_size", "accumulate"):
        del options["train"][name]
    same = {
        f"options {group}.{name}": json.dumps(value, ensure_ascii=False)
        for group, values in options.items()
        for name, value in values.items()
    }
    return same | {"training text": blocks[0].digest(), "held-out text": blocks[1].digest()}


# ---- records and state -----------------------------------------------------------------------------------------


def write_records(run: AdaptRun) -> None:
    """Write config.yaml, manifest.json and, if any, rejected.jsonl."""
    resolved = run.config.to_dict()
    resolved["train"]["run_dir"] = str(run.run_dir)
    try:
        text = yaml.safe_dump(resolved, allow_unicode=True, sort_keys=False)
        (run.run_dir / "config.yaml").write_text(text, encoding="utf-8")
        if run.texts.bad:
            write_rejected(run.run_dir / "rejected.jsonl", run.texts.bad)
    except OSError as error:
        raise MtlReError(f"{run.run_dir}: cannot be written ({error.strerror})") from error
    described = {
        "source": run.config.data.train,
        "exclude": run.config.exclude,
        **run.texts.counts,
        "blocks": {"train": len(run.train.blocks), "held_out": len(run.held_out.blocks)},
        "tokens": {"train": len(run.train.blocks.ids), "held_out": len(run.held_out.blocks.ids)},
        "parameters": parameter_count(run.plain_model),
    }
    device, processes = str(run.accelerator.device), run.accelerator.num_processes
    write_json(
        run.run_dir / "manifest.json", manifest(described, run.config.train.seed, processes, run.precision, device)
    )


def save_state(run: AdaptRun, state: AdaptState) -> None:
    """Write a resumable checkpoint. Every rank contributes its random state; rank 0 writes."""
    generators, scaler = random_tensors(run.accelerator), run.accelerator.scaler
    record = {
        "state": asdict(state),
        "processes": run.accelerator.num_processes,
        "scaler": None if scaler is None else scaler.state_dict(),
        "identity": run.identity,
    }
    weights = {name: parameter.detach() for name, parameter in run.plain_model.named_parameters()}
    tensors = {"model": weights, "optimizer": optimizer_tensors(run.optimizer), "random": generators}

    def write() -> None:
        if (log := run.run_dir / "metrics.jsonl").exists():
            files.sync(log)
        checkpoint.save(run.run_dir / "checkpoints", state.step, tensors, record, run.config.train.keep)

    on_main(run.accelerator, write)


def resume(run: AdaptRun) -> tuple[AdaptState, MetricsLog | None]:
    """The state to start from: a checkpoint's, as `train.resume` asks, or a fresh one.

    Raises:
        MtlReError: the checkpoint is damaged, or belongs to other options or text.
    """
    options = run.config.train
    state = AdaptState(step_rows=options.batch_size * options.accumulate * run.accelerator.num_processes)
    path = on_main(run.accelerator, lambda: _newest(run)) if options.resume == "auto" else options.resume
    if path is not None:
        found = on_all(run.accelerator, lambda: checkpoint.load(Path(str(path))))
        before, defaults = found.state["identity"], AdaptConfig().to_dict()
        changed = [name for name, value in run.identity.items() if recorded(before, name, defaults) != value]
        if changed:
            raise MtlReError(f"{path}: cannot go on, because these have changed since: {', '.join(changed)}")
        state = _restore(run, found)
    log = on_main(run.accelerator, lambda: MetricsLog(run.run_dir / "metrics.jsonl", state.step))
    return state, log if run.main else None


def _newest(run: AdaptRun) -> str | None:
    files.recover(run.run_dir)
    found, _ = checkpoint.newest(run.run_dir / "checkpoints")
    return None if found is None else str(found.path)


def _restore(run: AdaptRun, found: checkpoint.Checkpoint) -> AdaptState:
    """Make the run what it was at a checkpoint."""
    try:
        with torch.no_grad():
            for name, parameter in run.plain_model.named_parameters():
                parameter.copy_(found.tensors["model"][name])
        put_optimizer(run.optimizer, found.tensors["optimizer"])
        if run.accelerator.scaler is not None and found.state["scaler"] is not None:
            run.accelerator.scaler.load_state_dict(found.state["scaler"])
        if not put_random(run.accelerator, found):  # another number of processes: it goes on, not bit for bit
            torch.manual_seed(
                run.config.train.seed + 1_000_003 * run.accelerator.process_index + found.state["state"]["step"]
            )
        return AdaptState(**found.state["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # whole, but written by something else
        raise MtlReError(f"{found.path}: is no checkpoint of such a run ({type(error).__name__}: {error})") from error
