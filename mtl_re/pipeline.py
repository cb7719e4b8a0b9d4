"""`transformers.pipeline("relation-extraction")`: a checkpoint behind the interface that transformers users know.

Importing this module registers the task:

    import mtl_re.pipeline
    from transformers import pipeline

    ask = pipeline("relation-extraction", model="runs/NAME/model")
    ask({"sentence": "세종대왕은 조선의 왕이다.", "subject": (0, 3, "PER"), "object": (10, 10, "POH")})

Enters: a map of sentence, subject and object (an entity in any form of `triples.EntityLike`), a row in KLUE's form, or
a list of such. Leaves: for each a map of label, score, coarse and probs, equal to `Predictor`'s, because both decode
logits by `decoding`. The fields of a `Decoding` (`gate`, `prior`, `restrict`, `threshold`) may be given to the pipeline
or to a call. Every entity is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from mtl_re.data.documents import entity_at
from mtl_re.data.validation import Example, parse_row, shown
from mtl_re.errors import MtlReError, RowError
from mtl_re.features.collate import Collator
from mtl_re.model.network import MtlReModel, join_heads
from mtl_re.predict.triples import pair_example
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding
from mtl_re.scoring.writers import predictions_of
from mtl_re.taxonomy import Taxonomy

TASK = "relation-extraction"
KEYS = ("sentence", "subject", "object")
OPTIONS = tuple(field.name for field in fields(Decoding))


class RelationExtractionPipeline(Pipeline):
    """A pipeline that predicts rows with an mtl-re checkpoint, one by one or `batch_size` at a time.

    Raises:
        MtlReError: A row is at fault, an option is unknown or of another value, or the model is not an `MtlReModel`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model, tokenizer = self.model, self.tokenizer
        if not isinstance(model, MtlReModel) or tokenizer is None:
            raise MtlReError(f"{TASK}: expected an mtl-re checkpoint with its tokenizer, found {type(model).__name__}")
        tokenizer.padding_side = "right"  # positions count from the left, as in training
        self.composed = ComposedModel.of(model, tokenizer)
        self.pad_id = int(tokenizer.pad_token_id)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return one result for a map, a list for a list of maps, and an iterator for a generator or a data set."""
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := set(options) - set(OPTIONS):
            raise MtlReError(f"{TASK}: unknown option(s) {sorted(unknown)}; known are {', '.join(OPTIONS)}")
        if options.get("prior") == "em":
            raise MtlReError(
                f"{TASK}: prior em is estimated from many rows at once, as `mtl-re evaluate` does; give shares"
            )
        Decoding(**options)
        return {}, {}, options

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        """Return the checked row."""
        return {"example": row_of(input_, self.composed.taxonomy)}

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> Any:
        """Write and pad the rows of a batch: what transformers pads by itself knows nothing of levitated markers."""
        example = input_tensors["example"]
        examples = example if isinstance(example, list) else [example]
        (featurizer,) = self.composed.featurizers.values()
        root = self.composed.root
        table = featurizer.table(examples)
        collate = Collator(table, self.pad_id, root.takes_types, levitated=root.levitated)
        batch = self._ensure_tensor_on_device(dict(collate(range(len(examples)))), self.device)
        batch.pop("targets")
        return {"logits": join_heads(self.model(**batch), self.composed.taxonomy).float(), "example": example}

    def postprocess(self, model_outputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Decode logits (1, all heads' classes) into label, score, coarse and probs."""
        decoding = Decoding(**{"gate": self.composed.config.gate, **options})
        example: Example = model_outputs["example"]
        decoded = self.composed.decode(model_outputs["logits"].cpu(), [example], decoding)
        (made,) = predictions_of(decoded, [example])
        return {"label": made.label, "score": made.score, "coarse": made.coarse, "probs": made.probs}


def row_of(given: Any, taxonomy: Taxonomy) -> Example:
    """Return a map of sentence, subject and object, or a row in KLUE's form, as an example.

    Raises:
        RowError: It has another form, or an entity is at fault.
    """
    if isinstance(given, Mapping) and {"sentence", "subject_entity", "object_entity"} <= set(given):
        return parse_row(given, taxonomy)
    if not isinstance(given, Mapping) or set(given) != set(KEYS):
        raise RowError("row", f"expected a map of {', '.join(KEYS)}, found {shown(given)}")
    subject, object = (entity_at(given["sentence"], given[role], role) for role in KEYS[1:])
    return pair_example("row", given["sentence"], subject, object, taxonomy)


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=RelationExtractionPipeline, pt_model=AutoModel)
