"""Examples of commands, shown at the end of their `--help`."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "clara init HuggingFaceTB/SmolLM2-135M-Instruct models/mine",
        "clara init backbones/qwen3 models/8x --compression-rate 8",
    ),
    "convert": ("clara convert checkpoints/reference models/reference",),
    "export": (
        "clara export --model models/mine --merged exported/mine",
        "clara export --model models/mine --merged exported/mine --dtype float32",
    ),
    "compress": (
        "clara compress --model models/mine --corpus docs.jsonl --output index",
        "clara compress --model m --corpus more.jsonl --output index --resume",
        "clara compress --model m --output index handbook",
    ),
    "search": (
        'clara search --model models/mine --index index "Where is Aruba?"',
        "clara search --model models/mine --index index --json - < question.txt",
        "clara search --model m --index i --filter 'since > 2010' \"Who?\"",
        'clara search --model m --index i --ids s1,s2 --ids @more.txt "Who?"',
    ),
    "ask": (
        'clara ask --model models/mine --index index "Where is Aruba?"',
        "export CLARA_MODEL=models/mine CLARA_INDEX=index",
        'clara ask --stream "Where is Aruba?"',
        "clara ask --json - < question.txt",
    ),
    "train": (
        "clara train pretrain --config recipes/smollm2-135m/16x.yaml",
        "clara train instruct --config run.yaml --max-steps 20 --resume",
    ),
    "plot": (
        "clara plot runs/mine/pretrain --output curves.png",
        "clara plot runs/first runs/second --begin 0 --begin 1200 --output curves.png",
    ),
    "synthesize": (
        "export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none",
        "clara synthesize --corpus docs.jsonl --output scp.jsonl --generator openai:m",
    ),
    "info": ("clara info models/mine", "clara info --json index"),
    "doctor": ("clara doctor", "clara doctor --json"),
    "demo": ('clara demo --documents 12 --question "How much did Colombia export in 2024?"',),
    "evaluate": (
        "clara evaluate --suite factbook --systems text,closed-book --output run",
        "clara evaluate --model models/mine --suite factbook --limit 200 --output run",
        "clara evaluate --model m --questions q.jsonl --documents index --output run",
    ),
    "evaluate report": (
        "clara evaluate report run -o report",
        "clara evaluate report run-4x run-16x -o report",
    ),
    "data factbook": ("clara data factbook --output data/factbook",),
    "data definitions": (
        "clara data definitions --output data/definitions",
        "clara data definitions --output data/definitions --no-prose",
    ),
    "data show": (
        "clara data show data/factbook/documents.train.jsonl",
        "clara data show data/factbook/questions.test.jsonl --number 10 --seed 1",
    ),
    "corpus show": (
        "clara corpus show handbook --limit 5",
        "clara corpus show cities.csv --text-field about --id-field city",
    ),
    "corpus write": (
        "clara corpus write handbook more.jsonl --output docs.jsonl",
        "clara corpus write 'docs/**/*.md' -o docs.jsonl --on-error skip",
        "clara corpus write t.parquet -o d.jsonl --metadata-field year:int",
    ),
    "index build": (
        "clara index build --model models/mine --output index handbook",
        "clara index build --model m --output i a.jsonl 'docs/**/*.md' --prune",
        "clara index build --model m --output i t.parquet --text-field about",
        "clara index build --model m --output i datasets:owner/name:en:train",
    ),
    "index add": ("clara index add --model m --index i more.jsonl",),
    "index replace": ("clara index replace --model m --index i mended.jsonl",),
    "index list": (
        "clara index list index --limit 20",
        "clara index list index --prefix handbook/ --json",
    ),
    "index get": ("clara index get index handbook/hours.txt",),
    "index delete": (
        "clara index delete index handbook/hours.txt n1",
        "clara index delete index --source handbook --yes",
    ),
    "index export": ("clara index export index --output docs.jsonl",),
    "index import": ("clara index import index other --on-duplicate skip",),
    "index migrate": (
        "clara index migrate index --model models/better",
        "clara index migrate index --model models/better --storage int8",
    ),
    "index verify": (
        "clara index verify index",
        "clara index verify index --repair --model models/mine",
    ),
    "index versions": ("clara index versions index",),
    "index restore": ("clara index restore index 3",),
    "index compact": (
        "clara index compact index",
        "clara index compact index --older-than 7d",
    ),
    "index view": (
        "clara index view index",
        "clara index view index --check",
    ),
    "index info": ("clara index info index",),
    "index upgrade": ("clara index upgrade --model models/mine index",),
    "bench report": (
        "clara bench report build/bench/results.json -o report",
        "clara bench report before.json after.json",
    ),
}
"""By the words of a command. Each fits a line of a terminal with 80 columns."""


def add_examples(app: typer.Typer, above: str = "") -> None:
    """Give every command of an application, and of those in it, its examples."""
    for command in app.registered_commands:
        callback = command.callback
        name = command.name or (callback.__name__ if callback else "")
        if examples := EXAMPLES.get(f"{above}{name}"):
            command.epilog = _shown(examples)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            words = f"{above}{group.typer_instance.info.name}"
            if examples := EXAMPLES.get(words):
                group.typer_instance.info.epilog = _shown(examples)
            add_examples(group.typer_instance, f"{words} ")


def _shown(examples: tuple[str, ...]) -> str:
    """Paragraphs, which all versions of typer leave on lines of their own."""
    title = "Example:" if len(examples) == 1 else "Examples:"
    return "\n\n".join([title, *(f"$ {each}" for each in examples)])
