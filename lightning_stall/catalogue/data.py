"""Codes about what reaches the model: inputs, targets and the way they are drawn."""

from __future__ import annotations

from lightning_stall.catalogue.entry import Entry

DATA: tuple[Entry, ...] = (
    Entry(
        code="nonfinite-inputs",
        title="NaN or Inf in the batch",
        kind="cause",
        callbacks=("InputHealth",),
        means="Missing values reached the model: a batch holds NaN or Inf; the batch, field and column are named.",
        why="""
            One NaN in a batch makes the loss NaN, then the gradients, then every weight. Comparisons with NaN are
            false, so a missing value passes most checks unseen.
        """,
        advice="""
            Fill or drop missing values before training, with numbers taken from the training set alone, and keep a
            column that says what was missing:

                missing = x.isnan()
                x = torch.where(missing, median, x)  # median = x_train.nanmedian(dim=0).values
                x = torch.cat([x, missing.float()], dim=1)

            Look at your own preparation as well: dividing by the standard deviation of a constant column gives NaN,
            and the log of 0 gives -inf. Check where it is made: `assert torch.isfinite(x).all(), index` in
            `__getitem__`.
        """,
        remedy="""
            `InputHealth(auto_remedy=True)` leaves that batch out: no step is made from it. Where most batches hold such
            values, it puts the mean of the others in their place, in front of the layer that they enter.
        """,
    ),
    Entry(
        code="unscaled-inputs",
        title="Inputs far from unit scale",
        kind="cause",
        callbacks=("InputHealth",),
        means="Inputs are orders of magnitude away from unit scale: too large, or so small that gradients die.",
        why="""
            Default initialisations and learning rates are made for inputs with a mean near 0 and a spread near 1.
            Large inputs give large gradients in the first layer and saturate what follows; tiny ones give a first
            layer that hardly learns. No single learning rate then suits all layers.
        """,
        advice="""
            Standardise with the mean and standard deviation of the training set, and use the same two for validation,
            test and prediction:

                mean, std = x_train.mean(dim=0), x_train.std(dim=0).clamp_min(1e-6)
                x = (x - mean) / std

            Images of bytes: scale to [0, 1] and normalise by channel, once. Dividing by 255 twice is a usual reason
            for inputs that are too small.

                transform = v2.Compose(
                    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(channel_mean, channel_std)]
                )
        """,
        remedy="`InputHealth(auto_remedy=True)` may standardise inputs with the mean and spread it has measured (`standardize=True`).",
    ),
    Entry(
        code="disparate-feature-scales",
        title="Columns of very different spread",
        kind="cause",
        callbacks=("InputHealth",),
        means="The spreads of input columns differ by orders of magnitude.",
        why="""
            The widest column dominates predictions and gradients. A rate low enough for it is too low for the narrow
            columns, which are then hardly used: the loss falls fast at first and crawls afterwards.
        """,
        advice="""
            Standardise each column by itself, fitted on the training set only; take the log of columns that span
            orders of magnitude within themselves:

                x[:, wide] = x[:, wide].log1p()  # wide: columns that are positive with a long tail
                mean, std = x_train.mean(dim=0), x_train.std(dim=0).clamp_min(1e-6)
                x = (x - mean) / std

            With scikit-learn: `scaler = StandardScaler().fit(x_train)`, then `scaler.transform(...)` for every set.
        """,
        remedy="`InputHealth(auto_remedy=True)` may standardise each column so (`standardize=True`).",
    ),
    Entry(
        code="categorical-as-numeric",
        title="Category codes used as numbers",
        kind="cause",
        callbacks=("InputHealth",),
        means="A float column holds a few integer category codes that have no order, and is used as a number.",
        why="""
            The model is told that category 2 is twice category 1 and that 1 lies between 0 and 2. It has to bend an
            arbitrary line into separate cases, which a small network does slowly or not at all.
        """,
        advice="""
            Give each category a column or a vector of its own:

                one_hot = F.one_hot(x[:, column].long(), num_classes=n_categories).float()  # a few categories
                vector = self.embedding(x[:, column].long())  # many: self.embedding = nn.Embedding(n_categories, 16)
                rest = torch.cat([x[:, :column], x[:, column + 1 :]], dim=1)
                x = torch.cat([rest, one_hot], dim=1)

            If the numbers do have an order (a grade, a count), keep the column and mute this code.
        """,
    ),
    Entry(
        code="constant-inputs",
        title="An input that never changes",
        kind="cause",
        callbacks=("InputHealth",),
        means="A column, or the whole input, never changes from sample to sample.",
        why="""
            What is the same for every sample cannot tell samples apart. A constant column only adds to the bias; if
            the whole input is constant, the best the model can do is to predict the average target.
        """,
        advice="""
            If the whole input is constant, look at the dataset: `__getitem__` must use its index, and bytes must
            become floats before a division, `x.float() / 255` and not `x // 255`. Print two samples:

                (a, _), (b, _) = dataset[0], dataset[1]
                print((a - b).abs().max())  # 0 means that both are the same

            If it is a column, leave it out; do not divide by its standard deviation, which is 0:

                keep = x_train.std(dim=0) > 0
                x = x[:, keep]
        """,
    ),
    Entry(
        code="unscaled-targets",
        title="Targets far from unit scale",
        kind="cause",
        callbacks=("InputHealth",),
        means="Regression targets are far from unit scale, or soft targets of a classification do not sum to one.",
        why="""
            The loss of a regression grows with the square of the targets, and its gradients grow with them; the last
            bias also has a long way to go at small steps. Soft targets that sum to 1000 multiply the loss by 1000.
        """,
        advice="""
            Regression: train on standardised targets and undo it where you predict:

                y_mean, y_std = y_train.mean(dim=0), y_train.std(dim=0)
                loss = F.mse_loss(self(x), (y - y_mean) / y_std)
                prediction = self(x) * y_std + y_mean

            Soft targets: make each row a distribution, or pass class indices of type int64:

                target = target / target.sum(dim=1, keepdim=True)
        """,
    ),
    Entry(
        code="corrupt-samples",
        title="A few samples throw the training",
        kind="cause",
        callbacks=("InputHealth",),
        means="A few samples or batches are outliers that throw the loss or the gradients; their indices are named.",
        why="""
            A squared loss weighs an outlier by the square of its error, so one bad sample can outweigh the rest of
            its batch and undo many good steps. It comes back every epoch.
        """,
        advice="""
            Look at the named samples: a wrong unit, a misplaced decimal point, a blank or truncated image, a wrong
            label. Mend or drop them:

                dataset = Subset(dataset, [i for i in range(len(dataset)) if i not in corrupt])

            If such values are real, use a loss that grows linearly, and clip gradients:

                loss = F.huber_loss(prediction, target, delta=1.0)
        """,
        remedy="`InputHealth(auto_remedy=True)` leaves such a batch out: no step is made from it.",
    ),
    Entry(
        code="class-imbalance",
        title="One class outweighs the others",
        kind="cause",
        callbacks=("InputHealth",),
        means="One class outweighs the others, and the model predicts it alone.",
        why="""
            Predicting the largest class for everything already gives a low loss and a high accuracy, and each batch
            holds too few of the others to pull away from it. The loss settles at what the class frequencies alone
            give.
        """,
        advice="""
            Weigh the loss by the inverse frequency of a class, or draw rare classes more often. One of the two, not
            both:

                counts = torch.bincount(labels, minlength=n_classes).clamp_min(1)
                weight = counts.sum() / (n_classes * counts)
                loss_fn = nn.CrossEntropyLoss(weight=weight)
                sampler = WeightedRandomSampler(weight[labels], num_samples=len(labels))
                loader = DataLoader(dataset, batch_size=64, sampler=sampler)  # without shuffle

            Two classes with one output: `nn.BCEWithLogitsLoss(pos_weight=torch.tensor(n_negative / n_positive))`.
            Judge by balanced accuracy, F1 or average precision, not by accuracy.
        """,
    ),
    Entry(
        code="unshuffled-data",
        title="Training batches come in order",
        kind="cause",
        callbacks=("InputHealth",),
        means="Training batches come sorted by label, or the sampler is sequential over ordered data.",
        why="""
            Each batch shows one class or one stretch of the data, so its gradient points to that alone and the next
            one takes it back. The loss swings with the position in the epoch, and BatchNorm normalises by one class
            at a time.
        """,
        advice="""
            Shuffle the training loader, and only that one:

                train_loader = DataLoader(dataset, batch_size=64, shuffle=True)

            An `IterableDataset` takes no `shuffle=True`: shuffle the list of files and keep a buffer from which
            samples are drawn at random. With your own sampler on several devices, call its `set_epoch(epoch)` each
            epoch. Time series: shuffle windows, not the time within them.
        """,
    ),
    Entry(
        code="train-val-leakage",
        title="Validation samples stand in the training set",
        kind="cause",
        callbacks=("InputHealth",),
        means="Samples of the validation set also stand in the training set.",
        why="""
            Validation then measures memory. It goes on improving while the model learns nothing new, so early
            stopping, schedulers and checkpoints that watch it decide wrongly, and a real stall or overfitting stays
            unseen.
        """,
        advice="""
            Remove duplicates before you split, and keep everything that belongs together (a patient, a user, a video)
            on one side:

                from sklearn.model_selection import GroupShuffleSplit

                splitter = GroupShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
                train_index, val_index = next(splitter.split(x, y, groups=group))

            Split once with a fixed seed and store the indices. Oversample and augment after the split, on the
            training part alone.
        """,
    ),
    Entry(
        code="too-little-data",
        title="Too little data",
        kind="cause",
        callbacks=("InputHealth",),
        means="There are fewer samples than the task or the model can be trained on, and the model memorises them.",
        why="""
            A network with more parameters than there are things to learn from can store each sample. The training
            loss goes to 0, nothing general is left to learn, and validation stops improving or worsens.
        """,
        advice="""
            Get more samples if you can. Otherwise start from a pretrained network and train only its head, use a
            smaller model, augment, and regularise:

                self.backbone.requires_grad_(False)
                optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-3, weight_decay=1e-2)

            Judge by cross-validation: a validation set of a few samples says little. If you overfit a few samples on
            purpose (`overfit_batches`), mute this code.
        """,
    ),
    Entry(
        code="duplicate-randomness",
        title="Loader workers draw the same random numbers",
        kind="cause",
        callbacks=("DataStarvationMonitor",),
        means="Loader workers draw the same random numbers, so that augmentation repeats itself.",
        why="""
            A generator made in the dataset is copied into each worker with its state, so all workers make the same
            "random" choices, and workers that start anew make them again each epoch. The model sees far less variety
            than you think and overfits early.
        """,
        advice="""
            Make the generator inside the worker, from the seed PyTorch gives to it, which differs by worker and
            epoch:

                def seed_worker(worker_id: int) -> None:
                    info = torch.utils.data.get_worker_info()
                    info.dataset.rng = np.random.default_rng(info.seed)

                loader = DataLoader(dataset, num_workers=4, worker_init_fn=seed_worker)

            Do not call `np.random.seed(0)` or `torch.manual_seed(0)` in `worker_init_fn` or in `__getitem__`. For the
            same numbers in each run use `seed_everything(0, workers=True)`.
        """,
    ),
    Entry(
        code="uninformative-targets",
        title="The inputs say nothing about the targets",
        kind="cause",
        callbacks=("InputHealth",),
        means="""
            All tensors are healthy and the model can fit, yet the loss stays at the entropy of the labels: they are
            permuted, misaligned, random or constant.
        """,
        why="""
            Without a link from inputs to targets the best prediction is the average target, and the loss cannot fall
            below what that gives, ln(k) for k equally frequent classes. A larger model or another rate changes
            nothing, except that it may memorise.
        """,
        advice="""
            Look at twenty pairs by eye, after all transforms, as the model receives them:

                x, y = next(iter(train_loader))
                print(x[:20], y[:20])

            Look for inputs and labels that were shuffled, sorted, filtered or joined separately, for a label column
            read from the wrong place, and for augmentation that destroys what the label says. Then ask a simple model
            whether there is any signal; it should beat the share of the largest class:

                from sklearn.ensemble import RandomForestClassifier
                from sklearn.model_selection import cross_val_score

                print(cross_val_score(RandomForestClassifier(), x.flatten(1).numpy(), y.numpy()).mean())
        """,
    ),
)
