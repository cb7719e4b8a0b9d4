"""Does a trimmed encoder keep its law on real rows? Rows that tokenise alike, and hidden states that are the same bits.

    python experiments/trim_law.py ENCODER TRIMMED DATA [DATA ...] --output law.csv

Every row's sentence is tokenised with both tokenizers. Of the first `--states` rows of each DATA whose pieces were all
kept, the last hidden states in fp32 are compared, eight rows at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mtl_re.data.loading import load_examples
from mtl_re.files import write_csv
from mtl_re.taxonomy import Taxonomy
from mtl_re.trim.network import load_source
from mtl_re.trim.trim import hidden_states

TAXONOMY = Taxonomy.from_prefixes()


def pieces(tokenizer, sentences: list[str]) -> list[list[str]]:
    """Return the pieces of sentences, the unknown one by its own name."""
    coded = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    return [tokenizer.convert_ids_to_tokens(ids) for ids in coded]


def law(full, trimmed, data: str, states: int) -> dict[str, object]:
    """Return a line of counts for one DATA."""
    sentences = [row.sentence for row in load_examples(data, TAXONOMY)[0]]
    before, after = (pieces(tokenizer, sentences) for _, tokenizer in (full, trimmed))
    kept = trimmed[1].get_vocab()
    whole = [all(piece in kept for piece in line) for line in before]
    alike = [one == other for one, other in zip(before, after, strict=True)]
    chosen = [sentence for sentence, found in zip(sentences, whole, strict=True) if found][:states]
    equal = 0
    for begin in range(0, len(chosen), 8):
        batch = chosen[begin : begin + 8]
        found = [hidden_states(network, tokenizer, batch) for network, tokenizer in (full, trimmed)]
        equal += sum(torch.equal(one, other) for one, other in zip(*found, strict=True))
    return {
        "data": Path(data).name,
        "rows": len(sentences),
        "all_pieces_kept": sum(whole),
        "of_them_alike": sum(same for same, found in zip(alike, whole, strict=True) if found),
        "alike": sum(alike),
        "states_compared": len(chosen),
        "states_equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("trimmed")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    full, trimmed = load_source(options.encoder), load_source(options.trimmed)
    lines = [law(full, trimmed, data, options.states) for data in options.data]
    write_csv(options.output, lines)
    print(options.output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
