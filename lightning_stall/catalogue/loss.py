"""Codes about the loss, the model's structure and the state of its layers."""

from __future__ import annotations

from lightning_stall.catalogue.entry import Entry

LOSS: tuple[Entry, ...] = (
    Entry(
        code="probabilities-as-logits",
        title="Softmax or sigmoid before a loss that applies it",
        kind="cause",
        callbacks=("LossCheck",),
        means="Softmax, log-softmax or sigmoid was already applied to what a with-logits loss receives.",
        why="""
            The loss squashes the output a second time. Values between 0 and 1 taken as logits can never say
            "certain": with 10 classes cross-entropy cannot fall below 1.46, with 2 not below 0.31, and gradients
            shrink before that. A doubled log-softmax is the harmless case: it changes nothing and is only wasted.
        """,
        advice="""
            Return logits from the model, and make probabilities only where you show or use them:

                loss = F.cross_entropy(self(x), y)  # the model ends in nn.Linear
                loss = F.binary_cross_entropy_with_logits(self(x), y.float())  # one output or several labels
                probabilities = self(x).softmax(dim=-1)  # in predict_step

            If the model has to end in `nn.LogSoftmax`, pair it with `F.nll_loss`, which takes log-probabilities and
            not what `nn.Softmax` gives.
        """,
    ),
    Entry(
        code="loss-shape-mismatch",
        title="Prediction and target broadcast against each other",
        kind="cause",
        callbacks=("LossCheck",),
        means="Prediction and target broadcast against each other, such as (N, 1) with (N,).",
        why="""
            Each prediction is compared with every target of the batch, N x N pairs in place of N. The best answer to
            that is the mean target for every sample, so the loss falls to the variance of the targets and stays
            there.
        """,
        advice="""
            Give both the same shape, and let a wrong one fail:

                prediction = self(x).squeeze(-1)  # (N, 1) -> (N,)
                assert prediction.shape == y.shape, (prediction.shape, y.shape)
                loss = F.mse_loss(prediction, y)

            Use `squeeze(-1)`, not `squeeze()`, which also removes a batch of one.
        """,
    ),
    Entry(
        code="wrong-loss-for-task",
        title="The loss does not fit the targets",
        kind="cause",
        callbacks=("LossCheck",),
        means="""
            The loss does not fit the targets: MSE on class indices, cross-entropy on a single output, an objective
            with the wrong sign, or a sum where the rate expects a mean.
        """,
        why="""
            The loss falls towards something that is not the task. MSE on class indices pretends that class 3 lies
            between 2 and 4; cross-entropy on one output is 0 with no gradient; the wrong sign trains away from the
            goal; a sum multiplies the rate by the batch size.
        """,
        advice="""
            Choose by the targets:

                loss = F.cross_entropy(logits, y)  # one of C classes: logits (N, C), y (N,) of int64
                loss = F.binary_cross_entropy_with_logits(logits, y.float())  # yes or no, each (N,) or (N, labels)
                loss = F.mse_loss(prediction, y)  # numbers; F.huber_loss where there are outliers
                loss = -log_likelihood.mean()  # what is to be maximised gets a minus

            Average over the batch, `reduction="mean"`. With `reduction="sum"` divide by the batch size.
        """,
    ),
    Entry(
        code="output-range-mismatch",
        title="The last activation cannot reach the targets",
        kind="cause",
        callbacks=("LossCheck",),
        means="""
            The last activation cannot reach the targets: a sigmoid for targets of 100, a ReLU for negative ones, a
            softmax over one unit.
        """,
        why="""
            The output runs into its limit and stays there. At the limit the activation's gradient is 0 or nearly so,
            so the loss keeps the distance between limit and targets. A softmax over one unit is always 1.
        """,
        advice="""
            End a regression with a plain linear layer, or stretch the activation to the targets' range:

                self.head = nn.Linear(width, 1)  # any real number
                prediction = low + (high - low) * torch.sigmoid(self.head(x))  # between low and high
                prediction = F.softplus(self.head(x))  # positive

            For two classes with one output drop the softmax and use `F.binary_cross_entropy_with_logits`.
        """,
    ),
    Entry(
        code="insufficient-capacity",
        title="The model is too small for the task",
        kind="cause",
        callbacks=("LossCheck", "StallReport"),
        means="Gradients, rate and data are healthy, and the model still cannot fit even a small fixed subset.",
        why="""
            Training has found about the best this model can do, and that is above what the task allows. More steps or
            another rate cannot help.
        """,
        advice="""
            Confirm it: a model that is large enough brings the loss of a few batches near 0.

                Trainer(overfit_batches=8, max_epochs=500).fit(model)

            Then widen before you deepen, doubling until they are fitted, and look for a bottleneck: a layer far
            narrower than its neighbours, a strong pooling, or an embedding of a few numbers.

                self.net = nn.Sequential(
                    nn.Linear(n_in, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, n_out)
                )

            Turn off dropout and weight decay for this test: they look the same.
        """,
    ),
    Entry(
        code="missing-nonlinearity",
        title="Linear layers with nothing between them",
        kind="cause",
        callbacks=("LossCheck",),
        means="Linear layers are stacked with no activation between them.",
        why="""
            A linear map of a linear map is again one linear map, so the stack can represent no more than a single
            layer, however deep it is. The loss stops at what a linear model can reach.
        """,
        advice="""
            Put an activation after each layer but the last:

                self.net = nn.Sequential(nn.Linear(n_in, 64), nn.ReLU(), nn.Linear(64, n_out))

            In a `forward` of your own: `x = F.relu(self.first(x))`. BatchNorm, LayerNorm and dropout are no
            substitute. A narrow first layer that is meant (a low-rank factor) is fine: mute this code.
        """,
    ),
    Entry(
        code="overfitting",
        title="Training improves while validation worsens",
        kind="cause",
        callbacks=("PlateauWatch",),
        means="Training improves while validation worsens, for longer than noise explains.",
        why="""
            The model now learns what is particular to the training samples, and more steps make it worse on others.
            The best model of this run lies behind it.
        """,
        advice="""
            Keep the best checkpoint and stop, then regularise or get more data:

                best = ModelCheckpoint(monitor="val_loss", mode="min", save_top_k=1)
                trainer = Trainer(callbacks=[best, EarlyStopping(monitor="val_loss", mode="min", patience=10)])
                optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)

            Add dropout (`nn.Dropout(0.2)`), augmentation or label smoothing, or use a smaller model. If validation
            was bad from the first epoch, look for mode-mismatch or batchnorm-stale-statistics instead. A classifier's
            validation loss may rise while its accuracy still improves: watch the metric that you care for.
        """,
        remedy="`PlateauWatch(auto_remedy=True)` stops the run, at the weights of its best validation.",
    ),
    Entry(
        code="dead-activations",
        title="Units that never fire",
        kind="cause",
        callbacks=("ActivationHealth",),
        means="Most units of a layer output zero, or a constant, for every input.",
        why="""
            A ReLU unit that is at 0 for all inputs passes no gradient, so its own weights stop learning: it is as
            good as lost, and the layer has fewer units than you think. Where a whole layer is dead, nothing below it
            learns.
        """,
        advice="""
            Lower the learning rate, which is the usual reason, and standardise the inputs. Let some gradient through
            below 0, or normalise ahead of the activation:

                block = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU())  # or nn.LeakyReLU(0.01)

            Units that are dead already do not come back by themselves; give the layer new weights, or start again:

                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        """,
        remedy="`ActivationHealth(auto_remedy=True)` may re-initialise that layer.",
    ),
    Entry(
        code="saturated-activations",
        title="Units stuck at their limits",
        kind="cause",
        callbacks=("ActivationHealth",),
        means="Most units of a sigmoid, tanh or softmax layer sit at their limits.",
        why="""
            At its limits a sigmoid, tanh or softmax is flat: its derivative is nearly 0, so hardly any gradient
            passes and the layers below stop learning. Large weights or unscaled inputs bring it about.
        """,
        advice="""
            Standardise the inputs, start with smaller weights and keep the argument near 0 by normalisation:

                nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
                block = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh())

            Between layers prefer ReLU or GELU. In attention divide the scores by the root of the head's width, as
            `F.scaled_dot_product_attention` does. A gate or an output that is sure of itself is meant to be near its
            limits: mute this code for a model made of such.
        """,
    ),
    Entry(
        code="batch-mixing",
        title="Samples of a batch leak into each other",
        kind="cause",
        callbacks=("LossCheck",),
        means="The loss of one sample depends on another sample of the batch, outside of normalisation layers.",
        why="""
            A softmax, reshape or sum over the wrong axis mixes samples that have nothing to do with each other. What
            the model learns from the company a sample happens to keep is noise, and it is different at evaluation.
        """,
        advice="""
            Keep dimension 0 for samples in every operation of `forward`:

                p = x.softmax(dim=-1)  # not dim=0
                x = x.flatten(start_dim=1)  # not x.view(-1, n)
                x = x.permute(0, 2, 1)  # to swap axes; view and reshape scramble them
                self.rnn = nn.LSTM(n_in, n_hidden, batch_first=True)  # the default puts time first

            A contrastive loss, or anything that compares samples on purpose, is meant to mix: mute this code.
        """,
    ),
    Entry(
        code="mode-mismatch",
        title="Modules in the wrong mode",
        kind="cause",
        callbacks=("ActivationHealth",),
        means="Modules are left in evaluation mode while training, or dropout is active in evaluation.",
        why="""
            In evaluation mode dropout does nothing and BatchNorm neither uses the batch nor updates its statistics.
            Lightning leaves modules as it finds them, so one stray `eval()`, or a pretrained model that is delivered
            in evaluation mode, lasts for the whole run. Dropout active in evaluation makes validation noisy and too
            bad.
        """,
        advice="""
            Set the mode before fit, or keep it in the module where part of it is to stay frozen:

                model.train()
                trainer.fit(model)

                def on_train_epoch_start(self):
                    self.train()
                    self.backbone.eval()  # only if it is frozen on purpose

            `F.dropout(x, p)` is active at all times unless told; write `F.dropout(x, p, training=self.training)` or
            use `nn.Dropout`. A frozen backbone in evaluation mode is right: mute this code for it.
        """,
    ),
    Entry(
        code="bad-initialization",
        title="Weights start badly",
        kind="cause",
        callbacks=("ActivationHealth",),
        means="""
            Weights are all equal, far too small or far too large for their fan-in, or the first loss is far from what
            the task's prior gives.
        """,
        why="""
            Units that start equal receive equal gradients and stay copies of one another. Weights too small let
            signals and gradients die from layer to layer, weights too large let them grow or saturate. A first loss
            far above ln(number of classes) means that the first epochs are spent on undoing the start.
        """,
        advice="""
            Leave PyTorch's defaults for plain layers alone. Where you initialise yourself, scale by the fan-in:

                def init(module: nn.Module) -> None:
                    if isinstance(module, (nn.Linear, nn.Conv2d)):
                        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                        if module.bias is not None:
                            nn.init.zeros_(module.bias)

                model.apply(init)

            Never set all the weights of a layer to one constant; biases may be. Start the last bias at the prior:

                nn.init.constant_(self.head.bias, math.log(p / (1 - p)))  # p: share of positives; regression: the mean
        """,
        remedy="`ActivationHealth(auto_remedy=True, reinitialize=True)` begins the run anew with the weights that the layers "
        "draw themselves, where a copy has learnt from such weights what the run has not; where no copy can be asked, only "
        "the layers whose first weights were found unfit. Of factors that are all 0 it draws one.",
    ),
    Entry(
        code="excess-regularization",
        title="Regularisation outweighs the gradient",
        kind="cause",
        callbacks=("OptimizerHealth",),
        means="Weight decay or dropout is so strong that it outweighs the gradient.",
        why="""
            Weight decay pulls every weight towards 0 at each step; where that pull is as large as the gradient's,
            weights shrink instead of learning. Dropout near 1 leaves too little of the signal. Training loss itself
            stays high.
        """,
        advice="""
            Turn both off until the training loss falls, then add them back in small amounts:

                optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)  # then 1e-4 to 1e-2
                self.dropout = nn.Dropout(0.0)  # then 0.1 to 0.3

            Use AdamW rather than Adam with `weight_decay`, whose pull goes through the adaptive scaling. Do not decay
            biases and normalisation weights:

                decay = [p for p in self.parameters() if p.ndim > 1]
                rest = [p for p in self.parameters() if p.ndim <= 1]
                groups = [{"params": decay, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}]
        """,
    ),
)
