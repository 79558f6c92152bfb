"""One rank that reads shards and writes down what it was given, until it is killed.

python tests/data/deliver.py SHARDS RANK WORLD_SIZE WORKERS START STATE OUTPUT
"""

import json
import sys
import time

from margrave.data import ShardImages, TrainingImages, WindowSampler, training_loader


def main(shards: str, rank: int, world_size: int, workers: int, start: int, state: str) -> None:
    """Print each batch's indices on a line."""
    images = ShardImages(shards, piece_images=16, window_pieces=3)
    sampler = WindowSampler(
        images.pieces, images.window, 12, 0, False,
        rank=rank, world_size=world_size, workers=workers,
    )  # fmt: skip
    if start:
        sampler.resume(sampler.state(start) | json.loads(state))
    sampler.start_at(1, start)
    with open(sys.argv[7], "w") as output:
        for number, batch in enumerate(
            training_loader(TrainingImages(images, 32), sampler, workers)
        ):
            assert batch.labels.tolist() == images.labels[batch.indices.numpy()].tolist()
            assert not batch.unreadable
            print(json.dumps(batch.indices.tolist()), file=output, flush=True)
            # Time to be killed in.
            time.sleep(0.3 if number > 4 and start == 0 else 0)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6])
