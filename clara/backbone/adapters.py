"""The three LoRA adapters on one backbone: attach, activate, freeze, save, load."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clara.backbone.sharding import fill, whole
from clara.config import ClaraConfig
from clara.errors import SavedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPRESSOR = "compressor"
QUERY_REASONER = "query_reasoner"
GENERATOR = "generator"
ADAPTERS = (COMPRESSOR, QUERY_REASONER, GENERATOR)

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class Adapters:
    """The named adapters of a backbone.

    One lock guards which adapter is active: `active` holds it, so threads that share a model
    take turns and each computes with the adapter it asked for.
    """

    def __init__(self, backbone: PreTrainedModel, config: ClaraConfig) -> None:
        # Here, as peft takes seconds to import.
        from clara.backbone.int8 import Int8Linear
        from clara.backbone.lora import AdaptedInt8Linear, MergingLinear
        from clara.backbone.lora_library import (
            BaseTunerLayer,
            LoraConfig,
            inject_adapter_in_model,
            layers_are_plain,
        )

        self._settings = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            base_model_name_or_path=config.backbone,
        )
        ours = any(isinstance(module, Int8Linear) for module in backbone.modules())
        foreign = getattr(backbone, "is_quantized", False) and not ours
        if not foreign:
            # The first that fits is taken, and an Int8Linear is an nn.Linear.
            kinds = {Int8Linear: AdaptedInt8Linear, nn.Linear: MergingLinear}
            self._settings._register_custom_module(kinds)
        with warnings.catch_warnings(), nullcontext() if foreign else layers_are_plain():
            # peft warns of several adapters in one model, which is the point here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            # GPT-2's layers keep their weights transposed, which peft finds out by itself.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            for name in ADAPTERS:
                inject_adapter_in_model(self._settings, backbone, adapter_name=name)
        self._layers = [m for m in backbone.modules() if isinstance(m, BaseTunerLayer)]
        self._states = [vars(layer) for layer in self._layers]
        self.collect(backbone)
        self.lock = threading.RLock()
        self.freeze()
        with self.lock:
            self._activate(None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapters:
        """The adapters of the copy of the backbone that `memo` holds or gets, with none active."""
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made._settings = copy.deepcopy(self._settings, memo)
        made._layers = copy.deepcopy(self._layers, memo)
        made._states = [vars(layer) for layer in made._layers]
        made._parameters = copy.deepcopy(self._parameters, memo)
        made.lock = threading.RLock()
        made._activate(None)
        return made

    @contextmanager
    def active(self, name: str | None) -> Iterator[None]:
        """Compute with one adapter, or with none; restores what was active, also on errors.

        `requires_grad` is left alone. Other threads wait until the block ends.

        Raises:
            ValueError: no such adapter.
        """
        if name is not None and name not in ADAPTERS:
            raise ValueError(f"adapter must be one of {', '.join(ADAPTERS)}, got {name!r}")
        with self.lock:
            before = [(layer._active_adapter, layer._disable_adapters) for layer in self._layers]
            self._activate(name)
            try:
                yield
            finally:
                for state, (active, disabled) in zip(self._states, before, strict=True):
                    state["_active_adapter"] = active
                    state["_disable_adapters"] = disabled

    @property
    def held_here(self) -> bool:
        """Whether this thread holds the lock."""
        return bool(self.lock._is_owned())  # type: ignore[attr-defined]

    def _activate(self, name: str | None) -> None:
        # What peft's set_adapter does, without its walk over every module of the model, and
        # without nn.Module.__setattr__, which takes longer than all the rest.
        names = [name or COMPRESSOR]
        for state in self._states:
            state["_active_adapter"] = names
            state["_disable_adapters"] = name is None

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Parameters of one adapter by their name in the backbone, adapter name left out."""
        return self._parameters[name]

    def collect(self, backbone: PreTrainedModel) -> None:
        """Find the adapters' parameters again, after FSDP has put others in their place."""
        self._parameters = {name: _lora_parameters(backbone, name) for name in ADAPTERS}

    def freeze(self, *trainable: str) -> None:
        """Train the named adapters only; without a name, none."""
        for name in ADAPTERS:
            for parameter in self.parameters(name).values():
                parameter.requires_grad_(name in trainable)

    def copy(self, source: str, target: str) -> None:
        """Give one adapter the weights of another."""
        self.load_state(target, self.state(source))

    def state(self, name: str) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in self.parameters(name).items()}

    def change_anything(self) -> bool:
        """Whether any adapter changes what the backbone computes; a new one adds B A with B = 0."""
        return any(
            bool(whole(value).any())
            for name in ADAPTERS
            for key, value in self.state(name).items()
            if "lora_B" in key
        )

    @torch.no_grad()
    def load_state(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Fill an adapter.

        Raises:
            SavedModelError: keys or shapes differ from those of the backbone's linear layers.
        """
        own = self.parameters(name)
        missing, extra = (
            sorted(own.keys() - state.keys()),
            sorted(state.keys() - own.keys()),
        )
        if missing or extra:
            what = f"lacks {missing[0]!r}" if missing else f"has the unknown key {extra[0]!r}"
            count = len(missing) + len(extra)
            raise SavedModelError(
                f"adapter {name!r} does not fit the backbone: it {what} ({count} in all)"
            )
        for key, parameter in own.items():
            if parameter.shape != state[key].shape:
                raise SavedModelError(
                    f"adapter {name!r} does not fit the backbone: {key!r} is "
                    f"{list(state[key].shape)}, expected {list(parameter.shape)}"
                )
        for key, parameter in own.items():
            fill(parameter, state[key])

    def save(self, folder: Path) -> None:
        """Write each adapter as a PEFT folder that `peft.PeftModel.from_pretrained` also reads."""
        settings = copy.copy(self._settings)
        if isinstance(settings.target_modules, set):  # whose order differs between processes
            settings.target_modules = sorted(settings.target_modules)
        for name in ADAPTERS:
            target = folder / name
            target.mkdir(parents=True, exist_ok=True)
            state = {
                _PREFIX + key: whole(value).contiguous().cpu()
                for key, value in self.state(name).items()
            }
            save_file(state, target / _WEIGHTS, metadata={"format": "pt"})
            settings.save_pretrained(str(target))

    def load(self, folder: Path, names: Sequence[str] = ADAPTERS) -> None:
        """Read adapters from `save`'s folders; the others stay as they are.

        Raises:
            SavedModelError: one is missing, unreadable, or does not fit.
        """
        missing = [name for name in names if not (folder / name / _WEIGHTS).is_file()]
        if missing:
            raise SavedModelError(
                f"{folder}: adapter {missing[0]!r} is missing ({missing[0]}/{_WEIGHTS})"
            )
        for name in names:
            file = folder / name / _WEIGHTS
            try:
                state = load_file(file)
            except (OSError, SafetensorError) as error:
                raise SavedModelError(f"{file}: cannot read: {error}") from error
            self.load_state(name, {key.removeprefix(_PREFIX): v for key, v in state.items()})


def adapter_files(folder: Path) -> list[Path]:
    """Where the weights of the adapters are in a model folder."""
    return [folder / name / _WEIGHTS for name in ADAPTERS]


def _lora_parameters(backbone: nn.Module, name: str) -> dict[str, nn.Parameter]:
    marker = f".{name}."
    return {
        key.replace(marker, "."): parameter
        for key, parameter in backbone.named_parameters()
        if ".lora_" in key and marker in key
    }
