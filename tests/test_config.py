"""Options: defaults as in the contract, bounds checked with the option's name, and no torch behind them."""

import dataclasses
import math

import pytest
import yaml

from mtl_re import config
from mtl_re.config import GROUPS, Config, check_shares
from mtl_re.errors import MtlReError

DEFAULTS = yaml.safe_load(
    """
data: {valid: null, valid_fraction: 0.1, max_length: 256, markers: typed_punct_ko, query: false, on_bad_row: error,
       on_overlap: drop}
model: {encoder: klue/roberta-large, heads: hierarchical, pooling: markers, dropout: 0.1}
loss: {kind: cross_entropy, reduction: joint, weighting: fixed, label_smoothing: 0}
optim: {lr: 2.0e-5, head_lr: null, weight_decay: 0.01, warmup: 0.1, schedule: linear, layer_decay: 1.0,
        max_grad_norm: 1.0}
train: {run_dir: null, epochs: 3, batch_size: 32, accumulate: 1, precision: auto, seed: 42, resume: null,
        compile: false, gradient_checkpointing: false, early_stop: null}
eval: {every: epoch, gate: hard, metric: micro_f1, target_prior: null, batch_size: 128}
tracking: {trackers: [], project: mtl-re, log_every: 20}
"""
)
"""What users' config files rely on."""

OUT_OF_RANGE = [
    ("data", "valid_fraction", (-0.1, 0.95, math.nan)),
    ("data", "max_length", (0, 7, -1)),
    ("data", "limit", (0, -1)),
    ("model", "dropout", (-0.1, 1.0, math.nan)),
    ("model", "dropout_samples", (0, 65)),
    ("loss", "label_smoothing", (-0.1, 1.0)),
    ("loss", "focal_gamma", (-1, math.inf)),
    ("loss", "rdrop", (-1, math.nan)),
    ("optim", "lr", (-1e-5, 2, math.nan, math.inf)),
    ("optim", "head_lr", (-1e-5, math.nan)),
    ("optim", "weight_decay", (-1, math.nan)),
    ("optim", "beta2", (-0.1, 1.0, math.nan)),
    ("optim", "warmup", (-0.1, 1.1)),
    ("optim", "layer_decay", (0, 1.1)),
    ("optim", "max_grad_norm", (-1, math.nan)),
    ("train", "epochs", (0, -1)),
    ("train", "batch_size", (0, -1)),
    ("train", "accumulate", (0,)),
    ("train", "seed", (-1, 2**32)),
    ("train", "keep", (0,)),
    ("train", "workers", (-1,)),
    ("train", "ema", (-0.1, 1.0, math.nan)),
    ("train", "early_stop", (0, -1)),
    ("train", "max_steps", (0, -1)),
    ("train", "save_every", (0, -5)),
    ("eval", "every", (0, -5)),
    ("eval", "batch_size", (0,)),
    ("tracking", "log_every", (0, -1)),
]


def test_defaults_are_the_contracts():
    made = Config().to_dict()
    assert set(made) == set(DEFAULTS) == set(GROUPS)
    for group, values in DEFAULTS.items():
        assert {name: made[group][name] for name in values} == values


def test_every_option_has_its_help_beneath_it():
    """jsonargparse takes the text from the source; a field without one is an option without help."""
    import ast
    import inspect

    seen = 0
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.name != "Config":
            for field, text in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(text, ast.Expr), f"{node.name}.{field.target.id}"
                    assert isinstance(text.value, ast.Constant)
                    seen += 1
    assert seen > 60


@pytest.mark.parametrize(
    ("group", "name", "values"), OUT_OF_RANGE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_out_of_range_is_named(group, name, values):
    for value in values:
        with pytest.raises(MtlReError, match=rf"^{group}\.{name}: .* is out of range; expected"):
            GROUPS[group](**{name: value})


@pytest.mark.parametrize("fold", ["", "1", "0/5", "6/5", "1/1", "a/b", "1/5/2", "-1/5", "1.0/5"])
def test_fold_names_one_of_several(fold):
    with pytest.raises(MtlReError, match=r"^data\.fold: .* expected k/K"):
        config.DataConfig(fold=fold)


def test_fold_and_validation_rows_exclude_each_other():
    config.DataConfig(fold="5/5")
    with pytest.raises(MtlReError, match=r"data\.fold: .*data\.valid is set too"):
        config.DataConfig(fold="1/5", valid="dev.json")


@pytest.mark.parametrize(
    ("options", "validated"),
    [({}, True), ({"valid_fraction": 0}, False), ({"valid_fraction": 0, "fold": "1/5"}, True), ({"valid": "x"}, True)],
)
def test_validated(options, validated):
    assert config.DataConfig(**options).validated is validated


def test_weight_out_of_range_is_named():
    for value in (-1, math.nan, math.inf):
        with pytest.raises(MtlReError, match=r"loss\.weights\.coarse"):
            config.LossConfig(weights={"coarse": value})


def test_edges_are_in_range():
    config.DataConfig(valid_fraction=0, max_length=8, limit=1)
    config.OptimConfig(lr=0, head_lr=0, warmup=0, max_grad_norm=0)
    config.TrainConfig(seed=2**32 - 1, save_every="epoch", early_stop=1)
    config.EvalConfig(every="epoch", target_prior=[0.6, 0.17, 0.23])


@pytest.mark.parametrize("shares", [[], [0.5, 0.4], [1.2, -0.2], [0.0, 1.0], [math.nan, 1.0], [math.inf, 0.5]])
def test_shares(shares):
    with pytest.raises(MtlReError, match=r"eval\.target_prior: .*positive shares"):
        config.EvalConfig(target_prior=shares)


def test_shares_may_be_rounded():
    check_shares("x", [0.333, 0.333, 0.333])


def test_groups_do_not_share_their_values():
    one, other = Config(), Config()
    one.loss.weights["coarse"] = 3.0
    one.tracking.trackers.append("wandb")
    assert other.loss.weights == {}
    assert other.tracking.trackers == []


def test_to_dict_is_plain_and_returns():
    made = Config(loss=config.LossConfig(weights={"coarse": 2.0})).to_dict()
    again = yaml.safe_load(yaml.safe_dump(made))
    assert again == made
    assert Config(**{name: kind(**again[name]) for name, kind in GROUPS.items()}).to_dict() == made


def test_other_commands_check_their_numbers():
    cases = [
        (config.SampleConfig, {"train": 0}),
        (config.EvaluateConfig, {"data": "x", "batch_size": 0}),
        (config.EvaluateConfig, {"data": "x", "resamples": -1}),
        (config.PredictConfig, {"data": "x", "output": "y", "window": 0}),
        (config.CompareConfig, {"resamples": 0}),
    ]
    for kind, options in cases:
        name = list(options)[-1]
        assert name in {field.name for field in dataclasses.fields(kind)}
        with pytest.raises(MtlReError, match=name):
            kind(**options)
