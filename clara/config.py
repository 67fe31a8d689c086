"""`ClaraConfig`: everything that defines a CLaRa model besides its weights."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from clara.errors import SavedModelError
from clara.errors.checks import as_integer, is_number

FORMAT_VERSION = 1

MEMORY_FIELD = "{memory}"
QUESTION_FIELD = "{question}"

Overflow = Literal["chunk", "truncate", "error"]
Quantization = Literal["nf4", "int8"]
Attention = Literal["sdpa", "flash_attention_2"]
CpuDtypeName = Literal["float32", "bfloat16"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

StorageName = Literal["float32", "float16", "bfloat16", "int8", "int4"]
MemoryForm = Literal["learned", "spans"]
RankingRule = Literal["flattened", "mean"]
Relaxation = Literal["softmax", "sparsemax"]
Mask = Literal["exact", "reference"]
Noise = Literal["gumbel"]

CHOICES: dict[str, tuple[Any, ...]] = {
    "memory_form": get_args(MemoryForm),
    "ranking": (None, *get_args(RankingRule)),
    "overflow": get_args(Overflow),
    "quantization": (None, *get_args(Quantization)),
    "attention": get_args(Attention),
    "dtype": (None, *get_args(DtypeName)),
    "relaxation": get_args(Relaxation),
    "mask": get_args(Mask),
    "noise": (None, *get_args(Noise)),
}
"""The accepted values of each setting that takes one of a few words."""


@dataclass(frozen=True)
class PromptTemplate:
    """Wording of a prompt.

    Attributes:
        system: system turn; put before the user turn when the backbone has no system role.
        user: user turn with `{memory}` and `{question}` once each, memory first.
    """

    system: str
    user: str

    def __post_init__(self) -> None:
        for name in ("system", "user"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"prompt.{name} must be a string, got {getattr(self, name)!r}")
        for name in (MEMORY_FIELD, QUESTION_FIELD):
            if self.user.count(name) != 1:
                raise ValueError(f"prompt.user must contain {name} exactly once: {self.user!r}")
        if self.user.index(MEMORY_FIELD) > self.user.index(QUESTION_FIELD):
            raise ValueError(f"prompt.user must have {MEMORY_FIELD} before {QUESTION_FIELD}")


DEFAULT_PROMPT = PromptTemplate(
    system=(
        "You answer questions. Find the information needed in the background and reply with the "
        "answer alone, as short as possible."
    ),
    user="Background:\n{memory}\n\nQuestion: {question}",
)


@dataclass(frozen=True)
class ClaraConfig:
    """Settings of a model, validated on construction. Plain JSON on disk.

    Most of the first group define the model: a checkpoint cannot be loaded with other values, see
    `model_fields`. The second group says how to run it and may be overridden at load time. NumPy
    numbers are accepted and stored as Python numbers.

    There are two forms of memory. "learned" is the paper's: every document gets the same number of
    memory tokens, and they are the final states of trained embedding rows. In "spans" a text of n
    tokens gets n / rate memory tokens, rounded up. Each stands for a span of `rate` tokens: it is
    the mean of their embeddings plus a trained linear map (the connector) of the final state.

    Attributes:
        backbone: hub id, folder or GGUF file of the causal language model; set by
            `Clara.from_backbone`.
        backbone_digest: of the weights of the backbone that the model was made with, see
            `clara.backbone.digest.backbone_digest`; set when a model is made, loaded or saved.
            None: not known. Loading a model on a backbone of other weights warns.
        memory_form: "learned" or "spans".
        compression_rate: document tokens per memory token. In "learned" it is nominal: a document
            gets `document_length / compression_rate` memory tokens, whatever its real length. In
            "spans" it is the rate of `Clara.compress` where no other is given.
        document_length: limit in document tokens, markers not counted.
        rates: the rates that a model in "spans" is trained for. "learned" has only
            `compression_rate`.
        question_rate: the rate at which questions are encoded in "spans".
        connector_rank: None makes the connector an H x H matrix; a number makes it the product of
            two thin ones of this rank. For "spans".
        span_slope: in "spans", by how much a token weighs less in its span's mean than the token
            before it, from 0 to 1. A plain mean, of slope 0, does not say in which order its tokens
            stand: 19 and 91 have the same. See `clara.model.connector.weighted_means`.
        ranking: "flattened" ranks documents by the cosine of all memory tokens, one after the
            other, "mean" by the cosine of their mean. None: "flattened" in "learned", "mean" in
            "spans", where documents differ in length and only "mean" is possible.
        distinct_memory_tokens: True trains one embedding per memory slot, False one for all slots.
            "spans" has one for all slots.
        separator: put the separator marker after each document's memory in a prompt.
        lora_rank, lora_alpha, lora_dropout: LoRA settings of the three adapters, which cover all
            linear layers.
        prompt: wording of the generator's prompt.

        overflow: what happens to a document over the limit: "chunk" splits it, "truncate" cuts
            it, "error" refuses it.
        top_k: number of documents the generator reads.
        temperature, relaxation, mask, noise: settings of the differentiable selection, see
            `clara_kernels.select_topk`.
        quantization: None, "nf4" or "int8" for the weights of the backbone's linear layers, except
            its output head. "int8" on a CPU is faster than none and needs no other package; the
            others need bitsandbytes. Memory of all lies in one space.
        dtype: dtype of activations and memory, by name or as a torch.dtype. "auto": bfloat16 on
            CUDA and on a CPU that has instructions for it (AVX512-BF16, AMX, Arm BF16), float32 on
            other CPUs. A checkpoint keeps the word, so each machine decides anew; memory of all
            dtypes lies in one space. None: float32 on every CPU, bfloat16 on CUDA.
        attention: attention implementation of the generator.
    """

    backbone: str | None = None
    backbone_digest: str | None = None
    memory_form: MemoryForm = "learned"
    compression_rate: int = 16
    document_length: int = 256
    rates: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    question_rate: int = 1
    connector_rank: int | None = None
    span_slope: float = 0.0
    ranking: RankingRule | None = None
    distinct_memory_tokens: bool = True
    separator: bool = True
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.1
    prompt: PromptTemplate = field(default=DEFAULT_PROMPT)

    overflow: Overflow = "chunk"
    top_k: int = 5
    temperature: float = 0.02
    relaxation: Relaxation = "softmax"
    mask: Mask = "exact"
    noise: Noise | None = None
    quantization: Quantization | None = None
    dtype: DtypeName | None = "auto"
    attention: Attention = "sdpa"

    def __post_init__(self) -> None:
        if isinstance(self.prompt, dict):
            if self.prompt.keys() != {"system", "user"}:
                raise ValueError(f"prompt must have 'system' and 'user', got {self.prompt!r}")
            self._set("prompt", PromptTemplate(**self.prompt))
        if not isinstance(self.prompt, PromptTemplate):
            raise TypeError(f"prompt must be a PromptTemplate, got {self.prompt!r}")
        for name in ("backbone", "backbone_digest"):
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise TypeError(f"{name} must be a string or None, got {text!r}")
        for name in (
            "compression_rate",
            "document_length",
            "question_rate",
            "lora_rank",
            "lora_alpha",
            "top_k",
        ):
            self._set(name, as_integer(getattr(self, name), name, least=1))
        if self.connector_rank is not None:
            self._set("connector_rank", as_integer(self.connector_rank, "connector_rank", least=1))
        for name in ("distinct_memory_tokens", "separator"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("temperature", "lora_dropout", "span_slope"):
            value: Any = getattr(self, name)
            if not is_number(value):
                raise TypeError(f"{name} must be a number, got {value!r}")
            self._set(name, float(value))
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")
        if not 0 <= self.span_slope <= 1:
            raise ValueError(f"span_slope must be in [0, 1], got {self.span_slope}")
        if (type(self.dtype).__module__, type(self.dtype).__name__) == ("torch", "dtype"):
            self._set("dtype", str(self.dtype).removeprefix("torch."))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                shown = ", ".join("null" if c is None else str(c) for c in choices)
                raise ValueError(f"{name} must be one of {shown}; got {getattr(self, name)!r}")
        self._check_rates()

    def _check_rates(self) -> None:
        """Check what the form of memory says about compression rates and ranking."""
        if not isinstance(self.rates, list | tuple) or not self.rates:
            raise TypeError(f"rates must be a list of compression rates, got {self.rates!r}")
        self._set("rates", tuple(sorted({as_integer(r, "rates", least=1) for r in self.rates})))
        if self.memory_form == "learned":
            if self.span_slope:
                raise ValueError(
                    'span_slope must be 0 with memory_form "learned", whose slots stand for no '
                    f"spans; got {self.span_slope}"
                )
            if self.document_length % self.compression_rate:
                raise ValueError(
                    f"compression_rate {self.compression_rate} does not divide document_length "
                    f"{self.document_length}: the number of memory tokens would not be whole"
                )
            return
        for name in ("compression_rate", "question_rate"):
            self.require_trained_rate(getattr(self, name), name)
        if self.ranking == "flattened":
            raise ValueError(
                'ranking must be "mean" with memory_form "spans": documents have unequal numbers '
                "of memory tokens, which cannot be compared one by one"
            )

    def require_trained_rate(self, rate: int, name: str = "compression_rate") -> None:
        """Refuse a compression rate that a model in "spans" was not trained for.

        Raises:
            ValueError: names the rates that were trained.
        """
        if rate not in self.rates:
            raise ValueError(
                f"{name} must be one of the rates that the model is trained for "
                f"({', '.join(map(str, self.rates))}), got {rate}"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def memory_tokens(self) -> int | None:
        """`m`: memory tokens written for each document; None in "spans", where it varies."""
        if self.memory_form == "spans":
            return None
        return self.document_length // self.compression_rate

    def most_memory_tokens(self, rate: int | None = None) -> int:
        """Memory tokens of a document of `document_length` tokens at a compression rate."""
        return -(-self.document_length // (rate or self.compression_rate))

    def index_settings(self, rate: int | None = None) -> dict[str, Any]:
        """What an index of a model's memory keeps in its settings.

        Args:
            rate: at which its documents are compressed; default `compression_rate`.
        """
        settings: dict[str, Any] = {
            "backbone": self.backbone,
            "compression_rate": rate or self.compression_rate,
            "document_length": self.document_length,
        }
        if self.memory_form == "spans":
            settings["memory_form"] = self.memory_form
        if self.ranking_rule == "mean":
            settings["ranking"] = self.ranking_rule
        return settings

    @property
    def ranking_rule(self) -> RankingRule:
        """How documents are ranked: `ranking`, or the default of the form of memory."""
        return self.ranking or ("mean" if self.memory_form == "spans" else "flattened")

    @property
    def model_fields(self) -> tuple[str, ...]:
        """Settings that define the model; a checkpoint and a request must agree on them."""
        return (_FIELDS_OF_LEARNED if self.memory_form == "learned" else ()) + _MODEL_FIELDS

    def replace(self, **changes: Any) -> ClaraConfig:
        """Return a copy with other values, validated again."""
        unknown = sorted(set(changes) - _FIELDS)
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}; settings are {sorted(_FIELDS)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {"clara_format": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClaraConfig:
        """Make a configuration from the dict that `to_dict` returns.

        Raises:
            SavedModelError: not a CLaRa configuration, or one of a newer format.
            TypeError, ValueError: an unknown setting, or a value that is none of its values.
        """
        values = dict(values)
        version = values.pop("clara_format", None)
        if version is None:
            raise SavedModelError("not a CLaRa configuration: 'clara_format' is missing")
        if version != FORMAT_VERSION:
            raise SavedModelError(
                f"clara_format {version!r} is not supported; this version reads 1"
            )
        # A file without the word is of a time when None was the default.
        return cls(dtype=None).replace(**values)

    def save(self, path: str | Path) -> None:
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ClaraConfig:
        """Read a `config.json`.

        Raises:
            SavedModelError: it cannot be read, or `from_dict` refuses it; names the file.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SavedModelError(f"{path}: cannot read the configuration: {error}") from error
        if not isinstance(values, dict):
            raise SavedModelError(f"{path}: not a CLaRa configuration: not a JSON object")
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise SavedModelError(f"{path}: {error}") from error


_FIELDS = {f.name for f in dataclasses.fields(ClaraConfig)}

_MODEL_FIELDS = (
    "memory_form",
    "connector_rank",
    "span_slope",
    "separator",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "prompt",
)
_FIELDS_OF_LEARNED = ("compression_rate", "document_length", "distinct_memory_tokens")
