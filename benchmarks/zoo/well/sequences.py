"""Sequence models that end well: recurrent nets, convolutions over time, transformers on characters."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo import data
from benchmarks.zoo.case import Training, well
from benchmarks.zoo.well.common import Classifier, Regressor


class Recurrent(nn.Module):
    """LSTM or GRU over (N, time, columns), a linear layer on the last or the mean state."""

    def __init__(self, cell: type[nn.RNNBase], columns: int, hidden: int, out: int, mean: bool = False) -> None:
        super().__init__()
        self.rnn = cell(columns, hidden, batch_first=True)
        self.head = nn.Linear(hidden, out)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x)
        return self.head(h.mean(1) if self.mean else h[:, -1])


@well("lstm-clipped", "sequence", "the Trainer clips to norm 1; accuracy about 0.99")
def lstm_clipped(seed: int) -> Training:
    d = data.motifs(seed)
    return Training(
        Classifier(Recurrent(nn.LSTM, 1, 32, 4, mean=True), lr=1e-2),
        d.train(50),
        d.accuracy,
        d.val(),
        {"max_epochs": 25, "gradient_clip_val": 1.0},
    )


@well("gru-forecast", "sequence", "next value of a noisy seasonal series, windows shuffled; R2 about 0.9")
def gru_forecast(seed: int) -> Training:
    g = data.generator(seed, 51)
    time = torch.arange(2600.0)
    series = torch.sin(time / 5) + 0.6 * torch.sin(time / 13) + 0.22 * torch.randn(2600, generator=g)
    windows = ((series - series.mean()) / series.std()).unfold(0, 25, 1)
    x, y = windows[:, :24, None], windows[:, 24:]
    d = data.Split(x[:1800], y[:1800], x[1850:], y[1850:])
    return Training(Regressor(Recurrent(nn.GRU, 1, 24, 1), lr=5e-3), d.train(64), d.r2, d.val(), {"max_epochs": 16})


@well("conv-over-time", "sequence", "one-dimensional convolutions and max over time; accuracy about 0.98")
def conv_over_time(seed: int) -> Training:
    d = data.motifs(seed)

    class OverTime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv1d(1, 24, 5, padding=2)
            self.conv2 = nn.Conv1d(24, 24, 5, padding=2)
            self.fc = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.conv2(F.relu(self.conv1(x.transpose(1, 2)))))
            return self.fc(h.amax(dim=2))

    return Training(Classifier(OverTime(), lr=3e-3), d.train(50), d.accuracy, d.val(), {"max_epochs": 25})


class CharTransformer(LightningModule):
    """Causal, pre-norm, output layer tied to the embedding; inverse square root rate after warm-up."""

    def __init__(self, symbols: int, length: int = 32, dim: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.tok = nn.Embedding(symbols, dim)
        self.pos = nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, symbols, bias=False)
        self.out.weight = self.tok.weight
        nn.init.normal_(self.tok.weight, std=0.02)
        nn.init.normal_(self.pos.weight, std=0.02)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        n = ids.shape[1]
        return self.out(self.norm(self.blocks(x, mask=self.mask[:n, :n], is_causal=True)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        ids = batch[0]
        logits = self(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        adam = torch.optim.AdamW(self.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min((s + 1) / 100, math.sqrt(100 / (s + 1))))
        return {"optimizer": adam, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def _text_score(text: data.Text) -> Any:
    """Entropy of the text over the loss on text not seen; a little less than 1 at best, as windows start blind."""

    def score(m: LightningModule) -> float:
        logits = data.predict(m, text.test[:, :-1])
        return text.floor / F.cross_entropy(logits.flatten(0, 1), text.test[:, 1:].flatten()).item()

    return score


@well("char-transformer", "sequence", "starts at ln 20 and falls slowly at first; entropy over loss about 0.9")
def char_transformer(seed: int) -> Training:
    text = data.characters(seed, n=1600)
    loader = DataLoader(TensorDataset(text.train), 32, shuffle=True, drop_last=True)
    return Training(
        CharTransformer(text.symbols), loader, _text_score(text), None, {"max_epochs": 8, "gradient_clip_val": 1.0}
    )


class TiedGRU(LightningModule):
    """A language model whose output weights are its embedding."""

    def __init__(self, symbols: int, dim: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, dim)
        self.rnn = nn.GRU(dim, dim, batch_first=True)
        self.decode = nn.Linear(dim, symbols)
        self.decode.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.decode(self.rnn(self.embed(ids))[0])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        (ids,) = batch
        logits = self(ids[:, :-1])
        return {"loss": F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


@well("tied-weights", "sequence", "one tensor is embedding and output layer; entropy over loss about 0.9")
def tied_weights(seed: int) -> Training:
    text = data.characters(seed, n=1600)
    loader = DataLoader(TensorDataset(text.train), 32, shuffle=True)
    return Training(TiedGRU(text.symbols), loader, _text_score(text), None, {"max_epochs": 12})


class Tagger(LightningModule):
    """Tags each step of padded sequences; the loss is the sum over all real steps, so long batches cost more."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 16, padding_idx=0)
        self.rnn = nn.GRU(16, 32, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(64, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.rnn(self.embed(ids))[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        ids, tags = batch
        loss = F.cross_entropy(self(ids).flatten(0, 1), tags.flatten(), ignore_index=-100, reduction="sum")
        self.log("train_loss", loss, batch_size=len(ids))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _pad(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    ids, tags = zip(*items, strict=True)
    return pad_sequence(list(ids), batch_first=True), pad_sequence(list(tags), batch_first=True, padding_value=-100)


@well(
    "summed-over-lengths",
    "sequence",
    "loss summed over 4 to 40 steps a sequence: it swings tenfold by length; accuracy 0.98",
)
def summed_over_lengths(seed: int) -> Training:
    g = data.generator(seed, 52)

    def sentence() -> tuple[Tensor, Tensor]:
        n = int(4 + 36 * torch.rand((), generator=g).square())
        ids = torch.randint(1, 6, (n,), generator=g)
        before, after = ids.roll(1), ids.roll(-1)
        before[0], after[-1] = 0, 0
        tags = (ids > before).long() + (ids > after).long()  # 2 at a local maximum, 0 at a local minimum
        return ids, tags

    sentences = [sentence() for _ in range(900)]
    ids, tags = _pad(sentences[700:])

    def score(m: LightningModule) -> float:
        real = tags >= 0
        return data.accuracy(data.predict(m, ids)[real], tags[real])

    loader = DataLoader(sentences[:700], 8, shuffle=True, collate_fn=_pad)
    return Training(Tagger(), loader, score, None, {"max_epochs": 7})
