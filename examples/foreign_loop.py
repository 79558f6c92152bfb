"""Margrave's head in somebody else's training loop: three lines, marked below."""

import torch
from torch import nn

from margrave.heads import ChunkedHead  # 1


def main(steps: int = 60) -> tuple[float, float]:
    """Train a toy network and return its first and its last loss."""
    torch.manual_seed(0)
    people = torch.randn(20, 32)
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    head = ChunkedHead("adaface", num_classes=20, embedding_size=16)  # 2
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        labels = torch.randint(20, (64,))
        images = people[labels] + 0.3 * torch.randn(64, 32)
        loss = head(network(images), labels)  # 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


if __name__ == "__main__":
    first, last = main()
    print(f"loss {first:.2f} -> {last:.2f}")
