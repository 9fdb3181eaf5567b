"""The plain way, frozen: what `bench` measures against. It is not to be made faster.

Images are decoded and augmented by PIL in a DataLoader at every step; the network trains in
float32, in PyTorch's default memory order, with the default Adam. So do torchvision's references.
Canonical correlations go by the textbook, over stored activations.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

NORMALISE = [
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]


class Photographs(Dataset):
    """Images of one split of a table with columns image, label and split."""

    def __init__(self, folder: Path, split: str, transform: transforms.Compose):
        table = pd.read_csv(folder / "labels.csv")
        self.table = table[table["split"] == split].reset_index(drop=True)
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.folder / self.table["image"][i]) as image:
            return self.transform(image.convert("RGB")), int(self.table["label"][i])


def fit(net: nn.Module, folder: Path, *, size: int, batch: int, steps: int) -> float:
    """Train for `steps`, then evaluate once; returns the accuracy on validation images."""
    loader = batches(folder, size, batch)
    optimizer = torch.optim.Adam(net.parameters())
    net.train()
    done = 0
    while done < steps:
        for images, target in loader:
            step(net, optimizer, images, target)
            done += 1
            if done == steps:
                break
    resized = transforms.Compose([transforms.Resize((size, size)), *NORMALISE])
    return accuracy(net, DataLoader(Photographs(folder, "valid", resized), batch_size=batch))


def batches(folder: Path, size: int, batch: int) -> DataLoader:
    """Augmented training images, decoded again each time."""
    augmented = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    train = Photographs(folder, "train", transforms.Compose([*augmented, *NORMALISE]))
    return DataLoader(train, batch_size=batch, shuffle=True, drop_last=True)


def plain(net: nn.Module) -> nn.Module:
    """A copy of a network with nothing but nn.Conv2d, in PyTorch's default memory order."""
    copy = deepcopy(net).to(memory_format=torch.contiguous_format)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    return copy


def step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor) -> float:
    """One step on normalised images (N, 3, H, W); the loss before it."""
    loss = F.cross_entropy(net(images), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def accuracy(net: nn.Module, loader: DataLoader) -> float:
    net.eval()
    right = seen = 0
    with torch.no_grad():
        for images, target in loader:
            right += (net(images).argmax(1) == target).sum().item()
            seen += len(target)
    return right / seen


def cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations of two layers (neurons, datapoints), by the textbook."""
    joint = np.cov(x, y)
    p = len(x)
    within_x, within_y, between = joint[:p, :p], joint[p:, p:], joint[:p, p:]
    whitened = root(np.linalg.pinv(within_x)) @ between @ root(np.linalg.pinv(within_y))
    return np.linalg.svd(whitened)[1]


def svcca(x: np.ndarray, y: np.ndarray, keep: float = 0.99) -> np.ndarray:
    """The same of the principal components with 99 % of the variance, found in the activations."""
    return cca(components(x, keep), components(y, keep))


def components(x: np.ndarray, keep: float) -> np.ndarray:
    """(components, datapoints)"""
    _, s, v = np.linalg.svd(x - x.mean(1, keepdims=True), full_matrices=False)
    count = int((np.cumsum(s**2) < keep * (s**2).sum()).sum()) + 1
    return s[:count, None] * v[:count]


def root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
