"""Torch factories that the import tests name in their configuration."""

import torch
from torch import nn


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(x)
        logits: torch.Tensor = self.head(hidden.mean(dim=1))
        return logits


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.norm(self.conv(image)).relu().mean((2, 3))
        return self.head(features), features


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(24, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.hidden(x)))
        return logits


class OnlyFive(nn.Module):
    """Takes sequences of 5 only, whatever its declaration says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 20)


class Shadowing(nn.Module):
    """Its first operation is called `add`, and so shall its output be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1.0) * x


class Repeating(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = x * 2.0
        return y, y, x


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    network = Convolutional()
    statistics = {"running_mean": torch.rand(8), "running_var": torch.rand(8) + 0.5}
    network.norm.load_state_dict(network.norm.state_dict() | statistics)
    return network


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return Perceptron()


def unseeded() -> nn.Module:
    return Perceptron()


def only_five() -> nn.Module:
    return OnlyFive()


def shadowing() -> nn.Module:
    return Shadowing()


def repeating() -> nn.Module:
    return Repeating()


def raising() -> nn.Module:
    raise ZeroDivisionError("on purpose")


def no_module() -> int:
    return 3
