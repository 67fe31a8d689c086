"""`ClaraTrainer`: transformers' trainer for objectives that return sums over packed batches."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from clara.backbone.default_dtype import float32_by_default
from clara.backbone.sharding import whole
from clara.errors import ClaraError
from clara.training.arguments import ClaraTrainingArguments
from clara.training.batches import EVENTS, EmptyBatch
from clara.training.budget import Budget
from clara.training.callbacks import BeforeStep
from clara.training.controls import Controls
from clara.training.learning_rates import check_groups, current_rates, split_parameter_groups
from clara.training.moments import Moment, asks_for_moment, rates_of
from clara.training.objectives import Objective
from clara.training.saving import OwedEvaluation, SaveByTime, SavingTrainer
from clara.training.statistics import CUTOFFS
from clara.training.trainer_library import EvalLoopOutput

_COUNTED = (
    "positions",
    "text_tokens",
    "memory_written",
    "ranked",
    *(f"recall@{k}" for k in CUTOFFS),
)


class TrainingError(ClaraError, ValueError):
    """Training cannot go on; the message says at which step and why."""


class ClaraTrainer(SavingTrainer):
    """Trains an `Objective`.

    Differs from its base in what a step's loss is averaged over (all of a step's tokens,
    whatever the accumulation and the number of processes), in what is logged, and in checkpoints.

    Args:
        collator: makes a batch of examples; see `asks_for_moment` for one that needs the step.
        record: settings and data of the run, which go into every checkpoint.
        controls: questions to answer in every evaluation.
    """

    def __init__(
        self,
        objective: Objective,
        arguments: ClaraTrainingArguments,
        collator: Callable[..., Any],
        train: Sequence[Any],
        evaluation: Sequence[Any] | None = None,
        events: Mapping[str, int] | None = None,
        record: Mapping[str, Any] | None = None,
        controls: Controls | None = None,
        **options: Any,
    ) -> None:
        self._rates = arguments.learning_rates or {}
        if self._rates:
            check_groups(self._rates, objective)
        super().__init__(
            model=objective,
            args=arguments,
            # Examples go through a data loader as they are where the collator needs the step.
            data_collator=list if asks_for_moment(collator) else collator,
            train_dataset=train,
            eval_dataset=evaluation,
            **options,
        )
        # Losses are already averaged over a whole step: the base must not divide them again.
        self.model_accepts_loss_kwargs = True
        self.add_callback(BeforeStep(self.before_step))
        self.budget = Budget(arguments.max_hours, self._anywhere)
        self.add_callback(self.budget)
        if arguments.save_minutes is not None:
            self.add_callback(SaveByTime(arguments.save_minutes, self._anywhere))
        self.add_callback(OwedEvaluation(self.evaluate_resumed))  # when the others know the run
        self.objective = objective
        self._collator = collator
        self._controls = controls
        self.record = record
        self._totals: dict[str, Any] = {}
        self._events: Counter[str] = Counter(events or {})
        self._norms: dict[str, Tensor] = {}
        self._current_rates: dict[str, float] = {}
        self._finite: Tensor | None = None
        self._batch = 0
        self._since = time.perf_counter()

    @property
    def events(self) -> dict[str, int]:
        """Examples left out and texts cut, by reason, since training began or was resumed.

        Those of all processes, each of which has to ask.
        """
        counted = self._sum_over_processes([float(self._events[name]) for name in EVENTS])
        return {name: int(count) for name, count in zip(EVENTS, counted, strict=True) if count}

    # A step

    def create_optimizer(self, model: Any = None) -> Any:
        """As `transformers.Trainer.create_optimizer`, with a rate of its own for some weights."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self._rates:
            split_parameter_groups(optimizer, self._rates, self.objective)
        return optimizer

    def train(self, *arguments: Any, **settings: Any) -> Any:
        """As `transformers.Trainer.train`, which adds up losses in torch's default dtype."""
        with float32_by_default():
            return super().train(*arguments, **settings)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], dict[str, float]]:
        """The batches of a step, and the counts of all processes' batches together."""
        self._batch = 0
        batches: list[Any] = []
        if self.control.should_training_stop:
            return batches, {}
        for number in range(num_batches):
            loaded = next(epoch_iterator, None)
            if loaded is None:
                break
            moment = Moment(self.state.global_step, self.state.max_steps, self._seed(number))
            batches.append(self._collated(loaded, moment))
        names = sorted({term.per for term in self.objective.terms.values()})
        local = [float(sum(b.counts.get(name, 0) for b in batches)) for name in names]
        read = float(sum(batch.tokens_read for batch in batches))
        positions, *summed = self._sum_over_processes([read, *local])
        self.budget.positions += int(positions)
        counts = dict(zip(names, summed, strict=True))
        for batch in batches:
            self._events.update(batch.events)
        if batches and not all(counts.values()):
            left = ", ".join(f"{reason}: {n}" for reason, n in self.events.items())
            raise TrainingError(
                f"step {self.state.global_step + 1}: no usable example is left ({left})"
            )
        return batches, counts

    def _collated(self, loaded: Any, moment: Moment) -> Any:
        """The batch that a data loader made, or the one that is made of its examples now."""
        return self._collator(loaded, moment) if asks_for_moment(self._collator) else loaded

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, float] | None = None,
    ) -> Tensor:
        """This process' part of the step's loss, times the number of processes.

        What is added up over accumulated batches and averaged over processes is then the loss.
        """
        if num_items_in_batch is None:
            raise ValueError("num_items_in_batch must be the counts of the step")
        objective = self.objective
        objective.step = self.state.global_step
        objective.progress = min(self.state.global_step / max(self.state.max_steps, 1), 1.0)
        objective.step_seed = self._seed(self._batch)
        self._batch += 1
        sums = model(inputs)
        processes = self.accelerator.num_processes
        parts = [
            sums[name] * (processes * term.weight / num_items_in_batch[term.per])
            for name, term in objective.terms.items()
        ]
        loss = torch.stack([part.float() for part in parts]).sum()
        self._count(inputs, sums)
        finite = loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        return loss

    def _seed(self, number: int) -> int:
        """Differs between steps, batches of a step and processes; the same after resuming."""
        batch = self.state.global_step * self.args.gradient_accumulation_steps + number
        index = batch * self.accelerator.num_processes + self.accelerator.process_index
        return ((self.args.seed << 40) + index) % 2**63

    def _count(self, batch: Any, sums: Mapping[str, Tensor]) -> None:
        totals = self._totals
        counts = {"positions": batch.tokens_read, **batch.counts}
        documents = getattr(batch, "documents", None)
        if documents is not None:
            counts["text_tokens"] = documents.text_tokens
            counts["memory_written"] = sum(documents.batch.n_memory)
        for name, value in {**counts, **sums}.items():
            value = value.detach() if isinstance(value, Tensor) else value
            totals[name] = totals.get(name, 0) + value

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        scaler = getattr(self.accelerator, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for name, group in self.objective.groups():
            norms = [whole(p.grad.norm()) for p in group if p.grad is not None]
            if norms:
                self._norms[name] = torch.stack(norms).norm() / scale
        return super()._clip_grad_norm(model)

    def before_step(self) -> None:
        """Called before the weights are touched, to look at the loss and the learning rates.

        Raises:
            TrainingError: a loss of the step is not finite, in whichever process.
        """
        finite, self._finite = self._finite, None
        # All processes have to stop where one does.
        (missed,) = self._sum_over_processes([0.0 if finite is None else float(~finite)])
        if missed:
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite; the last checkpoint "
                "is as it was. A lower learning_rate or bf16 in place of fp16 may help"
            )
        self._current_rates = current_rates(self.optimizer)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to `logs` what was counted since the last time, and since the run began."""
        if "loss" in logs:
            logs = {**logs, **self._counted()}
        logs |= {"positions": self.budget.positions, "hours": round(self.budget.hours, 4)}
        super().log(logs, start_time)

    def _counted(self) -> dict[str, float]:
        totals = self._reduced(self._totals)
        self._totals.clear()
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        logs = _means(totals, self.objective)
        logs.update({f"grad_norm_{name}": float(norm) for name, norm in self._norms.items()})
        logs.update(self._current_rates)
        logs["tokens_per_second"] = totals["positions"] / elapsed
        if totals["memory_written"]:
            logs["effective_compression"] = totals["text_tokens"] / totals["memory_written"]
        logs.update({reason: float(n) for reason, n in self.events.items()})
        return logs

    def _anywhere(self, mine: bool) -> bool:
        return bool(self._sum_over_processes([float(mine)])[0])

    def _reduced(self, totals: Mapping[str, Any]) -> dict[str, float]:
        """Sums over processes of what is counted, which a process may have nothing of."""
        terms = self.objective.terms
        counts = {count for term in terms.values() for count in (term.per, term.logged_over)}
        names = sorted({*_COUNTED, *terms, *counts})
        values = self._sum_over_processes([float(totals.get(name, 0.0)) for name in names])
        return dict(zip(names, values, strict=True))

    def _sum_over_processes(self, values: Sequence[float]) -> list[float]:
        if self.accelerator.num_processes == 1 or not values:
            return list(values)
        local = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        if local.device.type == "mps":
            local = local.float()
        summed: list[float] = self.accelerator.reduce(local, reduction="sum").tolist()
        return summed

    # Evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Every process' share of the examples, none of them twice."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        rows: Sequence[int] = range(len(data))
        number = self.args.evaluate_examples
        if number is not None and number < len(data):
            rows = sorted(random.Random(0).sample(rows, number))  # the same in every evaluation
        share = rows[self.args.process_index :: self.args.world_size]
        return DataLoader(
            Subset(data, share),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Means over all tokens, documents or questions of the evaluation set.

        Where the collator draws rates, the evaluation goes through all of them.
        """
        began = time.perf_counter()
        means = self._evaluated(dataloader)
        if self._controls is not None:
            # Every process answers all of them: the weights may be spread over all.
            with self.accelerator.autocast():
                means |= self._controls.measure()
        (examples,) = self._sum_over_processes([float(len(cast("Any", dataloader.dataset)))])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self._since += time.perf_counter() - began  # positions per second are those of training
        return EvalLoopOutput(None, None, metrics, int(examples))

    def _evaluated(self, dataloader: DataLoader[Any]) -> dict[str, float]:
        """Means of an evaluation; where the collator draws rates, of each and of all."""
        rates = rates_of(self._collator)
        if not rates:
            return self._evaluation_means(self._evaluation_totals(dataloader, self._collated))
        means: dict[str, float] = {}
        totals: dict[str, float] = defaultdict(float)
        for rate in rates:
            found = self._evaluation_totals(dataloader, partial(self._collator, rate=rate))
            for name, value in found.items():
                totals[name] += value
            for name, value in self._evaluation_means(found).items():
                # `recall@1@4` is that of `Controls`, among all documents.
                own = name.replace("recall@", "recall_candidates@")
                means[f"{own}@{rate}"] = value
        return self._evaluation_means(totals) | means

    def _evaluation_totals(
        self, dataloader: DataLoader[Any], collate: Callable[[Any, Moment], Any]
    ) -> dict[str, float]:
        """Sums over an evaluation set of all processes, examples left out among them."""
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        model.eval()
        totals: dict[str, float] = defaultdict(float)
        events: Counter[str] = Counter()
        for batch in self._as_many_everywhere(dataloader, collate):
            events.update(batch.events)
            sums = model(self._prepare_inputs(batch))
            for name, value in {**batch.counts, **sums}.items():
                totals[name] += float(value)
        left = self._sum_over_processes([float(events[name]) for name in EVENTS])
        return self._reduced(totals) | dict(zip(EVENTS, left, strict=True))

    def _evaluation_means(self, totals: Mapping[str, float]) -> dict[str, float]:
        means = _means(totals, self.objective)
        means["loss"] = _loss(totals, self.objective)
        return means | {name: totals[name] for name in EVENTS if totals[name]}

    def _as_many_everywhere(
        self, dataloader: DataLoader[Any], collate: Callable[[Any, Moment], Any]
    ) -> Iterator[Any]:
        """Batches, and empty ones where another process has one more: weights may be spread.

        What depends on the step is as at the last one, and the same in every evaluation.
        """
        total = self.state.max_steps
        for number, loaded in enumerate(dataloader):
            index = number * self.args.world_size + self.args.process_index
            yield collate(loaded, Moment(max(total - 1, 0), total, index))
        counts = [0.0] * self.args.world_size
        counts[self.args.process_index] = float(len(dataloader))
        most = max(self._sum_over_processes(counts))
        for _ in range(int(most) - len(dataloader)):
            yield EmptyBatch(Counter())


def _means(totals: Mapping[str, float], objective: Objective) -> dict[str, float]:
    means = {
        name: totals[name] / totals[term.logged_over]
        for name, term in objective.terms.items()
        if totals[term.logged_over]
    }
    if totals["ranked"]:
        means.update({f"recall@{k}": totals[f"recall@{k}"] / totals["ranked"] for k in CUTOFFS})
    return means


def _loss(totals: Mapping[str, float], objective: Objective) -> float:
    """The weighted sum of the terms; NaN where nothing is left to average one of them over."""
    terms = objective.terms.items()
    return sum(
        term.weight * (totals[name] / totals[term.per] if totals[term.per] else math.nan)
        for name, term in terms
    )
