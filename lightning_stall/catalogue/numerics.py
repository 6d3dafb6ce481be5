"""Codes about the numbers themselves: gradients, non-finite values, and the statistics of BatchNorm."""

from __future__ import annotations

from lightning_stall.catalogue.entry import Entry

NUMERICS: tuple[Entry, ...] = (
    Entry(
        code="exploding-gradients",
        title="Gradients explode",
        kind="symptom",
        callbacks=("GradientHealth", "AutoClip"),
        means="Gradient norms grow without bound, or leap orders of magnitude above their own history.",
        why="""
            One such step can throw the weights far from anything they have learned, so the loss jumps and may never
            come back. Adam hides it from the weights for a while, because it divides by the gradient's own size, and
            then keeps that size in its averages: the steps that follow are too small.
        """,
        advice="""
            Clip first, then look for the cause: a learning rate too high, inputs or targets that are not
            standardised, or a recurrent network unrolled over many steps. Clip by a limit that follows the run, or by
            a fixed one:

                trainer = Trainer(callbacks=[AutoClip()])
                trainer = Trainer(gradient_clip_val=1.0)  # not together with AutoClip

            Under manual optimisation the Trainer refuses `gradient_clip_val`; clip between backward and step:

                self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        """,
        remedy="""
            `AutoClip()`, where `auto_remedy` is on by default, scales such gradients down to a limit taken from the
            run's own history of norms.
        """,
    ),
    Entry(
        code="vanishing-gradients",
        title="Gradients vanish",
        kind="cause",
        callbacks=("GradientHealth", "ActivationHealth"),
        means="""
            The layers near the input receive gradients orders of magnitude below those near the output, or all
            gradients are near zero while the loss is high.
        """,
        why="""
            The layers near the input hardly move, so the layers above train on features that are still random. Each
            sigmoid multiplies the gradient by at most 0.25, each badly scaled layer by less than one, and a deep
            stack multiplies all of these together.
        """,
        advice="""
            Replace sigmoid and tanh between layers by ReLU or GELU, initialise for the activation used, and in a deep
            network add normalisation and a residual path:

                for module in self.modules():
                    if isinstance(module, nn.Linear):
                        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                        nn.init.zeros_(module.bias)

                x = x + self.block(self.norm(x))  # residual path, self.norm = nn.LayerNorm(width)

            In a recurrent network use an LSTM or GRU, or shorter sequences. A higher learning rate does not mend
            this: it moves the upper layers too far before the lower ones have begun to move.
        """,
    ),
    Entry(
        code="nonfinite-loss",
        title="The loss is NaN or infinite",
        kind="symptom",
        callbacks=("GradientHealth",),
        means="The loss is NaN or infinite.",
        why="""
            Its gradients are NaN too, and one optimizer step on them turns every weight into NaN. From then on each
            prediction is NaN and nothing can be learned; only a checkpoint from before that step helps.
        """,
        advice="""
            Look for the first thing that went wrong: a NaN in the batch (nonfinite-inputs), one operation
            (unstable-operation), or a loss that rose for many steps before (learning-rate-too-high). To see the line,
            run again for a few steps, slowly, with

                trainer = Trainer(detect_anomaly=True)

            With float16 try `Trainer(precision="bf16-mixed")`, which has the range of float32. If weights are already
            NaN, resume from an earlier checkpoint: `trainer.fit(model, ckpt_path="before.ckpt")`.
        """,
        remedy="""
            `GradientHealth(auto_remedy=True)` skips the step on all ranks before it reaches the weights, and restores
            the BatchNorm statistics that the batch has spoiled.
        """,
    ),
    Entry(
        code="nonfinite-gradients",
        title="A gradient is NaN or infinite",
        kind="symptom",
        callbacks=("GradientHealth", "AutoClip"),
        means="The loss is finite and a gradient is not; the parameter nearest to the fault is named.",
        why="""
            The forward pass looks well, so the loss shows nothing until the step after, when the weights are NaN.
            Clipping does not help: with a norm of NaN or infinity it turns all other gradients into NaN or zero as
            well.
        """,
        advice="""
            Look at the operation that follows the named parameter for a derivative that is infinite: `sqrt` at 0,
            `pow` with an exponent below 1 at 0, `acos` at 1, or a `torch.where` whose unused branch is NaN. Keep the
            argument away from that point, before the operation and not after it:

                distance = ((a - b).square().sum(-1) + 1e-12).sqrt()  # without 1e-12: NaN where a equals b

            With `precision="16-mixed"` a few infinite gradients at the start are normal: the scaler skips them.
        """,
        remedy="""
            `GradientHealth(auto_remedy=True)` skips the step on all ranks; under float16 the gradient scaler does. Where the
            slope of one operation spoils step after step, its slopes that are not finite are taken for 0.
        """,
    ),
    Entry(
        code="unstable-operation",
        title="An operation turns finite numbers into NaN",
        kind="cause",
        callbacks=("GradientHealth",),
        means="Finite values went into a module and NaN or Inf came out; the first such module is named.",
        why="""
            A log of 0, a division by 0, an exp that overflows (above 88 in float32, above 11 in float16) or a sqrt at
            0 in the backward pass gives NaN or Inf for some inputs, and a single such value spoils the whole batch's
            gradients. It comes back whenever such an input does, whatever the learning rate.
        """,
        advice="""
            In the named module, bound the argument or use the fused form, which is exact and safe:

                log_p = F.log_softmax(logits, dim=-1)  # not softmax(...).log()
                loss = F.binary_cross_entropy_with_logits(logits, target)  # not log(sigmoid(...))
                total = torch.logsumexp(scores, dim=-1)  # not exp(...).sum(-1).log()
                ratio = a / (b + 1e-6)  # for b >= 0; in float16 1e-8 is 0
                root = x.clamp_min(1e-6).sqrt()

            `torch.where(x > 0, x.log(), 0)` still gives NaN gradients at 0; mask the argument instead:

                safe = torch.where(x > 0, x, torch.ones_like(x))
                y = torch.where(x > 0, safe.log(), torch.zeros_like(x))

            A softmax over a row that is masked with -inf throughout is NaN: leave at least one position unmasked.
        """,
        remedy="""
            `GradientHealth(auto_remedy=True)` skips the steps it spoils, and takes infinite slopes, as that of a root at 0,
            for 0 where they come again. Where values come out that are no numbers, again and again, the operation is given
            only what it is defined for, in the training step alone: what you evaluate is as you wrote it, and yours to mend.
        """,
    ),
)

BATCHNORM: tuple[Entry, ...] = (
    Entry(
        code="batchnorm-small-batch",
        title="Too few values for BatchNorm",
        kind="cause",
        callbacks=("BatchNormBatchSizeGuard",),
        means="""
            A BatchNorm layer gets too few values per channel and device for batch statistics, such as a last batch of
            one sample.
        """,
        why="""
            Mean and variance of two or three values are mostly noise, and that noise goes into every activation and
            into the running statistics used for evaluation. With one value per channel PyTorch raises "Expected more
            than 1 value per channel when training", often at the end of the first epoch.
        """,
        advice="""
            Drop the incomplete last batch, and use larger batches per device. `accumulate_grad_batches` does not
            help: BatchNorm sees one micro-batch at a time.

                train_loader = DataLoader(dataset, batch_size=32, shuffle=True, drop_last=True)

            With several devices share the statistics, or use a layer that does not look across the batch:

                trainer = Trainer(devices=4, strategy="ddp", sync_batchnorm=True)
                norm = nn.GroupNorm(num_groups=8, num_channels=64)  # in place of nn.BatchNorm2d(64)
        """,
        remedy="""
            `BatchNormBatchSizeGuard(auto_remedy=True)` normalises such a batch by the running statistics (where all are
            too small, with gradients centred over batches, as in Online Normalization), shares statistics between
            devices (SyncBatchNorm), or drops the incomplete last batch.
        """,
    ),
    Entry(
        code="batchnorm-stale-statistics",
        title="BatchNorm evaluates with other statistics than it trains with",
        kind="cause",
        callbacks=("BatchNormBatchSizeGuard",),
        means="Running statistics of a BatchNorm layer are far from the statistics of its batches.",
        why="""
            Training normalises by the batch, evaluation by the running averages. Where the two differ, the validation
            loss is bad or jumps although the training loss falls, and the model looks as if it did not learn.
        """,
        advice="""
            Re-estimate the running statistics over the training data, and compare the validation loss before and
            after:

                torch.optim.swa_utils.update_bn(train_loader, model, device=model.device)

            Then mend the reason: too few steps for the averages to follow (raise `momentum`, PyTorch's default is
            0.1, or train longer), batches too small, batches sorted by class, training and validation data prepared
            in different ways, or one BatchNorm layer shared by two kinds of input.
        """,
        remedy="""
            `BatchNormBatchSizeGuard(auto_remedy=True)` re-estimates the running statistics from training batches, and copies
            those of the trained layers to an average of the weights that was left without.
        """,
    ),
)
