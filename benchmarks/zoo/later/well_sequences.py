"""Sequence models: long waits before a fall, noise floors above nought, lengths that vary."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import generator, predict
from benchmarks.zoo.later._well_common import explained, hit_rate, loader


class Adding(LightningModule):
    """The adding problem: flat at the variance of the answer, then a sudden fall."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well("v-adding-two-of-twelve", "rnn", "R2 of the sum; the loss stands still for a third of the run")
def adding(seed: int) -> Training:
    g = generator(seed, 521)
    value = torch.rand(6000, 12, generator=g)
    mark = torch.zeros(6000, 12)
    mark.scatter_(1, torch.rand(6000, 12, generator=g).argsort(1)[:, :2], 1.0)
    x, y = torch.stack([value, mark], -1), (value * mark).sum(1)
    train = loader(x[:5000], y[:5000], size=64)
    return Training(
        Adding(), train, explained(x[5000:], y[5000:]), trainer={"max_steps": 400, "gradient_clip_val": 1.0}
    )


class CausalConv(nn.Module):
    def __init__(self, a: int, b: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(a, b, 3, dilation=dilation))
        self.skip = nn.Conv1d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(F.pad(x, (self.pad, 0)))) + self.skip(x)


class Demand(LightningModule):
    """A dilated causal network that forecasts the next hour of a noisy, seasonal load."""

    def __init__(self) -> None:
        super().__init__()
        self.tcn = nn.Sequential(CausalConv(1, 12, 1), CausalConv(12, 12, 3), CausalConv(12, 12, 9))
        self.head = nn.Conv1d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tcn(x))[:, 0, -1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.smooth_l1_loss(self(x), y)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("loss/val", F.smooth_l1_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-2)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=6)]


@well("v-load-of-the-next-hour", "forecast", "R2 0.8: three tenths of the variance is noise the past does not tell")
def demand(seed: int) -> Training:
    g = generator(seed, 522)
    t = torch.arange(2600.0)
    noise = torch.randn(2600, generator=g)
    drift = torch.zeros(2600)
    for i in range(1, 2600):
        drift[i] = 0.8 * drift[i - 1] + 0.4 * noise[i]
    load = torch.sin(2 * math.pi * t / 24) + 0.5 * torch.sin(2 * math.pi * t / 12 + 1) + drift
    load = (load - load[:2000].mean()) / load[:2000].std()
    windows = load.unfold(0, 37, 1)
    x, y = windows[:, None, :36], windows[:, 36]
    train, val = loader(x[:1950], y[:1950], size=32), loader(x[2000:], y[2000:], size=300, shuffle=False)
    return Training(Demand(), train, explained(x[2000:], y[2000:]), val, {"max_epochs": 6})


class NextSymbol(LightningModule):
    """A causal transformer for a second-order chain, whose entropy is a floor far above nought."""

    def __init__(self, symbols: int = 8, dim: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, dim)
        self.place, self.before = nn.Embedding(24, dim), nn.Linear(dim, dim, bias=False)
        layer = nn.TransformerEncoderLayer(dim, 2, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(24))

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        h = self.embed(ids)
        h = h + F.pad(self.before(h)[:, :-1], (0, 0, 1, 0)) + self.place.weight[:n]
        h = self.blocks(h, mask=self.mask[:n, :n], is_causal=True)
        return h @ self.embed.weight.T / math.sqrt(h.shape[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (ids,) = batch
        loss = F.cross_entropy(self(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        self.log("nats", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1.2e-2, betas=(0.9, 0.98), weight_decay=0.05)
        ramp = lambda step: min((step + 1) / 40, max(0.0, 1 - step / 300))  # noqa: E731
        return {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(opt, ramp), "interval": "step"},
        }


@well("v-chain-of-order-two", "transformer", "minus the nats above the entropy of the chain; 0 is perfect")
def chain(seed: int) -> Training:
    g = generator(seed, 523)
    table = (1.2 * torch.randn(8, 1, 8, generator=g) + 1.2 * torch.randn(8, 8, generator=g)).softmax(-1)
    ids = torch.randint(8, (5000, 25), generator=g)
    for i in range(2, 25):
        ids[:, i] = torch.multinomial(table[ids[:, i - 2], ids[:, i - 1]], 1, generator=g)[:, 0]

    def score(m: Any) -> float:
        new = ids[4500:]
        out = predict(m, new[:, :-1])[:, 1:].log_softmax(-1)
        truth = table[new[:, :-2], new[:, 1:-1]].log()
        gain = (truth - out).gather(2, new[:, 2:, None])
        return -gain.mean().item()

    return Training(
        NextSymbol(), loader(ids[:4500], size=32), score, trainer={"max_steps": 300, "log_every_n_steps": 1}
    )


class Masked(LightningModule):
    """A bidirectional model that fills gaps; unmasked places are ignored, so each batch counts few tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(13, 32), nn.Parameter(0.02 * torch.randn(12, 32))
        self.mix = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 12)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.mix(self.tok(ids) + self.pos)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids = batch[0]
        hide = torch.rand(ids.shape) < 0.15
        hide[:, 0] |= ~hide.any(1)
        labels = ids.masked_fill(~hide, -100)
        return F.cross_entropy(self(ids.masked_fill(hide, 12)).flatten(0, 1), labels.flatten(), ignore_index=-100)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=5e-3)
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, 6e-3, total_steps=400)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well(
    "v-fill-the-gap", "transformer", "accuracy in hidden middles of arithmetic rows: only a reader of both sides knows"
)
def gap(seed: int) -> Training:
    g = generator(seed, 524)
    start, rise = torch.randint(12, (4000, 1), generator=g), torch.randint(1, 6, (4000, 1), generator=g)
    ids = (start + rise * torch.arange(12)) % 12
    new = ids[3600:].clone()
    answer = new[:, 6].clone()
    new[:, 6] = 12
    score = lambda m: (predict(m, new)[:, 6].argmax(-1) == answer).float().mean().item()  # noqa: E731
    return Training(Masked(), loader(ids[:3600], size=64), score, trainer={"max_steps": 400})


class Strokes(LightningModule):
    """CTC over frames: the blank wins for a good while, then the spelling comes."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(6, 32, 3, padding=1)
        self.lstm = nn.LSTM(32, 24, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.front(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.lstm(h)[0]).log_softmax(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        out = self(batch["frames"]).transpose(0, 1)
        lengths = torch.full((out.shape[1],), out.shape[0])
        loss = F.ctc_loss(out, batch["letters"], lengths, batch["length"], zero_infinity=True)
        self.log("ctc", loss, batch_size=out.shape[1])
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


@well("v-letters-from-strokes", "ctc", "share of rows spelled without a fault by the greedy path")
def strokes(seed: int) -> Training:
    g = generator(seed, 525)
    shapes = torch.randn(6, 6, generator=g)
    frames, letters, lengths = [], [], []
    for _ in range(1500):
        n = int(torch.randint(2, 5, (1,), generator=g))
        word = torch.randint(1, 6, (n,), generator=g)
        times = torch.randint(2, 5, (n,), generator=g)
        row = torch.cat([torch.repeat_interleave(shapes[word], times, 0), shapes[:1].repeat(20, 1)])[:20].clone()
        edge = 0
        for t in times.tolist():  # a pause between letters
            edge += t
            row[min(edge - 1, 19)] = shapes[0]
        frames.append(row + 0.3 * torch.randn(20, 6, generator=g))
        letters.append(F.pad(word, (0, 4 - n)))
        lengths.append(n)
    rows: Any = [
        {"frames": f, "letters": w, "length": torch.tensor(n)} for f, w, n in zip(frames, letters, lengths, strict=True)
    ]

    def score(m: Any) -> float:
        best = predict(m, torch.stack(frames[1200:])).argmax(-1)
        right = 0
        for path, word, n in zip(best, letters[1200:], lengths[1200:], strict=True):
            spelled = [int(k) for k in torch.unique_consecutive(path) if k > 0]
            right += spelled == word[:n].tolist()
        return right / 300

    train = DataLoader(rows[:1200], batch_size=50, shuffle=True)
    return Training(Strokes(), train, score, trainer={"max_epochs": 12, "gradient_clip_val": 5.0})


class Names(LightningDataModule):
    """Rows of unlike length, padded by the collate function."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__()
        self.rows = rows

    @staticmethod
    def collate(rows: list[Any]) -> dict[str, Tensor]:
        rows = sorted(rows, key=lambda r: -len(r[0]))
        ids = pad_sequence([r[0] for r in rows], batch_first=True)
        return {
            "ids": ids,
            "length": torch.tensor([len(r[0]) for r in rows]),
            "label": torch.tensor([r[1] for r in rows]),
        }

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows[:1600], batch_size=40, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows[1600:], batch_size=200, collate_fn=self.collate)


class Origin(LightningModule):
    """An LSTM over packed sequences; the loss is a sum over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 12, padding_idx=0)
        self.lstm = nn.LSTM(12, 32, batch_first=True)
        self.fc = nn.Linear(32, 3)

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), length.cpu(), batch_first=True)
        return self.fc(self.lstm(packed)[1][0][-1])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["ids"], batch["length"]), batch["label"], reduction="sum")
        self.log("sum_of_nats", loss, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        right = self(batch["ids"], batch["length"]).argmax(1) == batch["label"]
        self.log("val_acc", right.float().mean(), batch_size=len(right))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=8e-3)


@well(
    "v-names-packed",
    "rnn",
    "accuracy; letters' transitions tell three tongues apart, the likelihood rule gets 0.95 and more",
)
def names(seed: int) -> Training:
    g = generator(seed, 526)
    tables = (1.2 * torch.randn(3, 15, 14, generator=g)).softmax(-1)
    rows: list[Any] = []
    for _ in range(2200):
        label, n = int(torch.randint(3, (1,), generator=g)), int(torch.randint(8, 21, (1,), generator=g))
        ids = [0]
        for _ in range(n):
            ids.append(1 + int(torch.multinomial(tables[label, ids[-1]], 1, generator=g)))
        rows.append((torch.tensor(ids[1:]), label))

    def score(m: Any) -> float:
        batch = Names.collate(rows[1600:])
        m.eval()
        with torch.no_grad():
            return (m(batch["ids"], batch["length"]).argmax(1) == batch["label"]).float().mean().item()

    return Training(Origin(), Names(rows), score, trainer={"max_epochs": 8})


class Reverser(LightningModule):
    """Encoder and decoder with attention, taught with the right prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.encoder = nn.GRU(24, 32, batch_first=True)
        self.decoder = nn.GRU(24, 32, batch_first=True)
        self.key = nn.Linear(32, 32, bias=False)
        self.out = nn.Linear(64, 10)

    def forward(self, source: Tensor, prefix: Tensor) -> Tensor:
        memory, state = self.encoder(self.embed(source))
        h, _ = self.decoder(self.embed(prefix), state)
        weight = (h @ self.key(memory).transpose(1, 2)).softmax(-1)
        return self.out(torch.cat([h, weight @ memory], -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        source, target = batch
        prefix = torch.cat([torch.full((len(source), 1), 10), target[:, :-1]], 1)
        loss = F.cross_entropy(self(source, prefix).flatten(0, 1), target.flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=8e-3)
        sched = torch.optim.lr_scheduler.MultiStepLR(opt, [250, 350], gamma=0.3)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


@well("v-backwards-with-attention", "seq2seq", "share of right symbols, spelled without help")
def backwards(seed: int) -> Training:
    g = generator(seed, 527)
    source = torch.randint(10, (5000, 5), generator=g)

    def score(m: Any) -> float:
        m.eval()
        new, said = source[4600:], torch.full((400, 1), 10)
        with torch.no_grad():
            for _ in range(5):
                said = torch.cat([said, m(new, said)[:, -1:].argmax(-1)], 1)
        return (said[:, 1:] == new.flip(1)).float().mean().item()

    train = loader(source[:4600], source[:4600].flip(1), size=64)
    return Training(Reverser(), train, score, trainer={"max_steps": 400, "gradient_clip_val": 1.0})


class Decays(nn.Module):
    """A diagonal linear recurrence, unrolled as a convolution with learnt decays."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.linspace(-1.0, 4.0, dim))
        self.inward, self.outward = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        decay = self.raw.sigmoid()
        kernel = (1 - decay) * decay ** torch.arange(n - 1, -1, -1.0)[:, None]
        u = self.inward(x).transpose(1, 2)
        y = F.conv1d(F.pad(u, (n - 1, 0)), kernel.T[:, None], groups=u.shape[1])
        return x + self.outward(F.gelu(y.transpose(1, 2)))


class Filtered(LightningModule):
    """State-space layers that follow a hidden, slow signal under heavy noise."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 16)
        self.layers = nn.Sequential(Decays(16), nn.LayerNorm(16), Decays(16))
        self.drop = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layers(self.lift(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noisy, clean = batch
        loss = (self(noisy) - clean).square().mean()
        self.log("mse", loss)
        return loss

    def configure_optimizers(self) -> Any:
        decays = [p for n, p in self.named_parameters() if n.endswith("raw")]
        rest = [p for n, p in self.named_parameters() if not n.endswith("raw")]
        return torch.optim.AdamW([{"params": decays, "lr": 1e-2, "weight_decay": 0.0}, {"params": rest}], lr=4e-3)


@well("v-slow-signal-under-noise", "state-space", "R2 of the hidden signal, what Kalman's filter reaches")
def filtered(seed: int) -> Training:
    g = generator(seed, 528)
    steps = torch.randn(1400, 60, generator=g)
    slow = torch.zeros(1400, 60)
    for i in range(60):
        slow[:, i] = 0.95 * slow[:, i - 1] * (i > 0) + 0.312 * steps[:, i]
    noisy = slow + torch.randn(1400, 60, generator=g)
    x, y = noisy[..., None], slow[..., None]
    return Training(
        Filtered(), loader(x[:1000], y[:1000], size=25), explained(x[1000:], y[1000:]), trainer={"max_epochs": 5}
    )


class Parity(LightningModule):
    """Parity of three hidden bits among twelve: chance for long, then all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-4)


@well("v-parity-of-three", "mlp", "accuracy on new rows; a long flat start at the entropy of a coin")
def parity(seed: int) -> Training:
    g = generator(seed, 529)
    x = torch.randint(2, (9000, 12), generator=g).float() * 2 - 1
    y = (x[:, 1] * x[:, 4] * x[:, 9] > 0).long()
    val = loader(x[8000:], y[8000:], size=500, shuffle=False)
    return Training(
        Parity(), loader(x[:8000], y[:8000], size=128), hit_rate(x[8000:], y[8000:]), val, {"max_epochs": 7}
    )
