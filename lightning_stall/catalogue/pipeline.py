"""Codes about the way of a batch from the disk to the step, and about steps that never end."""

from __future__ import annotations

from lightning_stall.catalogue.entry import Entry

PIPELINE: tuple[Entry, ...] = (
    Entry(
        code="data-starvation",
        title="The step waits for data",
        kind="cause",
        callbacks=("DataStarvationMonitor",),
        means="""
            Training waits for the next batch for a large share of its time, in one named part: fetch, transform,
            collate or transfer.
        """,
        why="""
            The device stands idle while a batch is read and prepared, so an epoch takes several times as long as it
            has to. The loss is sound; it only falls slowly by the clock.
        """,
        advice="""
            Prepare batches beside the step, with workers that stay alive and pinned memory for the copy:

                import os

                cores = len(os.sched_getaffinity(0))  # the cores this process may use; Linux
                loader = DataLoader(
                    dataset, batch_size=64, shuffle=True, num_workers=max(1, cores - 1),
                    persistent_workers=True, prefetch_factor=4, pin_memory=True,
                )

            With several devices a host, divide `cores` by their number. If more workers do not help, make the slow
            part cheaper. Fetch: fewer and larger files, a local disk, a cache in memory. Transform: decode and resize
            once, beforehand, or move the transform to the device:

                def on_after_batch_transfer(self, batch, dataloader_idx):
                    x, y = batch
                    return (self.augment(x) if self.trainer.training else x), y

            Collate: return tensors or arrays instead of Python lists of numbers.
        """,
        remedy="""
            `DataStarvationMonitor(auto_remedy=True)` sets `num_workers`, `prefetch_factor` and `pin_memory` of the
            training loader at the next epoch; a different number of workers changes the random order of later epochs.
        """,
    ),
    Entry(
        code="too-many-workers",
        title="More loader workers than the machine can feed",
        kind="cause",
        callbacks=("DataStarvationMonitor",),
        means="The loaders run more workers than the process has cores, or than memory suffices for.",
        why="""
            Workers beyond the cores take time from each other and from the training process, so batches come later,
            not earlier. Each worker also holds its prefetched batches and, with time, its own copy of the dataset's
            Python objects; when memory runs out the system kills one, and training stops with it.
        """,
        advice="""
            Count the cores this process may use, divide by the processes of this host, and leave one for the
            training:

                import os

                cores = len(os.sched_getaffinity(0))  # in a container, fewer than os.cpu_count()
                loader = DataLoader(dataset, num_workers=max(1, cores // trainer.num_devices - 1))

            If memory is the limit, lower `prefetch_factor` and the number of workers, and hold the dataset in one
            NumPy array or tensor instead of a list of Python objects. In a container give more shared memory, for
            example `docker run --shm-size=8g`.
        """,
        remedy="""
            `DataStarvationMonitor(auto_remedy=True)` lowers `num_workers` of the training loader at the next epoch.
        """,
    ),
    Entry(
        code="dataloader-hang",
        title="The loader delivers no batch",
        kind="cause",
        callbacks=("DataStarvationMonitor",),
        means="No batch arrives because a worker is dead or blocked; it is named, with its stack.",
        why="""
            The training process waits for one worker's batch, and without a timeout it waits for ever: no error, no
            progress. A worker that was forked while another thread held a lock, or that shares an open file with the
            others, never returns.
        """,
        advice="""
            Make the wait end in an error, and run once in the main process, where a fault shows its traceback:

                loader = DataLoader(dataset, num_workers=4, timeout=120)
                loader = DataLoader(dataset, num_workers=0)  # to find the line

            Open files, database connections and HDF5 handles in `__getitem__` at first use, not in `__init__`; call
            `cv2.setNumThreads(0)` before the workers start; use no CUDA tensors in the dataset. Where a library has
            threads of its own, do not fork:

                loader = DataLoader(dataset, num_workers=4, multiprocessing_context="spawn")
        """,
        remedy='`DataStarvationMonitor(hang_action="raise")` ends the wait with an error that names the worker.',
    ),
    Entry(
        code="training-hang",
        title="A step never ends",
        kind="cause",
        callbacks=("DataStarvationMonitor",),
        means="No step ends and the loader is not to blame; the stacks of all threads are shown.",
        why="""
            The process is blocked inside a step, a callback or a collective. With several ranks the usual reason is
            that one rank does not reach a collective the others wait in, and they wait until a timeout of many
            minutes.
        """,
        advice="""
            Read the stacks: the innermost line of the main thread is what it waits for. If that is a collective, give
            each rank the same number of batches and let every rank run the same calls; a logged metric that is
            reduced must not stand behind a test of the rank:

                self.log("val_loss", loss, sync_dist=True)  # on every rank, never under `if self.global_rank == 0:`

            Let a wait fail soon and say where:

                from datetime import timedelta
                from lightning.pytorch.strategies import DDPStrategy

                trainer = Trainer(strategy=DDPStrategy(timeout=timedelta(minutes=5)))

            Set `TORCH_DISTRIBUTED_DEBUG=DETAIL` in the environment to have mismatched collectives named.
        """,
        remedy="""
            `DataStarvationMonitor(hang_action="raise")` ends the wait with an error that carries the stacks, where the
            wait can be interrupted.
        """,
    ),
)
