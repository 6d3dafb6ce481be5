"""Models that learn from other models, from few examples, or from rewards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.zoo.case import Training, well
from benchmarks.zoo.data import Split, generator, moons, predict, split
from benchmarks.zoo.later._well_common import hit_rate, loader, stack


def digits(seed: int, share: float = 0.75) -> Split:
    x, y = load_digits(return_X_y=True)
    return split(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), seed, share)


class MeanTeacher(LightningModule):
    """Thirty labelled moons; a slow copy of the net judges the rest and gives the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.student = stack(2, 64, 64, 2)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        known = y >= 0
        out = self.student(x + 0.1 * torch.randn_like(x))
        with torch.no_grad():
            told = self.teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
        same = (out.softmax(1) - told).square().sum(1).mean()
        loss = F.cross_entropy(out[known], y[known]) if known.any() else out.sum() * 0
        self.log_dict({"labelled": loss, "agreement": same})
        return loss + min(1.0, self.global_step / 100) * same

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.02)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.student.parameters(), lr=4e-3)


@well("v-thirty-labels-and-a-slow-copy", "semi-supervised", "accuracy of the slow copy, 0.93 and more")
def mean_teacher(seed: int) -> Training:
    d = moons(seed, n=900, noise=0.12)
    y = d.y.clone()
    y[60:] = -1
    x, y = torch.cat([d.x, d.x[:60].repeat(5, 1)]), torch.cat([y, y[:60].repeat(5)])
    return Training(MeanTeacher(), loader(x, y, size=80), hit_rate(d.x_test, d.y_test), trainer={"max_epochs": 25})


class TwoNoisyViews(LightningModule):
    """Predicts a slow copy's code of another view; no labels, no negatives, a loss between -1 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32))
        self.slow = copy.deepcopy(self.online).requires_grad_(False)
        self.guess = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.online[:3](x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        views = [x * (torch.rand_like(x) > 0.3) + 0.1 * torch.randn_like(x) for _ in range(2)]
        with torch.no_grad():
            told = [self.slow(v) for v in views]
        said = [self.guess(self.online(v)) for v in views]
        loss = -0.5 * sum(F.cosine_similarity(a, b).mean() for a, b in zip(said, told[::-1], strict=True))
        self.log("minus_cosine", loss)
        return loss

    def on_before_zero_grad(self, optimizer: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 0.02)

    def configure_optimizers(self) -> Any:
        parameters = [*self.online.parameters(), *self.guess.parameters()]
        return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)


@well("v-no-negatives", "self-supervised", "accuracy of the ten nearest neighbours in the learnt space, 0.95 and more")
def no_negatives(seed: int) -> Training:
    d = digits(seed)

    def score(m: Any) -> float:
        known, new = (F.normalize(predict(m, v), dim=1) for v in (d.x, d.x_test))
        near = d.y[(new @ known.T).topk(10, 1).indices]
        return (near.mode(1).values == d.y_test).float().mean().item()

    return Training(TwoNoisyViews(), loader(d.x, size=128, drop_last=True), score, trainer={"max_epochs": 20})


class Student(LightningModule):
    """Learns the soft answers of a larger, fitted net at temperature three."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.__dict__["teacher"] = teacher.eval()
        self.net = stack(64, 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            told = (self.teacher(x) / 3).log_softmax(1)
        z = self(x)
        soft = 9 * F.kl_div((z / 3).log_softmax(1), told, log_target=True, reduction="batchmean")
        self.log_dict({"soft": soft, "hard": F.cross_entropy(z, y)})
        return 0.8 * soft + 0.2 * F.cross_entropy(z, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        opt = torch.optim.Adam(self.parameters(), lr=2e-2)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 14)]


@well("v-soft-answers", "distillation", "accuracy 0.96, as the teacher")
def soft_answers(seed: int) -> Training:
    d = digits(seed)
    teacher = stack(64, 256, 10)
    opt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(6):
        for i in torch.randperm(len(d.y)).split(64):
            opt.zero_grad()
            F.cross_entropy(teacher(d.x[i]), d.y[i], label_smoothing=0.05).backward()
            opt.step()
    return Training(Student(teacher), d.train(64), hit_rate(d.x_test, d.y_test), d.val(), {"max_epochs": 14})


class Adapted(nn.Module):
    """A frozen layer plus a product of two thin matrices, one of them nought at the start."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * F.linear(F.linear(x, self.down), self.up)


class Tuned(LightningModule):
    def __init__(self, base: nn.Sequential) -> None:
        super().__init__()
        self.net = nn.Sequential(*(Adapted(m) if isinstance(m, nn.Linear) else m for m in base))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        thin = [p for p in self.parameters() if p.requires_grad]
        opt = torch.optim.AdamW(thin, lr=8e-3, weight_decay=0.0)
        return [opt], [{"scheduler": torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, 300), "interval": "step"}]


@well("v-thin-matrices", "adapters", "accuracy 0.95 on mirrored digits after a frozen base that knew upright ones")
def thin(seed: int) -> Training:
    d = digits(seed)
    base = stack(64, 96, 96, 10)
    opt = torch.optim.Adam(base.parameters(), lr=3e-3)
    for _ in range(5):
        for i in torch.randperm(len(d.y)).split(64):
            opt.zero_grad()
            F.cross_entropy(base(d.x[i]), d.y[i]).backward()
            opt.step()
    mirror = lambda v: v.view(-1, 8, 8).flip(2).flatten(1)  # noqa: E731
    train = loader(mirror(d.x), d.y, size=50)
    return Training(Tuned(base), train, hit_rate(mirror(d.x_test), d.y_test), trainer={"max_steps": 300})


class Episodes(Dataset[Any]):
    """Five digits of seven, three pictures to know each by and four to tell."""

    def __init__(self, x: Tensor, y: Tensor, kinds: list[int], count: int) -> None:
        self.of, self.count = {k: x[y == k] for k in kinds}, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        kinds = list(self.of)
        ways = [kinds[j] for j in torch.randperm(len(kinds))[:3]]
        rows = torch.stack([self.of[k][torch.randperm(len(self.of[k]))[:7]] for k in ways])
        return {"known": rows[:, :3], "new": rows[:, 3:].flatten(0, 1)}


class Prototypes(LightningModule):
    """The nearest mean in a learnt space; labels are the places within an episode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 32))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        means = self.encoder(batch["known"]).mean(2)
        return -torch.cdist(self.encoder(batch["new"]), means).square()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        z = self(batch)
        place = torch.arange(3).repeat_interleave(4).expand(len(z), -1)
        loss = F.cross_entropy(z.flatten(0, 1), place.flatten())
        self.log("episode", loss, batch_size=len(z))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@well(
    "v-three-of-each-to-know", "few-shot", "accuracy on episodes of seven known digits, pictures unseen: 0.95 and more"
)
def three_of_each(seed: int) -> Training:
    d = digits(seed, 0.6)
    torch.manual_seed(seed)
    new: Any = next(iter(DataLoader(Episodes(d.x_test, d.y_test, list(range(7)), 200), batch_size=200)))
    place = torch.arange(3).repeat_interleave(4)
    score = lambda m: (predict(m, new).argmax(-1) == place).float().mean().item()  # noqa: E731
    train = DataLoader(Episodes(d.x, d.y, list(range(7)), 1600), batch_size=8)
    return Training(Prototypes(), train, score, trainer={"max_epochs": 1, "log_every_n_steps": 10})


class Walks(IterableDataset[Any]):
    """Hands out only how many walks to take: the data come from the policy itself."""

    def __iter__(self) -> Any:
        while True:
            yield 64


class Walker(LightningModule):
    """Policy gradients in a corridor grid; the loss means nothing, the return rises."""

    size = 5

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = stack(25, 32, 4), stack(25, 32, 1)

    def play(self, n: int, greedy: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = torch.randint(self.size, (n, 2))
        seen, acts, rewards, alive_all = [], [], [], []
        alive = torch.ones(n)
        moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
        for _ in range(10):
            state = F.one_hot(at[:, 0] * self.size + at[:, 1], 25).float()
            with torch.no_grad():
                z = self.policy(state)
            act = z.argmax(1) if greedy else torch.distributions.Categorical(logits=z).sample()
            at = (at + moves[act]).clamp(0, self.size - 1)
            home = (at == self.size - 1).all(1)
            seen.append(state)
            acts.append(act)
            rewards.append(alive * (home.float() - 0.05))
            alive_all.append(alive)
            alive = alive * (~home).float()
        return torch.stack(seen), torch.stack(acts), torch.stack(rewards), torch.stack(alive_all)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        seen, acts, rewards, alive = self.play(64)
        back = rewards.clone()
        for t in range(len(back) - 2, -1, -1):
            back[t] += 0.95 * back[t + 1]
        value = self.value(seen)[..., 0]
        law = torch.distributions.Categorical(logits=self.policy(seen))
        edge = (back - value).detach()
        gain = (law.log_prob(acts) * edge * alive).sum() / alive.sum()
        miss = ((value - back).square() * alive).sum() / alive.sum()
        self.log_dict({"return": rewards.sum(0).mean(), "entropy": law.entropy().mean()})
        return -gain + 0.5 * miss - 0.005 * (law.entropy() * alive).sum() / alive.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@well("v-walks-to-the-corner", "policy-gradient", "mean return of the greedy walk; 0.8 is the best there is")
def walks(seed: int) -> Training:
    def score(m: Any) -> float:
        torch.manual_seed(3)
        return m.play(1000, greedy=True)[2].sum(0).mean().item()

    return Training(Walker(), DataLoader(Walks(), batch_size=None), score, trainer={"max_steps": 200})


class ChainValues(LightningModule):
    """Values of acts by their own later guesses: the target moves, the loss rises and falls."""

    def __init__(self) -> None:
        super().__init__()
        self.q = stack(10, 48, 2)
        self.frozen = copy.deepcopy(self.q).requires_grad_(False)

    def forward(self, s: Tensor) -> Tensor:
        return self.q(F.one_hot(s, 10).float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, act, reward, after, end = batch
        if self.global_step % 20 == 0:
            self.frozen.load_state_dict(self.q.state_dict())
        with torch.no_grad():
            best = self.frozen(F.one_hot(after, 10).float()).amax(1)
        loss = F.smooth_l1_loss(self(state).gather(1, act[:, None])[:, 0], reward + 0.9 * (1 - end) * best)
        self.log("td", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.q.parameters(), lr=3e-3)


@well(
    "v-values-along-a-chain",
    "q-learning",
    "minus the mean error of the values, against exact ones; the loss starts near nought",
)
def chain_values(seed: int) -> Training:
    g = generator(seed, 681)
    state, act = torch.randint(9, (6000,), generator=g), torch.randint(2, (6000,), generator=g)
    slip = torch.rand(6000, generator=g) < 0.1
    step = torch.where((act == 1) ^ slip, 1, -1)
    after = (state + step).clamp(0, 9)
    end = (after == 9).float()
    rows = (state, act, 1.0 * end, after, end)
    exact = torch.zeros(10, 2)
    for _ in range(300):
        best = exact.amax(1) * (torch.arange(10) < 9)
        for s in range(9):
            up, down = float(s + 1 == 9) + 0.9 * best[s + 1], 0.9 * best[max(s - 1, 0)]
            exact[s] = torch.stack([0.1 * up + 0.9 * down, 0.9 * up + 0.1 * down])
    score = lambda m: -(predict(m, torch.arange(9)) - exact[:9]).abs().mean().item()  # noqa: E731
    return Training(ChainValues(), loader(*rows, size=100), score, trainer={"max_epochs": 9})


class OnTop(LightningModule):
    """A head on frozen random convolutions; nothing below ever has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).requires_grad_(False)
        self.norm = nn.LayerNorm(64 * 9, elementwise_affine=False)
        self.head = nn.Linear(64 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.norm(self.body(x.view(-1, 1, 8, 8)))
        return self.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("head_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)


@well("v-head-on-frozen-pictures", "transfer", "accuracy 0.97 by a linear head")
def on_top(seed: int) -> Training:
    d = digits(seed)
    return Training(OnTop(), d.train(32), hit_rate(d.x_test, d.y_test), trainer={"max_epochs": 6})


class Contrast(LightningModule):
    """Cross-entropy over the batch: which of the others is the same digit's other view."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.project = stack(64, 128, 64), nn.Linear(64, 24)
        self.log_heat = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.trunk(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        a, b = (F.normalize(self.project(F.relu(self.trunk(self.view(x)))), dim=1) for _ in range(2))
        z = a @ b.T * self.log_heat.exp()
        place = torch.arange(len(x))
        return 0.5 * (F.cross_entropy(z, place) + F.cross_entropy(z.T, place))

    @staticmethod
    def view(x: Tensor) -> Tensor:
        shift = [int(v) for v in torch.randint(-1, 2, (2,))]
        moved = torch.roll(x.view(-1, 8, 8), shift, (1, 2)).flatten(1)
        return moved * (torch.rand_like(x) > 0.2)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)]


@well("v-which-is-my-other-view", "contrastive", "accuracy of the five nearest neighbours in the learnt space")
def other_view(seed: int) -> Training:
    d = digits(seed)

    def score(m: Any) -> float:
        near = d.y[(predict(m, d.x_test) @ predict(m, d.x).T).topk(5, 1).indices]
        return (near.mode(1).values == d.y_test).float().mean().item()

    return Training(Contrast(), loader(d.x, size=96, drop_last=True), score, trainer={"max_epochs": 20})


class Triplets(LightningModule):
    """Anchor, friend and stranger; most triplets soon give exactly nought."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.PReLU(), nn.Linear(64, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        h = self(x)
        gap = torch.cdist(h, h)
        same = y[:, None] == y
        far = gap.masked_fill(~same, 0).amax(1)
        near = gap.masked_fill(same, 1e9).amin(1)
        loss = F.relu(far - near + 0.5).mean()
        self.log("hard_triplet", loss)
        self.log("active", (far - near + 0.5 > 0).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@well("v-hardest-friend-and-stranger", "metric", "accuracy of the nearest centre, 0.96 and more")
def hardest(seed: int) -> Training:
    d = digits(seed)

    def score(m: Any) -> float:
        known = predict(m, d.x)
        centres = torch.stack([known[d.y == k].mean(0) for k in range(10)])
        return (torch.cdist(predict(m, d.x_test), centres).argmin(1) == d.y_test).float().mean().item()

    return Training(Triplets(), d.train(96, drop_last=True), score, trainer={"max_epochs": 28})
