"""Options of `adapt` → everything the loop needs: text, masks, network, optimizer; and the state of an adaptation.

What any run needs is in `training.run`, its checkpoints in `training.resume`. A run is resumed only into the same
options and the same blocks; equal states then continue equally.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernBertForMaskedLM

from mtl_re.adapt.masking import MaskRule, mask_tokens
from mtl_re.adapt.text import Blocks, Texts, make_blocks, select_texts
from mtl_re.config import AdaptConfig
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.features.collate import LENGTH_STEP
from mtl_re.model import encoders
from mtl_re.model.cpu import allocator_hint
from mtl_re.model.network import parameter_count
from mtl_re.taxonomy import IGNORE
from mtl_re.training.loop import LoopState
from mtl_re.training.metrics_log import MetricsLog
from mtl_re.training.optimizer import make_optimizer
from mtl_re.training.processes import on_all
from mtl_re.training.resume import (
    chosen_checkpoint,
    loaded_checkpoint,
    open_log,
    restore_run,
    rows_of_a_step,
    taken_for_a_run,
)
from mtl_re.training.run import (
    Run,
    check_ranks_agree,
    identity_of_options,
    seed_process,
    start_run,
    write_run_records,
)
from mtl_re.training.tracking import Trackers

_ROOM = 512  # positions of a new encoder at least, so that a later training may read longer rows
MASKED_STEP = 64
"""Masked tokens are padded to a multiple of this. Logits are as wide as the vocabulary: with another size at each
pass, an allocator that keeps its pages (see `allocator`) grew by 15 MB a step, to 22 GB after a thousand."""
_TRAIN, _HELD_OUT = 0, 1  # which masks a generator is for


class MaskedLanguageModel(nn.Module):
    """An encoder with its masked-LM head, whose output is the loss summed over the masked tokens.

    The head, as wide as the vocabulary, is applied to masked tokens only: it works token by token in every family, so
    the encoder's states of the other tokens are cut away before it. Parameters are named `encoder.*` and `network.*`,
    so that `optim` finds the encoder's layers.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.base_model
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the cross entropy, a scalar in fp32.

        Shapes: all (batch, length); targets are `IGNORE` where no token is masked.
        """
        masked = (targets != IGNORE).flatten().nonzero().squeeze(1)
        spare = -len(masked) % MASKED_STEP
        chosen = F.pad(masked, (0, spare))  # the padding repeats the first token and counts for nothing

        def cut(module: nn.Module, arguments: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[chosen].unsqueeze(0)  # (1, chosen, dim)
            return output

        handle = self.encoder.register_forward_hook(cut)
        try:
            logits = self.network(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(0)
        finally:
            handle.remove()
        wanted = F.pad(targets.flatten()[masked], (0, spare), value=IGNORE)
        return F.cross_entropy(logits.float(), wanted, ignore_index=IGNORE, reduction="sum")


class Masker:
    """Makes padded batches with masks out of blocks."""

    def __init__(self, blocks: Blocks, rule: MaskRule, pad_id: int, seed: int, stream: int) -> None:
        self.blocks, self.rule, self.pad_id, self.seed, self.stream = blocks, rule, pad_id, seed, stream

    def masked(self, block: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of one block; a pure function of seed, epoch and block."""
        generator = np.random.default_rng([self.seed, self.stream, epoch, block])
        return mask_tokens(*self.blocks[block], self.rule, generator)

    def masked_tokens(self, rows: np.ndarray, epoch: int) -> int:
        """Return the number of masked tokens in some blocks."""
        return sum(int((self.masked(int(row), epoch)[1] != IGNORE).sum()) for row in rows)

    def batch(self, rows: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Return arguments of `MaskedLanguageModel`; without rows block 0 with no mask, whose loss is exactly 0."""
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
class AdaptState(LoopState):
    """Where an adaptation stands; its rows are blocks.

    Attributes:
        loss, hidden, tokens: Sums over the steps since the last logged line (hidden: masked tokens; checkpoints have
            the name).
        first, best: Held-out loss before the first step, and the lowest so far.
    """

    loss: float = 0.0
    hidden: int = 0
    tokens: int = 0
    first: float | None = None
    best: float | None = None


@dataclass
class AdaptRun(Run):
    """What an adaptation works with besides: text, and its blocks with masks to train on and to evaluate on."""

    config: AdaptConfig
    texts: Texts
    train: Masker
    held_out: Masker


def prepare_adaptation(config: AdaptConfig, name: str, resources: ExitStack) -> AdaptRun:
    """Set an adaptation up.

    Args:
        config: Validated options.
        name: Of the config, for the default run directory.
        resources: Holds the run directory's lock; the caller closes it when the run ends, however it ends.

    Raises:
        MtlReError: Anything at fault in the options, the text, the encoder or the directory.
    """
    options = config.train
    accelerator, run_dir = start_run(options, config.tracking, name, resources)
    texts = on_all(accelerator, lambda: select_texts(config))
    network, tokenizer = on_all(accelerator, lambda: _network(config, texts))
    blocks = [make_blocks(part, tokenizer, config) for part in (texts.train, texts.held_out)]
    if not len(blocks[0]):
        raise MtlReError("data.train: the texts have no token that this tokenizer knows of")
    identity = _identity(config, blocks)
    check_ranks_agree(accelerator, identity)
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = MaskedLanguageModel(network).train()
    model, optimizer = accelerator.prepare(wrapped, make_optimizer(wrapped, config.optim))
    seed_process(accelerator, options.seed)
    rule = mask_rule(config, tokenizer)
    train, held_out = (
        Masker(part, rule, tokenizer.pad_token_id, options.seed, stream)
        for part, stream in zip(blocks, (_TRAIN, _HELD_OUT), strict=True)
    )
    run = AdaptRun(
        options=options,
        accelerator=accelerator,
        run_dir=run_dir,
        tokenizer=tokenizer,
        model=model,
        plain_model=accelerator.unwrap_model(model),
        optimizer=optimizer,
        trackers=Trackers(accelerator, config.tracking, run_dir, config.to_dict()),
        precision=accelerator.mixed_precision,
        identity=identity,
        config=config,
        texts=texts,
        train=train,
        held_out=held_out,
    )
    _announce(run)
    return run


def mask_rule(config: AdaptConfig, tokenizer: Any) -> MaskRule:
    """Return the options of `mask` for one tokenizer."""
    options = config.mask
    entities = options.probability if isinstance(options.entities, bool) else options.entities
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    return MaskRule(options.probability, entities, tokenizer.mask_token_id, ordinary)


def _network(config: AdaptConfig, texts: Texts) -> tuple[Any, Any]:
    """Encoder with its head, and tokenizer; made from the training text for `scratch:`."""
    name, length = config.model.encoder, config.data.max_length
    if not name.startswith(encoders.SCRATCH):
        return encoders.load_masked_lm(name, length, config.train.seed)
    words = [
        " ".join(markers.pieces(scheme, list(markers.TYPE_WORDS)))
        for scheme in markers.MARKERS
        if scheme not in markers.ADDS_TOKENS
    ]
    lines = [text.text for text in texts.train] + 2 * words  # so that every marker is a piece when this is trained on
    tokenizer = encoders.scratch_tokenizer(lines, "entity_punct", [], config.model.vocabulary)
    network = encoders.scratch_encoder(name, tokenizer, max(length, _ROOM), config.train.seed, ModernBertForMaskedLM)
    return network, tokenizer


def _identity(config: AdaptConfig, blocks: list[Blocks]) -> dict[str, str]:
    """What must be the same for a resumed run to be the same run."""
    options = config.to_dict()
    del options["tracking"], options["exclude"], options["data"]["train"]  # the blocks tell what they led to
    same = identity_of_options(options)
    return same | {"training text": blocks[0].digest(), "held-out text": blocks[1].digest()}


def _announce(run: AdaptRun) -> None:
    counts, blocks, parameters = run.texts.counts, run.train.blocks, parameter_count(run.plain_model)
    run.say(
        f"{counts['distinct_texts']} distinct texts, {counts['dropped_as_evaluation_text']} dropped as evaluation "
        f"text, {counts['held_out']} held out; {len(blocks)} blocks of {blocks.lengths.mean():.0f} tokens on average\n"
        f"{parameters / 1e6:.1f} M parameters; {run.accelerator.num_processes} process(es) on "
        f"{run.accelerator.device.type}, precision {run.precision}; run directory {run.run_dir}"
    )
    if not run.config.exclude:
        run.say("no --exclude: nothing guards against evaluation sentences in this text")
    if hint := allocator_hint(run.accelerator.device.type, parameters):
        run.say(hint)


# ---- records and state -----------------------------------------------------------------------------------------


def write_adaptation_records(run: AdaptRun) -> None:
    """Write config.yaml, manifest.json and, if any, rejected.jsonl (see `write_run_records`)."""
    resolved = run.config.to_dict()
    resolved["train"]["run_dir"] = str(run.run_dir)
    described = {
        "source": run.config.data.train,
        "exclude": run.config.exclude,
        **run.texts.counts,
        "blocks": {"train": len(run.train.blocks), "held_out": len(run.held_out.blocks)},
        "tokens": {"train": len(run.train.blocks.ids), "held_out": len(run.held_out.blocks.ids)},
        "parameters": parameter_count(run.plain_model),
    }
    write_run_records(run, resolved, described, run.texts.bad)


def resume_adaptation(run: AdaptRun) -> tuple[AdaptState, MetricsLog | None]:
    """Return the state to start from, a checkpoint's, as `train.resume` asks, or a fresh one; and the log.

    Raises:
        MtlReError: The checkpoint is damaged, or belongs to other options or text.
    """
    path = chosen_checkpoint(run)
    state = AdaptState(step_rows=rows_of_a_step(run))
    if path is not None:
        source = f"data.train: {run.config.data.train}, exclude: {', '.join(run.config.exclude) or 'none'}"
        sources = dict.fromkeys(("training text", "held-out text"), source)
        found = loaded_checkpoint(run, path, AdaptConfig().to_dict(), sources, len(run.train.blocks), run.config.optim)
        with taken_for_a_run(path):
            restore_run(run, found)
            state = AdaptState(**found.state["state"])
    return state, open_log(run, state.step)
