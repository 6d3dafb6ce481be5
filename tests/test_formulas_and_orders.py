"""What formulas presume, what the order of samples shows, and how faint a bond may be: each rule with its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_stall import (
    ActivationHealth,
    InputHealth,
    LossCheck,
    OptimizerHealth,
    PlateauWatch,
    StallReport,
    stall_callbacks,
)
from lightning_stall.testing import watch

SIZE = 640
DRAW = torch.Generator().manual_seed(5)
X = torch.randn(SIZE, 10, generator=DRAW)
W = torch.randn(10, 4, generator=DRAW)
CLASSES = (X @ W + 0.3 * torch.randn(SIZE, 4, generator=DRAW)).argmax(1)
YES = (X @ W[:, 0] > 0).float()

Loss = Callable[["Trained", Any], Tensor]


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def net(outputs: int, inputs: int = 10, width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


class Trained(LightningModule):
    def __init__(self, model: nn.Module, loss: Loss, rate: float = 3e-3) -> None:
        super().__init__()
        self.model, self.criterion, self.rate = model, loss, rate

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def batches(*fields: Tensor, size: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*fields), batch_size=size, shuffle=True)


def cross_entropy(m: Trained, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def squared(m: Trained, b: Any) -> Tensor:
    return F.mse_loss(m(b[0]).squeeze(-1), b[1])


def first(report: StallReport) -> str:
    return report.causes[0].code if report.causes else ""


def family(module: LightningModule, train: Any, epochs: int = 6) -> StallReport:
    return watch(module, train, *stall_callbacks()[:-1], max_epochs=epochs)


# --- labels of -1 and 1 -----------------------------------------------------------------------------------------------


def margin(sign: Callable[[Tensor], Tensor]) -> dict[str, Loss]:
    def answer(m: Trained, b: Any) -> Tensor:
        return m(b[0])[:, 0]

    return {
        "hinge": lambda m, b: F.relu(1 - sign(b[1]) * answer(m, b)).mean(),
        "clamp": lambda m, b: (1 - answer(m, b) * sign(b[1])).clamp(min=0).mean(),
        "maximum": lambda m, b: torch.maximum(torch.zeros(()), 1 - sign(b[1]) * answer(m, b)).mean(),
        "softplus": lambda m, b: F.softplus(-sign(b[1]) * answer(m, b)).mean(),
        "logistic": lambda m, b: torch.log1p(torch.exp(-sign(b[1]) * answer(m, b))).mean(),
        "log-sigmoid": lambda m, b: -F.logsigmoid(sign(b[1]) * answer(m, b)).mean(),
        "soft-margin": lambda m, b: F.soft_margin_loss(answer(m, b), sign(b[1])),
        "hinge-embedding": lambda m, b: F.hinge_embedding_loss(answer(m, b).abs(), sign(b[1])),
        "ranking": lambda m, b: F.margin_ranking_loss(answer(m, b), -answer(m, b), sign(b[1]), 0.5),
        "cosine": lambda m, b: F.cosine_embedding_loss(m.model[0](b[0]), m.model[0](b[0].roll(1, 0)), sign(b[1])),  # type: ignore[index,operator]
    }


@pytest.mark.parametrize("form", list(margin(torch.sign)))
def test_a_margin_needs_signs(form: str) -> None:
    told = watch(Trained(net(1), margin(lambda y: y)[form]), batches(X, YES), LossCheck(), max_steps=4)
    assert first(told) == "wrong-loss-for-task"
    assert told.causes[0].findings[0].step <= 2
    right = watch(Trained(net(1), margin(lambda y: 2 * y - 1)[form]), batches(X, YES), LossCheck(), max_steps=4)
    assert not right.causes


def test_a_mask_outside_a_margin_is_none_of_its_labels() -> None:
    def masked(m: Trained, b: Any) -> Tensor:
        return (b[1] * F.relu(1 - m(b[0])[:, 0])).mean() + (F.relu(b[1] * m(b[0])[:, 0])).mean()

    assert not watch(Trained(net(1), masked), batches(X, YES), LossCheck(), max_steps=4).causes


# --- logarithms -------------------------------------------------------------------------------------------------------


def divergence(read: Callable[[Tensor], Tensor]) -> Loss:
    return lambda m, b: F.kl_div(read(m(b[0])), F.one_hot(b[1], 4).float(), reduction="batchmean")


def alignment(read: Callable[[Tensor], Tensor]) -> Loss:
    def loss(m: Trained, b: Any) -> Tensor:
        out = read(m(b[0].reshape(-1, 5, 2))).transpose(0, 1)
        lengths = torch.full((len(b[0]),), 5), torch.full((len(b[0]),), 2)
        return F.ctc_loss(out, 1 + b[1][:, None].expand(-1, 2) % 2, *lengths)

    return loss


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda z: z.log_softmax(-1), ""),
        (lambda z: z.softmax(-1), "probabilities-as-logits"),
        (lambda z: z, "wrong-loss-for-task"),
    ],
)
@pytest.mark.parametrize(("form", "inputs"), [(divergence, 10), (alignment, 2)])
def test_some_losses_take_logarithms(form: Any, inputs: int, read: Any, told: str) -> None:
    report = watch(Trained(net(4, inputs), form(read)), batches(X, CLASSES), LossCheck(), max_steps=4)
    assert first(report) == told


# --- the wrong way round ----------------------------------------------------------------------------------------------


def dice(answer: Tensor, mask: Tensor) -> Tensor:
    return ((2 * (answer * mask).sum(1) + 1) / (answer.sum(1) + mask.sum(1) + 1)).mean()


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (dice, "wrong-loss-for-task"),
        (lambda p, t: (p * t).sum() / (p.sum() + t.sum() - (p * t).sum()), "wrong-loss-for-task"),
        (lambda p, t: 1 - dice(p, t), ""),
        (lambda p, t: -dice(p, t).log(), ""),
        (lambda p, t: F.binary_cross_entropy(p, t) + 1 - dice(p, t), ""),
    ],
)
def test_an_overlap_is_to_grow(loss: Any, told: str) -> None:
    mask = (X > 0.5).float()
    module = Trained(net(10), lambda m, b: loss(m(b[0]).sigmoid(), b[1]))
    assert first(watch(module, batches(X, mask), LossCheck(), max_steps=4)) == told


# --- class numbers ----------------------------------------------------------------------------------------------------


def islands(order: Tensor) -> tuple[Tensor, Tensor]:
    """Eight clusters along a line with noise, numbered in this order."""
    g = torch.Generator().manual_seed(2)
    place = torch.arange(SIZE) % len(order)
    line = torch.linspace(-2, 2, len(order))[place]
    x = torch.stack([line, line.square() - 1.5, *(torch.zeros(SIZE),) * 4], 1)
    return x + 0.1 * torch.randn(SIZE, 6, generator=g), order[place].float()


@pytest.mark.parametrize("loss", [squared, lambda m, b: F.l1_loss(m(b[0]).squeeze(-1), b[1])])
def test_numbers_in_no_order_are_names(loss: Any) -> None:
    def run(order: Tensor, epochs: int) -> StallReport:
        module = Trained(net(1, 6, 8), loss, rate=1e-2)
        return watch(module, batches(*islands(order)), LossCheck(), PlateauWatch(), max_epochs=epochs)

    assert first(run(torch.tensor([3, 7, 0, 5, 1, 6, 2, 4]), 6)) == "wrong-loss-for-task"
    assert not run(torch.arange(8), 6).causes


# --- samples that meet each other -------------------------------------------------------------------------------------


def words(seed: int = 0) -> Tensor:
    """(SIZE, 12) ids of a chain in which each has two likely followers."""
    g = torch.Generator().manual_seed(seed)
    step = torch.full((16, 16), 0.01)
    step[torch.arange(16), torch.randperm(16, generator=g)] = 1
    ids = [torch.randint(16, (SIZE,), generator=g)]
    for _ in range(11):
        ids.append(torch.multinomial(step[ids[-1]], 1, generator=g)[:, 0])
    return torch.stack(ids, 1)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell, self.out = nn.Embedding(16, 16), nn.GRU(16, 24, batch_first=True), nn.Linear(24, 16)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.cell(self.table(ids))[0])
        return out


@pytest.mark.parametrize(("swapped", "told"), [(True, "batch-mixing"), (False, "")])
def test_a_loss_that_depends_on_the_order_of_its_samples(swapped: bool, told: str) -> None:
    def following(m: Trained, b: Any) -> Tensor:
        out = m(b[0][:, :-1])
        out = out.transpose(0, 1) if swapped else out
        return F.cross_entropy(out.reshape(-1, 16), b[0][:, 1:].flatten())

    assert first(family(Trained(Reader(), following, 1e-2), batches(words()), 8)) == told


class OfAll(nn.Module):
    """Every sample gets what the mean of all is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(10, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).relu().mean(0, keepdim=True).expand(len(x), -1))
        return out


def test_an_output_that_all_samples_share() -> None:
    assert first(family(Trained(OfAll(), cross_entropy), batches(X, CLASSES))) == "batch-mixing"


def test_a_softmax_over_the_samples_behind_a_logarithm() -> None:
    module = Trained(net(4), lambda m, b: F.cross_entropy((m(b[0]).softmax(0) + 1e-8).log(), b[1]))
    assert first(watch(module, batches(X, CLASSES), LossCheck(), max_steps=4)) == "batch-mixing"
    right = Trained(net(4), lambda m, b: F.nll_loss((m(b[0]).softmax(1) + 1e-8).log(), b[1]))
    assert not watch(right, batches(X, CLASSES), LossCheck(), max_steps=4).causes


# --- targets and inputs that a step makes -----------------------------------------------------------------------------


def test_a_cast_that_leaves_one_class() -> None:
    module = Trained(net(2), lambda m, b: F.cross_entropy(m(b[0]), (b[1] / 4).long()))
    assert first(watch(module, batches(X, CLASSES), InputHealth(), max_epochs=3)) == "uninformative-targets"


def test_a_class_of_noughts_that_is_the_formula() -> None:
    def contrast(m: Trained, b: Any) -> Tensor:  # the pair of each sample is in the first column
        one, other = (F.normalize(m(b[0] + 0.1 * torch.randn_like(b[0])), dim=1) for _ in range(2))
        apart = (one @ other.T)[~torch.eye(len(one), dtype=torch.bool)].view(len(one), -1)
        logits = torch.cat([(one * other).sum(1, keepdim=True), apart], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(one), dtype=torch.long))

    assert not watch(Trained(net(8), contrast), batches(X, CLASSES), InputHealth(), max_epochs=3).causes


def test_codes_that_a_step_casts_to_float() -> None:
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(12, (SIZE, 3), generator=g)
    worth = torch.randn(12, generator=g)[codes].sum(1)

    class Cast(nn.Module):
        def __init__(self, named: bool) -> None:
            super().__init__()
            self.named, self.net = named, net(1, 36 if named else 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(F.one_hot(x, 12).flatten(1).float() if self.named else x.float())
            return out

    assert first(family(Trained(Cast(False), squared), batches(codes, worth), 8)) == "categorical-as-numeric"
    assert not family(Trained(Cast(True), squared), batches(codes, worth), 8).causes


def test_inputs_that_a_step_makes_too_small() -> None:
    module = Trained(net(4), lambda m, b: F.cross_entropy(m(b[0] / 255 / 255), b[1]), 1e-3)
    assert first(family(module, batches(255 * X, CLASSES))) == "unscaled-inputs"
    rare = torch.poisson(torch.full((SIZE, 200), 0.05), generator=torch.Generator().manual_seed(3))
    more = (rare[:, :20].sum(1) > rare[:, 20:40].sum(1)).long()
    counted = Trained(net(2, 200), lambda m, b: F.cross_entropy(m(b[0] / 1.0), b[1]), 1e-3)
    assert not family(counted, batches(rare, more)).causes


# --- rates and units --------------------------------------------------------------------------------------------------


def test_a_rate_of_nought() -> None:
    told = watch(Trained(net(4), cross_entropy, 0.0), batches(X, CLASSES), OptimizerHealth(), PlateauWatch())
    assert first(told) == "learning-rate-too-low"
    assert "0 at every step" in told.causes[0].summary


def test_units_that_long_steps_have_killed() -> None:
    parts: list[Any] = [ActivationHealth(), OptimizerHealth(), PlateauWatch()]
    told = watch(Trained(net(4), cross_entropy, 0.08), batches(X, torch.randint(4, (SIZE,))), *parts)
    codes = [c.code for c in told.causes]
    assert codes[:1] == ["learning-rate-too-high"]
    born = net(4)
    for layer in born[:3]:  # type: ignore[index]
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, -20.0)
    told = watch(Trained(born, cross_entropy, 1e-3), batches(X, CLASSES), *parts)
    assert first(told) == "dead-activations"


def test_of_a_layer_of_one_unit_it_says_less_that_it_is_dead() -> None:
    one = net(4, width=1)
    with torch.no_grad():
        one[2].bias.fill_(-5.0)  # type: ignore[index]
    codes = [c.code for c in family(Trained(one, cross_entropy, 1e-2), batches(X, CLASSES), 10).causes]
    assert codes.index("insufficient-capacity") < codes.index("dead-activations")


# --- faint bonds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "told"), [(0.07, ""), (0.0, "uninformative-targets")])
@pytest.mark.parametrize("classes", [False, True])
def test_a_faint_bond_is_a_bond(share: float, told: str, classes: bool) -> None:
    g = torch.Generator().manual_seed(11)
    x = torch.randn(1200, 10, generator=g)
    y = share**0.5 * x[:, 0] + (1 - share) ** 0.5 * torch.randn(1200, generator=g)
    y = (y > 0).float() if classes else y

    def loss(m: Trained, b: Any) -> Tensor:
        fit = F.binary_cross_entropy_with_logits if classes else F.mse_loss
        return fit(m(b[0])[:, 0], b[1])

    assert first(family(Trained(net(1, width=32), loss, 1e-3), batches(x, y), 5)) == told


# --- ids in a table of floats -----------------------------------------------------------------------------------------


class Shops(nn.Module):
    """A table whose first column is the number of the shop: looked up, or taken for a quantity."""

    def __init__(self, looked_up: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4) if looked_up else None
        self.net = net(1, 2 + (4 if looked_up else 1))

    def forward(self, x: Tensor) -> Tensor:
        shop = x[:, :1] if self.table is None else self.table(x[:, 0].long())
        out: Tensor = self.net(torch.cat([shop, x[:, 1:]], 1))
        return out


@pytest.mark.parametrize(("looked_up", "told"), [(False, {"categorical-as-numeric"}), (True, set())])
def test_a_column_that_is_looked_up_is_no_quantity(looked_up: bool, told: set[str]) -> None:
    g = torch.Generator().manual_seed(4)
    shop = torch.randint(50, (1200, 1), generator=g).float()
    x = torch.cat([shop, torch.randn(1200, 2, generator=g)], 1)
    y = torch.randn(50, generator=g)[shop[:, 0].long()] + 0.3 * x[:, 1]
    health = InputHealth(auto_remedy=True, standardize=True)
    report = watch(Trained(Shops(looked_up), squared), batches(x, y), health, max_epochs=3)
    seen = {f.code for f in report.findings} & {"categorical-as-numeric", "unscaled-inputs", "disparate-feature-scales"}
    assert told <= seen if told else not seen


# --- what else a loss may be given ------------------------------------------------------------------------------------


def test_logits_that_cannot_be_negative() -> None:
    def loss(m: Trained, b: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(b[0]).relu()[:, 0], b[1])

    assert first(watch(Trained(net(1), loss), batches(X, YES), LossCheck(), max_steps=4)) == "output-range-mismatch"
    only_ones = watch(Trained(net(1), loss), batches(X, torch.ones(SIZE)), LossCheck(), max_steps=4)
    assert not only_ones.causes


@pytest.mark.parametrize(("dim", "told"), [(0, "batch-mixing"), (1, ""), (2, "wrong-loss-for-task")])
def test_shares_of_another_dimension(dim: int, told: str) -> None:
    picture = torch.randn(128, 1, 6, 6, generator=DRAW)
    module = Trained(nn.Conv2d(1, 3, 3, padding=1), lambda m, b: F.nll_loss(m(b[0]).log_softmax(dim), b[1]))
    masks = (picture[:, 0] > 0).long()
    assert first(watch(module, batches(picture, masks), LossCheck(), max_steps=4)) == told


def test_targets_of_one_value() -> None:
    alike = watch(Trained(net(1), squared), batches(X, torch.full((SIZE,), 3.0)), InputHealth(), max_epochs=2)
    assert first(alike) == "uninformative-targets"
    rare = torch.zeros(SIZE)
    rare[::80] = 1.0
    assert not watch(Trained(net(1), squared), batches(X, rare), InputHealth(), max_epochs=2).causes


@pytest.mark.parametrize(("shuffle", "seen"), [(False, True), (True, False)])
def test_numbers_in_order(shuffle: bool, seen: bool) -> None:
    y = (X @ W[:, 0]).tanh() + 0.3 * X[:, 1] * X[:, 2]
    order = y.argsort()
    rows = DataLoader(TensorDataset(X[order], y[order] / y.std()), batch_size=32, shuffle=shuffle)
    report = watch(Trained(net(1), squared, 1e-3), rows, InputHealth(), max_epochs=2)
    found = [f for f in report.findings if f.code == "unshuffled-data"]
    assert bool(found) == seen
    if seen:
        assert found[0].evidence["grouping"] > 0.95


def test_targets_of_a_loss_written_by_hand_are_known() -> None:
    def by_hand(m: Trained, b: Any) -> Tensor:
        z = m(b[0])
        return (z.logsumexp(1) - z.gather(1, b[1][:, None])[:, 0]).mean()

    order = CLASSES.argsort()
    rows = DataLoader(TensorDataset(X[order], CLASSES[order]), batch_size=32)
    assert first(watch(Trained(net(4), by_hand), rows, InputHealth(), max_epochs=2)) == "unshuffled-data"


# --- several optimizers -----------------------------------------------------------------------------------------------


class Adversaries(LightningModule):
    def __init__(self, maker: float, critic: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rates = maker, critic
        self.maker = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        makes, judges = self.optimizers()  # type: ignore[attr-defined]
        made = self.maker(torch.randn(len(batch[0]), 4))
        judges.zero_grad()
        self.manual_backward(F.softplus(-self.critic(batch[0])).mean() + F.softplus(self.critic(made.detach())).mean())
        judges.step()
        makes.zero_grad()
        self.manual_backward(F.softplus(-self.critic(made)).mean())
        makes.step()

    def configure_optimizers(self) -> Any:
        parts = zip((self.maker, self.critic), self.rates, strict=True)
        return [torch.optim.Adam(part.parameters(), lr=rate, betas=(0.5, 0.9)) for part, rate in parts]


@pytest.mark.parametrize(
    ("maker", "critic", "told"),
    [
        (2e-3, 2e-3, ""),
        (1e-4, 4e-4, ""),
        (1e-7, 2e-3, "learning-rate-too-low"),
        (2e-3, 1e-7, "learning-rate-too-low"),
        (2e-3, 0.7, "learning-rate-too-high"),
    ],
)
def test_the_pace_of_one_of_two_optimizers(maker: float, critic: float, told: str) -> None:
    angle = 6.28 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    report = watch(Adversaries(maker, critic), batches(ring, size=64), OptimizerHealth(), PlateauWatch(), max_epochs=8)
    assert first(report) == told
    if told:
        assert list(report.causes[0].findings[0].where) == [f"optimizer {int(critic != 2e-3)}"]


@pytest.mark.parametrize(("flat", "told"), [(False, "loss-shape-mismatch"), (True, "")])
def test_targets_that_a_step_makes_in_another_shape(flat: bool, told: str) -> None:
    def gathered(m: Trained, b: Any) -> Tensor:
        reward = b[0][:, :4].gather(1, b[1][:, None])
        value = m(b[0]).squeeze(-1)
        return ((reward.squeeze(-1) if flat else reward) - value).pow(2).mean()

    assert first(watch(Trained(net(1), gathered), batches(X, CLASSES), LossCheck(), max_steps=4)) == told


def test_all_pairs_that_are_meant() -> None:
    def kernel(m: Trained, b: Any) -> Tensor:
        z = m(b[0])[:, 0]
        grid = torch.linspace(-1, 1, len(z))[:, None]
        return (torch.exp(-((grid - z) ** 2)).mean(1) - 0.5).square().mean()

    def order(m: Trained, b: Any) -> Tensor:
        z, y = m(b[0])[:, 0], b[1]
        return F.softplus(-(z[:, None] - z) * (y[:, None] - y).sign()).mean()

    for loss in (kernel, order):
        assert not watch(Trained(net(1), loss), batches(X, YES), LossCheck(), max_steps=4).causes


@pytest.mark.parametrize(
    ("read", "log_input", "told"),
    [
        (torch.sigmoid, False, "output-range-mismatch"),
        (torch.sigmoid, True, "output-range-mismatch"),
        (F.softplus, False, ""),
        (lambda z: z, True, ""),
    ],
)
def test_rates_that_the_last_activation_cannot_reach(read: Any, log_input: bool, told: str) -> None:
    counts = torch.poisson((2 + X[:, 0] * 0.5).exp(), generator=torch.Generator().manual_seed(6))

    def likelihood(m: Trained, b: Any) -> Tensor:
        return F.poisson_nll_loss(read(m(b[0])[:, 0]), b[1], log_input=log_input)

    assert first(watch(Trained(net(1), likelihood), batches(X, counts), LossCheck(), max_steps=4)) == told


class WarmingUp(Trained):
    """Its rate is set in its own step, and rises to a height that the run never comes to."""

    def __init__(self, steps: int) -> None:
        super().__init__(net(4), cross_entropy, 3e-3)
        self.steps = steps

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:  # type: ignore[override]
        for group in optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.trainer.global_step + 1) / self.steps)
        optimizer.step(closure=closure)


@pytest.mark.parametrize(("steps", "told"), [(1_000_000, "learning-rate-too-low"), (30, "")])
def test_a_rate_that_rises_throughout(steps: int, told: str) -> None:
    assert first(family(WarmingUp(steps), batches(X, CLASSES), 10)) == told


def test_class_numbers_beside_a_number_alone() -> None:
    def beside(items: Any) -> dict[str, Tensor]:
        x, y = (torch.stack(values) for values in zip(*items, strict=True))
        return {"x": x, "y": y, "weight": torch.tensor(2.0)}

    def loss(m: Trained, b: Any) -> Tensor:
        return b["weight"] * F.mse_loss(m(b["x"])[:, 0], b["y"])

    rows = DataLoader(TensorDataset(*islands(torch.tensor([3, 7, 0, 5, 1, 6, 2, 4]))), 32, collate_fn=beside)
    check = LossCheck()
    watch(Trained(net(1, 6, 8), loss, rate=1e-2), rows, check, max_epochs=4)
    assert not check.failed


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda z: 2.0 * torch.sigmoid(z), "output-range-mismatch"),
        (lambda z: torch.tanh(z) / 2, "output-range-mismatch"),
        (lambda z: -F.relu(z), "output-range-mismatch"),
        (lambda z: 8.0 * torch.sigmoid(z), ""),
        (lambda z: torch.tanh(z) * 8, ""),
        (lambda z: 2.0 * z, ""),
    ],
)
def test_a_squashed_output_times_a_constant(read: Any, told: str) -> None:
    y = (3 + X[:, 0]).clamp(0.5, 6)
    module = Trained(net(1), lambda m, b: F.smooth_l1_loss(read(m(b[0])[:, 0]), b[1]))
    assert first(watch(module, batches(X, y), LossCheck(), max_steps=4)) == told
