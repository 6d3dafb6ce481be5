"""LossCheck: each code has a patient that trips it by step 2, and the look-alikes that it must sleep through."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall.callbacks.loss_check import LossCheck
from lightning_stall.errors import MisconfigurationException
from lightning_stall.finding import Finding
from lightning_stall.hub import Hub
from lightning_stall.measure.loss_graph import take_apart

N = 16
Loss = Callable[[Tensor, Tensor], Tensor]


class Fit(LightningModule):
    """Any net under any loss of (output, target)."""

    def __init__(self, net: nn.Module, loss: Loss, rate: float = 1e-3) -> None:
        super().__init__()
        self.net, self.loss, self.rate = net, loss, rate

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def batches(x: Tensor, y: Tensor, size: int = N, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), **{"batch_size": size, "shuffle": True, **options})


def fit(module: LightningModule, loader: Any, steps: int = 4, check: LossCheck | None = None, **trainer: Any) -> Hub:
    """A short real fit on the CPU; its hub holds every finding."""
    check = check or LossCheck()
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_steps": steps}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": [check]}
    runner = Trainer(**{**settings, **trainer})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is told is read from the journal; F.mse_loss warns by itself, too
        runner.fit(module, loader)
    assert check.failed is None
    return check.hub


def seen(net: nn.Module, loss: Loss, y: Tensor, x: Tensor | None = None, **options: Any) -> list[Finding]:
    x = torch.randn(len(y), 5) if x is None else x
    return fit(Fit(net, loss), batches(x, y), **options).journal.findings


def certain(findings: Sequence[Finding]) -> list[str]:
    return [f.code for f in findings if f.speaks]


def body(*last: nn.Module, out: int = 3) -> nn.Sequential:
    torch.manual_seed(1)  # made when tests are collected: their weights must not hang on what was collected before
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, out), *last)


def labels(classes: int = 3, n: int = 4 * N) -> Tensor:
    return torch.arange(n) % classes


def numbers(*size: int) -> Tensor:
    return torch.randn(4 * N, *size)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers for each test, and what a run writes is written to a folder of its own."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


class Swap(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ------------------------------------------------------------------ probabilities-as-logits


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(nn.Softmax(-1)), F.cross_entropy, labels()),
        (body(nn.Softmax(-1)), nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.ones(3)), labels()),
        (body(nn.Softmax(-1)), lambda o, y: F.cross_entropy(o, F.one_hot(y, 3).float()), labels()),
        (body(nn.Softmax(-1)), lambda o, y: F.cross_entropy(o.clone().contiguous(), y) / 7 + 2, labels()),
        (body(nn.Softmax(-1)), F.nll_loss, labels()),
        (body(), lambda o, y: F.cross_entropy(o.softmax(1), y), labels()),
        (body(nn.Sigmoid()), F.binary_cross_entropy_with_logits, (numbers(3) > 0).float()),
        (
            body(nn.Sigmoid(), out=1),
            lambda o, y: F.binary_cross_entropy_with_logits(o.squeeze(1), y),
            (numbers() > 0).float(),
        ),
        (
            body(nn.Softmax(-1)),
            lambda o, y: F.cross_entropy(o.reshape(2, -1, 3).transpose(1, 2), y.reshape(2, -1)),
            labels(),
        ),
    ],
)
def test_probabilities_are_no_logits(net: nn.Module, loss: Loss, y: Tensor) -> None:
    found = seen(net, loss, y)
    assert certain(found) == ["probabilities-as-logits"]
    assert found[0].step == 1


def test_the_module_is_named_even_among_many_of_its_kind() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 3), nn.Sigmoid())
    (found,) = seen(net, F.binary_cross_entropy_with_logits, (numbers(3) > 0).float())
    assert found.where == ("net.3",)
    assert found.summary == (
        "`nn.Sigmoid` at `net.3` makes probabilities of the output, and binary cross-entropy with logits applies its "
        "own sigmoid to them: for a sure and right answer the loss is still 0.313, where logits reach 0."
    )
    assert "drop `nn.Sigmoid` at `net.3`" in found.advice


def test_a_functional_softmax_is_named_by_its_line() -> None:
    class Own(Fit):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).softmax(-1)

    found = fit(Own(body(), F.cross_entropy), batches(numbers(5), labels())).journal.findings
    assert "test_loss_check.py`, line" in found[0].where[0]


class Attention(nn.Module):
    """A softmax inside, far below the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(1, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inside(x[..., None]))
        weights = (h @ h.transpose(1, 2)).softmax(-1)
        return self.out((weights @ h).mean(1))


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(), F.cross_entropy, labels()),
        (body(nn.LogSoftmax(-1)), F.cross_entropy, labels()),  # twice, and harmless
        (body(nn.LogSoftmax(-1)), F.nll_loss, labels()),
        (Attention(), F.cross_entropy, labels()),
        (nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1), nn.Linear(6, 3)), F.cross_entropy, labels()),
        (body(nn.Softmax(-1)), lambda o, y: F.cross_entropy(o / 0.05, y), labels()),
        (body(nn.Softmax(-1)), lambda o, y: F.nll_loss(o.clamp_min(1e-8).log(), y), labels()),
        (body(nn.Sigmoid()), F.binary_cross_entropy, (numbers(3) > 0).float()),
        (
            body(nn.Softmax(-1), out=2),
            lambda o, y: F.binary_cross_entropy(o, F.one_hot(y, 2).float()),
            labels(2),
        ),
        (
            body(),
            lambda o, y: F.kl_div(F.log_softmax(o / 4, -1), F.softmax(y / 4, -1), reduction="batchmean"),
            numbers(3),
        ),
        (body(), lambda o, y: -(y.softmax(-1) * o.log_softmax(-1)).sum(-1).mean(), numbers(3)),
        (body(nn.Softmax(-1)), lambda o, y: F.mse_loss(o, F.one_hot(y, 3).float()), labels()),  # Brier
    ],
)
def test_healthy_uses_of_softmax_and_sigmoid(net: nn.Module, loss: Loss, y: Tensor) -> None:
    assert seen(net, loss, y) == []


# ------------------------------------------------------------------ loss-shape-mismatch


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(out=1), F.mse_loss, numbers()),
        (body(out=1), F.l1_loss, numbers()),
        (body(out=1), F.smooth_l1_loss, numbers()),
        (body(out=1), F.huber_loss, numbers()),
        (body(out=1), lambda o, y: F.mse_loss(o, y.double()).float(), numbers()),
        (body(out=1), lambda o, y: F.mse_loss(o, y, reduction="none").mean() / 3, numbers()),
        (body(out=1), lambda o, y: ((o - y) ** 2).mean(), numbers()),
        (body(out=1), lambda o, y: (y - o).abs().mean(), numbers()),
        (body(out=1), lambda o, y: (o - y).square().mean().sqrt(), numbers()),
        (body(out=1), lambda o, y: torch.norm(o - y), numbers()),
        (body(out=1), lambda o, y: F.mse_loss(o.squeeze(1), y), numbers(1)),  # only the target broadcasts
        (body(out=1), lambda o, y: ((o.squeeze(1) - y) ** 2).mean(), numbers(1)),
        (body(out=6), lambda o, y: F.mse_loss(o.view(-1, 1, 2, 3), y), numbers(2, 3)),  # maps of one channel
    ],
)
def test_column_against_row(net: nn.Module, loss: Loss, y: Tensor) -> None:
    found = seen(net, loss, y)
    assert certain(found) == ["loss-shape-mismatch"]
    assert found[0].evidence == {"pairs": N * N, "samples": N}


def test_shapes_are_quoted() -> None:
    (found,) = seen(body(out=1), F.mse_loss, numbers())
    assert found.summary == (
        "The prediction (16, 1) and the target (16,) broadcast against each other to (16, 16): each prediction is "
        "compared with the targets of all 16 samples, 256 pairs in place of 16."
    )


def pairs_of_outputs(o: Tensor, y: Tensor) -> Tensor:
    return ((o[:, None, 0] - o[None, :, 0]).abs() - (y[:, None] - y[None, :]).abs()).square().mean()


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(out=1), F.mse_loss, numbers(1)),
        (body(out=1), lambda o, y: F.mse_loss(o.squeeze(1), y), numbers()),
        (body(), lambda o, y: (o - y).square().mean(), numbers(1)),  # three outputs on one target: an ensemble
        (body(out=N), lambda o, y: F.mse_loss(o, y), numbers(N)),  # as many outputs as samples
        (body(out=1), lambda o, y: F.mse_loss(o.expand_as(y), y), numbers(N)),  # one number for N targets each
        (body(), lambda o, y: (y.abs() * (o - y).square()).mean(), numbers(1)),  # a weight for each sample
        (body(out=1), pairs_of_outputs, numbers()),
        (body(out=1), lambda o, y: torch.cdist(o, y[:, None]).mean(), numbers()),
        (body(out=1), lambda o, y: (o.squeeze(1)[:, None] - y[None]).abs().mean(), numbers()),  # energy distance
        (body(out=1), lambda o, y: (o.squeeze(1) - y[:, None]).abs().mean(), numbers()),
        (body(out=1), lambda o, y: -torch.exp(-(o - o.T).square()).mean(), numbers()),
    ],
)
def test_healthy_broadcasts(net: nn.Module, loss: Loss, y: Tensor) -> None:
    assert certain(seen(net, loss, y)) == []


def test_a_batch_of_one_proves_nothing() -> None:
    module = Fit(body(out=1), F.mse_loss)
    assert fit(module, batches(numbers(5), numbers(), size=1)).journal.findings == []


# ------------------------------------------------------------------ wrong-loss-for-task


def kl_with_a_plus(o: Tensor, y: Tensor) -> Tensor:
    mean, logvar = o.chunk(2, 1)
    return F.mse_loss(mean, y) + 0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()


def kl_as_it_should_be(o: Tensor, y: Tensor) -> Tensor:
    mean, logvar = o.chunk(2, 1)
    return F.mse_loss(mean, y) - 0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(out=1), lambda o, y: F.cross_entropy(o, torch.zeros_like(y)), labels()),
        (body(out=1), lambda o, y: F.cross_entropy(o, y[:, None].float()), labels(2)),
        (body(), F.nll_loss, labels()),  # raw outputs, where log-probabilities are taken
        (body(), lambda o, y: -F.cross_entropy(o, y), labels()),
        (body(), lambda o, y: -0.5 * F.cross_entropy(o, y, label_smoothing=0.1), labels()),
        (body(), lambda o, y: 1 - F.mse_loss(o, y), numbers(3)),
        (body(), lambda o, y: -((o - y) ** 2).mean(), numbers(3)),
        (body(), kl_with_a_plus, numbers(3)),
        (body(out=5), lambda o, y: F.mse_loss(o, y[:, None].float()), labels(5)),  # each output drawn to the index
        (body(), lambda o, y: F.binary_cross_entropy_with_logits(o, y.sign()), numbers(3)),  # labels of -1 and 1
    ],
)
def test_wrong_losses(net: nn.Module, loss: Loss, y: Tensor) -> None:
    if loss is kl_with_a_plus:
        net = body(out=6)
    found = seen(net, loss, y)
    assert certain(found) == ["wrong-loss-for-task"]
    assert found[0].step <= 2


def test_a_similarity_that_is_made_small() -> None:
    x = numbers(5)
    turned = Fit(nn.Linear(5, 5), lambda o, y: F.cosine_similarity(o, y).mean(), rate=2.0)
    assert certain(fit(turned, batches(x, x), steps=64).journal.findings) == ["wrong-loss-for-task"]
    right = Fit(nn.Linear(5, 5), lambda o, y: 1 - F.cosine_similarity(o, y).mean(), rate=2.0)
    assert fit(right, batches(x, x), steps=64).journal.findings == []
    negative = Fit(nn.Linear(5, 5), lambda o, y: -F.cosine_similarity(o, y).mean(), rate=2.0)
    assert fit(negative, batches(x, x), steps=64).journal.findings == []


def elbo(o: Tensor, y: Tensor) -> Tensor:
    return -(-F.mse_loss(o, y, reduction="none").sum(1)).mean()


def policy_gradient(o: Tensor, y: Tensor) -> Tensor:
    policy = torch.distributions.Categorical(logits=o)
    action = policy.sample()
    return -(policy.log_prob(action) * y).mean() - 0.01 * policy.entropy().mean()


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(), elbo, numbers(3)),
        (body(out=6), kl_as_it_should_be, numbers(3)),
        (body(), policy_gradient, numbers()),
        (body(), lambda o, y: (-F.cross_entropy(o, y, reduction="none") * torch.randn(len(y))).mean(), labels()),
        (body(), lambda o, y: F.cross_entropy(o, y) - 0.1 * F.mse_loss(o, torch.zeros_like(o)), labels()),
        (body(), lambda o, y: -o.mean(), labels()),  # a critic
        (body(), lambda o, y: F.gaussian_nll_loss(o[:, 0], y, o[:, 1].exp()), numbers()),
        (body(out=1), lambda o, y: F.poisson_nll_loss(o.squeeze(1), y), numbers().abs().round()),
        (body(), lambda o, y: -F.logsigmoid(o).mean() - 0.1 * o.softmax(1).mean(), labels()),
        (body(), lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o))), labels()),
        (body(), lambda o, y: F.mse_loss(o, y), numbers(1).expand(-1, 3)),  # an ensemble
    ],
)
def test_losses_that_may_be_negative_or_unusual(net: nn.Module, loss: Loss, y: Tensor) -> None:
    assert seen(net, loss, y) == []


def test_a_contrastive_batch_of_one_has_one_candidate() -> None:
    module = Fit(body(), lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o))))
    assert fit(module, batches(numbers(5), labels(), size=1)).journal.findings == []


class Adversary(LightningModule):
    """The saturating generator of the first GAN: minus the discriminator's own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(5, 5), body(out=1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        g, d = self.optimizers()
        zeros = torch.zeros(len(batch[0]), 1)
        loss = -F.binary_cross_entropy_with_logits(self.discriminator(self.generator(batch[0])), zeros)
        g.zero_grad()
        self.manual_backward(loss)
        g.step()
        loss = F.binary_cross_entropy_with_logits(self.discriminator(batch[0]), zeros + 1)
        d.zero_grad()
        self.manual_backward(loss)
        d.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (self.generator, self.discriminator)]


def test_an_adversary_has_its_own_optimizer() -> None:
    assert fit(Adversary(), batches(numbers(5), labels())).journal.findings == []


def test_class_numbers_as_quantities_wait_for_a_bad_outcome() -> None:
    y = labels(7, n=40 * N)
    loader = batches(torch.randn(len(y), 5), y.float())
    hub = fit(Fit(body(out=1), lambda o, y: F.mse_loss(o.squeeze(1), y)), loader, steps=300, log_every_n_steps=10)
    codes = [f.code for f in hub.journal.findings]
    assert codes
    assert set(codes) == {"wrong-loss-for-task"}
    assert hub.journal.findings[0].severity == "info"


@pytest.mark.parametrize("kind", ["counts", "ratings", "yes or no", "gaps", "reals"])
def test_numbers_that_are_whole_or_few(kind: str) -> None:
    n = 40 * N
    y = {
        "counts": torch.poisson(torch.full((n,), 3.0)),
        "ratings": torch.multinomial(torch.tensor([0.05, 0.05, 0.2, 0.4, 0.3]), n, replacement=True).float(),
        "yes or no": labels(2, n).float(),
        "gaps": 5.0 * labels(4, n),
        "reals": torch.rand(n),
    }[kind]
    module = Fit(body(out=1), lambda o, y: F.mse_loss(o.squeeze(1), y))
    assert fit(module, batches(torch.randn(n, 5), y), steps=120, log_every_n_steps=5).journal.findings == []


def test_a_sum_where_the_rate_expects_a_mean() -> None:
    x, y = numbers(5), numbers(32)
    for reduction, codes in (("sum", ["wrong-loss-for-task"]), ("mean", [])):
        torch.manual_seed(0)
        module = Fit(body(out=32), lambda o, y, r=reduction: F.mse_loss(o, y, reduction=r), rate=0.2)
        assert certain(fit(module, batches(x, y), steps=64).journal.findings) == codes


def test_a_sum_that_the_rate_is_made_for() -> None:
    for loss in (
        lambda o, y: F.mse_loss(o, y, reduction="sum"),
        lambda o, y: F.mse_loss(o, y, reduction="sum") / len(y),
    ):
        module = Fit(body(out=8), loss, rate=1e-4)
        assert fit(module, batches(numbers(5), numbers(8)), steps=40).journal.findings == []


# ------------------------------------------------------------------ output-range-mismatch


@pytest.mark.parametrize(
    ("net", "loss", "y", "op"),
    [
        (body(nn.Sigmoid()), F.mse_loss, 100 * torch.rand(4 * N, 3), "nn.Sigmoid"),
        (body(nn.Sigmoid()), lambda o, y: ((o - y) ** 2).mean(), 50 + numbers(3), "nn.Sigmoid"),
        (body(nn.ReLU()), F.mse_loss, -numbers(3).abs(), "nn.ReLU"),
        (body(nn.ReLU()), F.l1_loss, numbers(3), "nn.ReLU"),
        (body(nn.Softplus()), F.smooth_l1_loss, numbers(3), "nn.Softplus"),
        (body(nn.Tanh()), F.mse_loss, 3 * numbers(3), "nn.Tanh"),
        (body(nn.Tanh(), out=1), lambda o, y: F.mse_loss(o.squeeze(1), y), 3 * numbers(), "nn.Tanh"),
        (body(nn.Hardtanh(0, 6)), F.mse_loss, 10 * numbers(3), "nn.Hardtanh"),
        (body(nn.Softmax(-1)), F.mse_loss, 5 * torch.rand(4 * N, 3), "nn.Softmax"),
        (body(nn.Softmax(-1), out=1), lambda o, y: F.binary_cross_entropy(o, y[:, None].float()), labels(2), "nn.Soft"),
    ],
)
def test_targets_out_of_reach(net: nn.Module, loss: Loss, y: Tensor, op: str) -> None:
    found = seen(net, loss, y)
    assert certain(found) == ["output-range-mismatch"]
    assert found[0].step == 1
    assert op in found[0].summary


def masked(o: Tensor, y: Tensor) -> Tensor:
    mask = y >= 0
    return (F.mse_loss(o, y, reduction="none") * mask).sum() / mask.sum()


@pytest.mark.parametrize(
    ("net", "loss", "y"),
    [
        (body(nn.Sigmoid()), F.mse_loss, torch.rand(4 * N, 3)),
        (body(nn.Sigmoid()), F.mse_loss, torch.rand(4 * N, 3) + 0.05 * numbers(3)),  # a little noise beyond the limits
        (body(nn.Sigmoid()), masked, torch.where(numbers(3) > 0, torch.rand(4 * N, 3), -100.0)),
        (body(nn.Sigmoid()), lambda o, y: F.mse_loss(10 * o - 5, y), numbers(3)),
        (body(nn.ReLU()), F.mse_loss, numbers(3).abs()),
        (body(nn.ReLU()), F.l1_loss, numbers(3).abs()),
        (body(nn.Softplus()), F.mse_loss, torch.poisson(torch.full((4 * N, 3), 2.0))),
        (body(nn.Tanh()), F.mse_loss, numbers(3).clamp(-1, 1)),
        (body(nn.LeakyReLU()), F.mse_loss, numbers(3)),
        (nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3)), F.mse_loss, 100 * numbers(3)),
        (body(nn.Sigmoid()), F.binary_cross_entropy, torch.rand(4 * N, 3)),
        (body(), lambda o, y: F.binary_cross_entropy_with_logits(o, y, weight=(y >= 0).float()), numbers(3).sign()),
        (body(nn.ReLU(), out=6), lambda o, y: F.mse_loss(o[:, :3], o[:, 3:] - 1), numbers(3)),  # no given target
    ],
)
def test_targets_within_reach(net: nn.Module, loss: Loss, y: Tensor) -> None:
    assert seen(net, loss, y) == []


# ------------------------------------------------------------------ batch-mixing


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, first: Callable[[Tensor], Tensor] = lambda x: x, last: int = 1) -> None:
        super().__init__()
        self.layer, self.first, self.last = layer, first, last
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        h = h[0] if isinstance(h, tuple) else h
        return self.head(h.mean(self.last))


SEQUENCES = (torch.randn(4 * N, 6, 8), labels())


@pytest.mark.parametrize(
    "net",
    [
        Recurrent(nn.LSTM(8, 8)),
        Recurrent(nn.GRU(8, 8)),
        Recurrent(nn.MultiheadAttention(8, 2)),
        Recurrent(nn.TransformerEncoderLayer(8, 2, 16)),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Softmax(0), Swap(torch.log)),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.LogSoftmax(0)),
    ],
)
def test_samples_that_mix(net: nn.Module) -> None:
    found = fit(Fit(net, F.nll_loss if isinstance(net, nn.Sequential) else F.cross_entropy), batches(*SEQUENCES))
    assert certain(found.journal.findings) == ["batch-mixing"]
    assert found.journal.findings[0].step == 1


@pytest.mark.parametrize(
    "net",
    [
        Recurrent(nn.LSTM(8, 8, batch_first=True)),
        Recurrent(nn.LSTM(8, 8), lambda x: x.transpose(0, 1), last=0),
        Recurrent(nn.MultiheadAttention(8, 2, batch_first=True)),
        Recurrent(nn.TransformerEncoderLayer(8, 2, 16), lambda x: x.transpose(0, 1), last=0),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)),
        nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Flatten(), nn.Linear(48, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3)),
    ],
)
def test_samples_apart(net: nn.Module) -> None:
    assert fit(Fit(net, F.cross_entropy), batches(*SEQUENCES)).journal.findings == []


def test_a_scrambled_reshape_waits_for_a_bad_outcome() -> None:
    net = Recurrent(nn.GRU(8, 8), lambda x: x.reshape(6, -1, 8), last=0)
    (found,) = fit(Fit(net, F.cross_entropy), batches(*SEQUENCES)).journal.findings
    assert (found.code, found.severity) == ("batch-mixing", "info")


def test_time_first_batches_and_comparisons_in_the_loss_are_not_mixing() -> None:
    def time_first(items: Any) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in items], 1), torch.stack([y for _, y in items])

    module = Fit(Recurrent(nn.LSTM(8, 8), last=0), F.cross_entropy)
    assert fit(module, batches(*SEQUENCES, collate_fn=time_first)).journal.findings == []
    contrast = Fit(body(), lambda o, y: F.cross_entropy(F.normalize(o, dim=1) @ o.T, torch.arange(len(o))))
    assert fit(contrast, batches(numbers(5), labels())).journal.findings == []


def test_attention_between_samples_on_purpose_is_not_told_at_once() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.mean(1, keepdim=True)  # (N, 1, 8): the samples are the sequence
            return self.head((rows + self.attention(rows, rows, rows)[0])[:, 0])

    found = fit(Fit(Between(), F.cross_entropy), batches(*SEQUENCES)).journal.findings
    assert certain(found) == []


# ------------------------------------------------------------------ missing-nonlinearity and insufficient-capacity


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(5, 16), nn.Linear(16, 3)),
        nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.1), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)),
        nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (4, 4)), nn.Flatten(), nn.Linear(16, 3), nn.LogSoftmax(1)),
        nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 8, 3), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(8, 3)),
    ],
)
def test_layers_stacked_bare(net: nn.Module) -> None:
    found = seen(net, F.cross_entropy, labels())
    assert [(f.code, f.severity, f.step) for f in found] == [
        ("missing-nonlinearity", "info", 1),
        ("missing-nonlinearity", "warning", 4),
    ]
    assert found[0].where[0].startswith("net.")


def test_a_linear_model_of_what_is_linear_is_meant() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    x = torch.randn(960, 5)
    module = Fit(net, F.mse_loss, 0.1)
    found = fit(module, batches(x, x @ torch.randn(5, 2) / 2), steps=400, max_epochs=-1).journal.findings
    assert [f.code for f in found] == ["missing-nonlinearity"]
    assert certain(found) == []


class PostNorm(nn.Module):
    """An input projection right before attention's own: two matrices with nothing between, as in every transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(5, 3),
        body(),
        nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 3)),
        nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 3)),  # low rank on purpose
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3)),  # an embedding and its head
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16), nn.Linear(16, 3)),
        nn.Sequential(nn.Linear(5, 16), Swap(torch.sin), nn.Linear(16, 3)),
        nn.Sequential(nn.Linear(5, 16), Swap(lambda x: x * x), nn.Linear(16, 3)),
        nn.Sequential(
            nn.Unflatten(1, (1, 5)),
            *(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8, padding=1), nn.Conv1d(8, 8, 1)),
            *(nn.Flatten(), nn.ReLU(), nn.Linear(24, 3)),
        ),
    ],
)
def test_layers_that_may_stand_so(net: nn.Module) -> None:
    assert seen(net, F.cross_entropy, labels()) == []


def test_transformers_and_recurrent_nets_are_not_bare() -> None:
    for net in (PostNorm(), Recurrent(nn.LSTM(8, 8, batch_first=True))):
        assert fit(Fit(net, F.cross_entropy), batches(*SEQUENCES)).journal.findings == []


def test_mostly_bare_waits_for_a_bad_outcome() -> None:
    net = nn.Sequential(nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    (found,) = seen(net, F.cross_entropy, labels())
    assert (found.code, found.severity) == ("missing-nonlinearity", "info")
    assert found.where == ("net.0 -> net.1", "net.1 -> net.2")


def test_one_unit_that_everything_goes_through() -> None:
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1), nn.ReLU(), nn.Linear(1, 3))
    (found,) = seen(net, F.cross_entropy, labels())
    assert (found.code, found.severity, found.where) == ("insufficient-capacity", "info", ("net.2",))


def test_a_run_that_stalls_is_told_and_one_that_overflows_is_not() -> None:
    """Inputs say nothing about the labels, so nothing can be learned; or the rate throws the weights away."""
    for rate, severities in ((1e-3, ["info", "warning"]), (1e30, ["info"])):
        net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1), nn.ReLU(), nn.Linear(1, 3))
        y = torch.randint(3, (40 * N,))
        hub = fit(Fit(net, F.cross_entropy, rate), batches(torch.randn(len(y), 5), y), steps=400, log_every_n_steps=20)
        found = [f.severity for f in hub.journal.findings if f.code == "insufficient-capacity"]
        assert (found, hub.outcome.bad) == (severities, True)


def test_one_unit_beside_others_is_a_gate() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.gate, self.out = nn.Linear(5, 16), nn.Linear(16, 1), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.inside(x))
            return self.out(h * torch.sigmoid(self.gate(h)))

    assert seen(Gated(), F.cross_entropy, labels()) == []


# ------------------------------------------------------------------ in every kind of loop


def test_in_mixed_precision() -> None:
    found = seen(body(nn.Softmax(-1)), F.cross_entropy, labels(), precision="bf16-mixed")
    assert certain(found) == ["probabilities-as-logits"]
    assert seen(body(), F.cross_entropy, labels(), precision="bf16-mixed") == []
    found = seen(body(out=1), F.mse_loss, numbers(), precision="bf16-mixed")
    assert certain(found) == ["loss-shape-mismatch"]


def test_with_accumulation_and_several_terms() -> None:
    def both(o: Tensor, y: Tensor) -> Tensor:
        return 0.3 * F.mse_loss(o[:, :1], y.float()) + F.cross_entropy(o.softmax(1), y)

    found = seen(body(), both, labels(), accumulate_grad_batches=2, steps=2)
    assert sorted(certain(found)) == ["loss-shape-mismatch", "probabilities-as-logits"]


class ByHand(Fit):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(self(batch[0]), batch[1]))
        optimizer.step()


def test_in_manual_optimisation() -> None:
    sick = fit(ByHand(body(nn.Softmax(-1)), F.cross_entropy), batches(numbers(5), labels()))
    assert certain(sick.journal.findings) == ["probabilities-as-logits"]
    assert fit(ByHand(body(), F.cross_entropy), batches(numbers(5), labels())).journal.findings == []


def test_compiled_it_is_blind_and_silent() -> None:
    module = torch.compile(Fit(body(nn.Softmax(-1)), F.cross_entropy), backend="aot_eager")
    assert fit(module, batches(numbers(5), labels()), steps=2).journal.findings == []  # type: ignore[arg-type]


def test_a_checkpointed_region_is_not_run_again() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.runs = body(nn.Sigmoid()), 0

        def part(self, x: Tensor) -> Tensor:
            self.runs += 1
            return self.inside(x)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)

    net = Checkpointed()
    fit(Fit(net, lambda o, y: ((o - y) ** 2).mean()), batches(numbers(5), numbers(3)), steps=2)
    assert net.runs == 4  # forward and backward of two steps; the probe's runs are taken back


class Full(LightningModule):
    """Random in every way, and with state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3), nn.Softmax(-1))
        )
        self.register_buffer("calls", torch.zeros(()))
        self.history: list[float] = []
        self.frozen = nn.Dropout().eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(float(self.calls))
        self.log("mean", x.mean())
        return self.net(x + 0.1 * torch.randn_like(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_the_run_is_bitwise_the_run_without_it() -> None:
    x, y = numbers(5), labels()
    torch.manual_seed(1)
    start = Full()
    ends = []
    for callbacks in ([], [LossCheck(every_n_steps=1)]):
        torch.manual_seed(2)
        module = copy.deepcopy(start)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=3,
            callbacks=callbacks,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, batches(x, y))
        assert all(c.failed is None for c in callbacks)
        ends.append((module, torch.get_rng_state()))
    (a, rng_a), (b, rng_b) = ends
    assert torch.equal(rng_a, rng_b)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert a.history == b.history
    assert not b.frozen.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in b.modules())


def test_mute_state_and_arguments() -> None:
    muted = LossCheck(mute=("probabilities-as-logits",))
    assert seen(body(nn.Softmax(-1)), F.cross_entropy, labels(), check=muted) == []
    assert LossCheck(auto_remedy=True).auto_remedy
    with pytest.raises(MisconfigurationException, match="every_n_steps"):
        LossCheck(every_n_steps=0)


def test_a_mended_loss_is_taken_back() -> None:
    class Mended(Fit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self(batch[0])
            return F.cross_entropy(logits.softmax(1) if self.global_step < 2 else logits, batch[1])

    hub = fit(Mended(body(), F.cross_entropy), batches(numbers(5), labels()), steps=40, log_every_n_steps=4)
    assert certain(hub.journal.findings) == ["probabilities-as-logits"]
    assert "probabilities-as-logits" not in hub.journal.told


def test_signs_and_factors_are_followed() -> None:
    o = torch.randn(4, 3, requires_grad=True)
    loss = 2 - (-0.5 * F.mse_loss(o, torch.zeros(4, 3)) + 3 * F.cross_entropy(o, torch.zeros(4).long())) / 4
    found = {t.kind: (t.sign, round(t.divided, 4)) for t in take_apart(loss).terms}
    assert found == {"mse": (1, 8.0), "cross-entropy": (-1, 1.3333)}
