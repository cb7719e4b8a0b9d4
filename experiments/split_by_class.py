"""Write the rows of each coarse class that has a fine head into a file of its own, to train separate networks on.

    python experiments/split_by_class.py ../shared/klue-re/klue-re-v1.1_train.json.gz runs/by-class

Under KLUE's labels: DIR/org.json and DIR/per.json.
"""

import argparse
import json
from pathlib import Path

from mtl_re.data.loading import load_examples
from mtl_re.files import write_text
from mtl_re.outputs import check_outputs, input_files
from mtl_re.taxonomy import Taxonomy


def main() -> None:
    """Write the files, and print how many rows each has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier call")
    given = parser.parse_args()
    taxonomy = Taxonomy.from_prefixes()
    files = {head.name: given.directory / f"{head.name}.json" for head in taxonomy.heads if head != taxonomy.root}
    check_outputs(files, input_files([given.data]), given.overwrite)
    examples, _ = load_examples(given.data, taxonomy)
    for name, path in files.items():
        rows = [example.to_row() for example in examples if taxonomy.coarse_of(example.label) == name]
        write_text(path, json.dumps(rows, ensure_ascii=False))
        print(path, len(rows))


if __name__ == "__main__":
    main()
