"""Make training data for every stage from a corpus with questions.

    python examples/factbook.py --output data
    python examples/training_data.py --data data

The script reads docs.jsonl and questions.train.jsonl and writes

    pretrain.jsonl     the questions and answers of each document
    instruct.jsonl     each question with the documents to answer it from
    end_to_end.jsonl   each question with its candidates

From questions.validation.jsonl it writes the same files with the ending _validation. It uses no
language model. `clara synthesize` uses one, and writes more questions and paraphrases.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clara.data.stage_files import write_stage_files


def main() -> None:
    parser = argparse.ArgumentParser(description="Make training data from questions.")
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path, required=True, help="with documents and questions"
    )
    parser.add_argument(
        "--candidates", type=int, default=20, help="documents per question (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.candidates < 1:
        parser.error("--candidates must be at least 1")
    try:
        counts = write_stage_files(arguments.data, arguments.candidates)
    except (OSError, ValueError) as error:
        sys.exit(f"training_data: {' '.join(str(error).split())}")
    for name, count in counts.items():
        print(f"{name}: {count}")


if __name__ == "__main__":
    main()
