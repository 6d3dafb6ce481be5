"""Codes about the course of the loss and about what moves the weights."""

from __future__ import annotations

from lightning_stall.catalogue.entry import Entry

OPTIMISATION: tuple[Entry, ...] = (
    Entry(
        code="training-too-short",
        title="The run ends while the loss still falls",
        kind="symptom",
        callbacks=("PlateauWatch",),
        means="The run ends while the loss still falls steadily.",
        why="""
            Nothing is stuck: training was stopped before it was done, so the result is worse than this model can
            give.
        """,
        advice="""
            Train longer, and let the loss decide when to stop:

                trainer = Trainer(max_epochs=500, callbacks=[EarlyStopping(monitor="val_loss", patience=20)])
                trainer.fit(model, ckpt_path="last.ckpt")  # goes on where the run has ended

            If a scheduler has a fixed length, give it the new one. If the loss falls very slowly, look for
            learning-rate-too-low first.
        """,
    ),
    Entry(
        code="loss-plateau",
        title="The loss has stopped falling",
        kind="symptom",
        callbacks=("PlateauWatch",),
        means="The loss has fallen before and falls no more, though it is not near its floor.",
        why="""
            Steps are being spent without improvement. Often the rate is too large for the finer shape of the loss, so
            the weights bounce about a minimum; else the model, the data or the loss sets the limit.
        """,
        advice="""
            Look at the cause named beside this first. If there is none, lower the rate when the loss stops falling:

                def configure_optimizers(self):
                    optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
                    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
                    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

            `patience` counts scheduler steps, here epochs. If a lower rate changes nothing, the limit is elsewhere:
            test whether the model can fit a single batch, with `Trainer(overfit_batches=1)`.
        """,
        remedy="""
            `PlateauWatch(auto_remedy=True, factor=0.5, min_lr=1e-6)` multiplies the learning rate by `factor` where a
            copy of the model is better for it, and takes it back if the loss is not.
        """,
    ),
    Entry(
        code="never-learned",
        title="The loss has not moved since the start",
        kind="symptom",
        callbacks=("PlateauWatch",),
        means="The loss has not moved since the start, beyond noise.",
        why="""
            The steps do not reach the loss: the rate is far too small, no gradient arrives, the wrong parameters are
            trained, the loss cannot see the prediction, or the targets hold nothing to learn.
        """,
        advice="""
            Look at the cause named beside this. If there is none, test whether the model can fit one batch; it should
            reach a loss near 0 within a few hundred steps:

                Trainer(overfit_batches=1, max_epochs=500).fit(model)

            If it can, suspect the data (uninformative-targets, class-imbalance). If it cannot, print what moves:

                def on_before_optimizer_step(self, optimizer):
                    print({n: p.grad.norm().item() for n, p in self.named_parameters() if p.grad is not None})
        """,
        remedy="""
            By the cause found: for learning-rate-too-low, for example, `OptimizerHealth(auto_remedy=True)` raises the
            rate.
        """,
    ),
    Entry(
        code="loss-diverging",
        title="The loss rises",
        kind="symptom",
        callbacks=("PlateauWatch",),
        means="The loss rises away from its best value.",
        why="""
            Each step makes the model worse, and what it had learned is being lost. Left alone it often ends in Inf or
            NaN.
        """,
        advice="""
            Lower the learning rate by ten, warm it up, clip gradients, and go on from the best checkpoint rather than
            from here:

                warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=500)
                schedule = {"scheduler": warmup, "interval": "step"}  # steps, not epochs
                trainer = Trainer(callbacks=[AutoClip(), ModelCheckpoint(monitor="val_loss")])

            If the rate is already small, look at the sign of the loss: an objective to be maximised needs a minus.
        """,
        remedy="`PlateauWatch(auto_remedy=True, factor=0.5, min_lr=1e-6)` multiplies the learning rate by `factor`.",
    ),
    Entry(
        code="loss-oscillating",
        title="The loss swings without falling",
        kind="symptom",
        callbacks=("PlateauWatch",),
        means="The loss swings around a level without falling.",
        why="""
            Steps jump from one side of a valley to the other, or each batch pulls another way; either way they
            cancel, and the loss stays where it is.
        """,
        advice="""
            Lower the learning rate by three to ten. If the swings follow the batches, average over more samples, and
            shuffle:

                trainer = Trainer(accumulate_grad_batches=4)  # but BatchNorm still sees each small batch
                train_loader = DataLoader(dataset, batch_size=128, shuffle=True)

            With SGD a momentum of 0.99 swings by itself; 0.9 is usual. In adversarial training swings are normal:
            mute this code there.
        """,
        remedy="`PlateauWatch(auto_remedy=True, factor=0.5, min_lr=1e-6)` multiplies the learning rate by `factor`.",
    ),
    Entry(
        code="learning-rate-too-high",
        title="Learning rate too high",
        kind="cause",
        callbacks=("OptimizerHealth", "PlateauWatch"),
        means="Updates are too large for the weights, and the loss diverges or swings.",
        why="""
            A step that is longer than the valley is wide lands higher on the other side. The loss then swings or
            grows, and one very large step can kill ReLU units for good. Steps of about 0.001 of a weight's size are
            usual.
        """,
        advice="""
            Divide the rate by ten; usual starting points are 1e-3 for Adam, 1e-4 to 3e-4 for transformers, 1e-2 to
            1e-1 for SGD with momentum. Or measure it, with a rate that `configure_optimizers` reads from `self.lr`:

                from lightning.pytorch.tuner import Tuner

                print(Tuner(trainer).lr_find(model).suggestion())

            Standardise inputs and targets first: what is safe for a rate depends on their scale.
        """,
        remedy="""
            `PlateauWatch(auto_remedy=True)` lowers the learning rate, to where a copy of the model has learnt by it, and
            begins again with the first weights where steps have thrown them away.
        """,
    ),
    Entry(
        code="learning-rate-too-low",
        title="Learning rate too low",
        kind="cause",
        callbacks=("OptimizerHealth", "PlateauWatch"),
        means="Gradients are healthy, and updates are too small to matter.",
        why="""
            The direction is right and the steps are too short: at a millionth of a weight's size each, a run would
            need hundreds of thousands of them to change anything. From outside it looks like a plateau.
        """,
        advice="""
            Multiply the rate by ten until the loss falls clearly within a hundred steps, and go back by three once it
            swings. Or measure it, with a rate that `configure_optimizers` reads from `self.lr`:

                from lightning.pytorch.tuner import Tuner

                print(Tuner(trainer).lr_find(model).suggestion())

            If the rate that you wrote looks right, print the one in use: a long warm-up or a scheduler may hold it
            down.

                print(self.trainer.optimizers[0].param_groups[0]["lr"])
        """,
        remedy="""
            `OptimizerHealth(auto_remedy=True)` raises the learning rate to what a copy of the model has borne, or tenfold
            at a time, and takes the last raise back if the loss is worse for it.
        """,
    ),
    Entry(
        code="learning-rate-decayed-early",
        title="The schedule ended too early",
        kind="cause",
        callbacks=("OptimizerHealth", "PlateauWatch"),
        means="A scheduler brought the rate to nothing while the loss still fell, or is stepped at the wrong interval.",
        why="""
            With no rate left nothing moves, however good the gradients are. Lightning steps a scheduler once an epoch
            unless told otherwise, so a schedule counted in epochs but stepped each batch is over within minutes.
        """,
        advice="""
            Give the scheduler the length of the run in the unit it is stepped in:

                def configure_optimizers(self):
                    optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
                    steps = self.trainer.estimated_stepping_batches
                    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
                    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

            For `StepLR` and `ExponentialLR`, work out the rate at the end of the run: 0.9 to the power of 100 is
            3e-5. For `ReduceLROnPlateau`, raise `patience` and set `min_lr`.
        """,
    ),
    Entry(
        code="parameters-not-optimized",
        title="Parameters that nothing trains",
        kind="cause",
        callbacks=("OptimizerHealth",),
        means="""
            Parameters the loss depends on are held by no optimizer, are frozen by accident, or never receive a
            gradient.
        """,
        why="""
            They keep their first, random values, and the rest of the model has to work around them. If the last layer
            is among them, the loss hardly moves at all.
        """,
        advice="""
            Pass all parameters to the optimizer, after the model is complete, and let frozen ones be few and meant:

                def configure_optimizers(self):
                    return torch.optim.AdamW(self.parameters(), lr=1e-3)

                print([name for name, p in self.named_parameters() if not p.requires_grad])

            Keep layers in `nn.ModuleList`, not in a Python list, which hides them from `parameters()`. For parameters
            without a gradient look for `.detach()`, `.item()`, `.data`, `torch.no_grad()`, `argmax` or NumPy between
            them and the loss, and for layers that `forward` never calls. Frozen on purpose: mute this code.
        """,
    ),
    Entry(
        code="gradients-not-cleared",
        title="Gradients carry over, or are cleared too soon",
        kind="cause",
        callbacks=("OptimizerHealth",),
        means="Gradients carry over from step to step (no zero_grad), or are cleared before the step uses them.",
        why="""
            Gradients that are never cleared add up, so each step repeats all earlier ones and grows until the loss
            swings or diverges. Gradients that are cleared between backward and step leave the optimizer nothing to
            do.
        """,
        advice="""
            Under manual optimisation keep this order:

                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

            Under automatic optimisation remove your own `zero_grad`, `backward` and `step`: Lightning calls them. If
            you override `optimizer_zero_grad`, it must clear the gradients. To add up several batches on purpose, use
            `Trainer(accumulate_grad_batches=4)`.
        """,
    ),
    Entry(
        code="clipping-too-tight",
        title="Nearly every step is clipped",
        kind="cause",
        callbacks=("AutoClip", "GradientHealth"),
        means="Nearly every step is clipped, to a small fraction of its norm.",
        why="""
            Clipping is meant for rare spikes. Where it cuts every step, all steps are of one length and the rate you
            set is not the rate you get: with SGD training crawls. Adam divides by the gradient's size, so there it
            does less harm; clipping by value also turns the direction.
        """,
        advice="""
            Set the limit above the usual norm, near the largest one of a healthy stretch, or let it follow the run.
            The norms of a run are logged by GradientHealth.

                trainer = Trainer(gradient_clip_val=10.0)  # two to ten times the median norm
                trainer = Trainer(callbacks=[AutoClip()])  # without gradient_clip_val

            A norm grows with the number of parameters: a limit taken from a small model is too tight for a large one.
        """,
        remedy="""
            `AutoClip()` loosens its own limit, and one set by `Trainer(gradient_clip_val=...)` for as long as the fit goes
            on; against a limit in your own code `OptimizerHealth(auto_remedy=True)` raises the rate by as much.
        """,
    ),
    Entry(
        code="replicas-diverged",
        title="Ranks hold different weights",
        kind="cause",
        callbacks=("OptimizerHealth",),
        means="Ranks of a data-parallel run hold different weights.",
        why="""
            Averaged gradients only make sense for one set of weights. Once ranks differ, each trains a model of its
            own on gradients made for another; nothing raises, and the checkpoint holds rank 0 alone.
        """,
        advice="""
            Let all ranks decide alike. A step that is skipped, a weight that is changed or a rate that is set by one
            rank's own numbers needs a common decision first:

                skip = self.trainer.strategy.reduce_boolean_decision(skip, all=False)  # any rank skips: all skip

            Call the model that the strategy wraps, not a copy of it or its `.module`, from `training_step`. Create
            all parameters before training starts, and draw random changes of weights from one seed on every rank:
            `seed_everything(0)`. Then resume from a checkpoint made before they parted.
        """,
        remedy="`OptimizerHealth(auto_remedy=True)` stops the run: what trains from there on is not one model.",
    ),
)
