"""How the Fréchet distance of two halves of one corpus hangs on how many clips they have.

python benchmarks/frechet_halves.py PREDICTIONS CORPUS [--repeats 10]

PREDICTIONS is the folder evaluation/predictions of an output. Both halves are drawn from one
corpus, so the true distance is 0. Prints a markdown table: clips a half, the plain distance, the
extrapolated one and its spread, or why there is none.
"""

import argparse

import numpy as np
import pyarrow as pa

from raysound.evaluation.predictions import as_array, read_predictions
from raysound.metrics.frechet import fad_inf, frechet_distance

SIZES = (50, 100, 200, 500, 1000, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions")
    parser.add_argument("corpus")
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    parts = read_predictions(given.predictions, given.corpus, ["embedding"])
    embedding = as_array(pa.concat_tables(parts)["embedding"])
    size = embedding.shape[1]
    print(f"{len(embedding)} clips of {given.corpus}, {size} numbers an embedding\n")
    print("| clips a half | plain | extrapolated | its spread |")
    print("|---|---|---|---|")
    for n in SIZES:
        if 2 * n > len(embedding):
            break
        plain, infinite, why = [], [], ""
        for repeat in range(given.repeats):
            drawn = np.random.default_rng(repeat).permutation(len(embedding))[: 2 * n]
            one, other = embedding[drawn[:n]], embedding[drawn[n:]]
            plain.append(frechet_distance(one, other))
            found = fad_inf(one, other)
            why = found.get("why", "")
            if found["value"] is not None:
                infinite.append(found["value"])
        cells = f"{np.mean(infinite):+.2f} | {np.std(infinite):.2f}" if infinite else f"{why} | –"
        print(f"| {n} | {np.mean(plain):.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
