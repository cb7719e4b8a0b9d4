"""What does a smaller vocabulary save in a training step? Seconds and peak memory, with 250,002 and with 50,000 pieces.

    python experiments/trim_step.py --output steps.csv

An XLM-R-shaped encoder (base: 12 layers × 768) with random weights and three heads takes AdamW steps in fp32 on one
thread of the CPU: forward, backward, clipping, update. Each size lives in a process of its own, so that its peak memory
is its own; the sizes take turns, a step each, so that a slow moment of the machine falls on all. Medians are reported.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from mtl_re.files import write_csv

SHAPES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
"""Width, layers, heads, inner width of XLM-R."""
WARM_UP = 2  # steps before the first that is measured: AdamW makes its states in the first one


def serve(pieces: int, shape: str, rows: int, length: int, pipe: Connection) -> None:
    """Take a step whenever asked to, and answer with its seconds; at the end with parameters and peak memory in GB."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from mtl_re.config import OptimConfig
    from mtl_re.model.network import MtlReConfig, from_encoder, parameter_count
    from mtl_re.training.optimizer import make_optimizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, layers, heads, inner = SHAPES[shape]
    options = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = XLMRobertaConfig(
        vocab_size=pieces, intermediate_size=inner, max_position_embeddings=514, type_vocab_size=1, **options
    )
    network = from_encoder(XLMRobertaModel(config), MtlReConfig(pooling="cls_markers")).train()
    optimizer = make_optimizer(network, OptimConfig())
    pipe.send((parameter_count(network), sum(p.numel() for p in network.encoder.get_input_embeddings().parameters())))
    while pipe.recv():
        start = time.perf_counter()
        ids = torch.randint(5, pieces, (rows, length))
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "positions": torch.tensor([[1, 4, 6, 9]] * rows),
        }
        logits = network(**batch)
        sum(torch.logsumexp(part, 1).sum() for part in logits.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pipe.send(time.perf_counter() - start)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def measured(sizes: list[int], shape: str, rows: int, length: int, steps: int) -> Iterator[dict[str, object]]:
    """Yield a line for each size."""
    context = multiprocessing.get_context("spawn")
    pipes, seconds = [], {pieces: list[float]() for pieces in sizes}
    for pieces in sizes:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(pieces, shape, rows, length, theirs), daemon=True).start()
        pipes.append(ours)
    counts = [pipe.recv() for pipe in pipes]
    for step in range(WARM_UP + steps):
        for pieces, pipe in zip(sizes, pipes, strict=True):
            pipe.send(True)
            taken = pipe.recv()
            if step >= WARM_UP:
                seconds[pieces].append(taken)
    for pieces, pipe, (parameters, embeddings) in zip(sizes, pipes, counts, strict=True):
        pipe.send(False)
        found = sorted(seconds[pieces])
        yield {
            "shape": shape,
            "pieces": pieces,
            "parameters": parameters,
            "of_them_embeddings": embeddings,
            "rows": rows,
            "length": length,
            "steps": steps,
            "median_seconds": round(statistics.median(found), 3),
            "fastest_seconds": round(found[0], 3),
            "slowest_seconds": round(found[-1], 3),
            "peak_gb": round(pipe.recv(), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, nargs="+", default=[250_002, 50_000])
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=72, help="tokens; KLUE-RE with the default markers has about 70")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    lines = list(measured(options.pieces, options.shape, options.rows, options.length, options.steps))
    write_csv(options.output, lines)
    print(options.output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
