# sam-ladder: `make` alone prints this help. Settings are variables: make precompute SCANS=/data/RawData STORE=synapse.zarr
.DEFAULT_GOAL := help
SHELL := /bin/bash

SCANS  ?= RawData
STORE  ?= store.zarr
RUN    ?= run
OUT    ?= $(RUN)/eval
# vit_b, vit_l or vit_h, for `make weights` and where SAM is not given
MODEL  ?= vit_b
WEIGHTS ?= weights
SAM    ?= $(WEIGHTS)/sam_$(MODEL)_$(SAM_$(MODEL)).pth
# Initial weights of the side network, where they are there; CNN= starts from random ones
CNN    ?= $(wildcard $(WEIGHTS)/resnet18-f37072fd.pth)
PREFIX ?= $(HOME)/.local
TABLES ?= tables
ROWS   ?= $(RUN)
SEEDS  ?= 1 2 3
ARGS   ?=
DEMO   ?= demo
VENV   ?= .venv
CARGO  ?= cargo
FUZZ_SECONDS ?= 60
FUZZ_FIRST   ?= 0
KILLS  ?= 200
SWEEP_KILLS ?= 50
CONFIG ?= docs/sweep.toml
SWEEP  ?= $(DEMO)/sweep
# On a GPU box: make precompute FEATURES=cuda
FEATURES ?=

# As their publisher names the files
SAM_vit_b := 01ec64
SAM_vit_l := 0b3195
SAM_vit_h := 4b8939

BUILD    := $(CARGO) build --release --quiet $(if $(FEATURES),--features $(FEATURES))
LADDER   := target/release/sam-ladder

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the program: target/release/sam-ladder (FEATURES=cuda for NVIDIA GPUs)
	$(BUILD)

.PHONY: demo
demo: build ## Synthetic scans → precompute → train → eval → a page to look at, on the CPU, in minutes (DEMO=folder)
	bench/demo.sh $(LADDER) $(DEMO)

.PHONY: weights
weights: ## Fetch the weights of SAM (MODEL=vit_b, vit_l or vit_h) and ResNet-18 from their publishers into WEIGHTS, and check them
	bench/weights.sh $(WEIGHTS) $(MODEL) resnet18

.PHONY: precompute
precompute: build ## Stage one: encode every slice of SCANS once into STORE with the SAM checkpoint SAM
	$(LADDER) precompute --scans $(SCANS) --store $(STORE) --sam-checkpoint $(SAM) $(ARGS)

.PHONY: train
train: build ## Stage two: train on STORE into the run folder RUN (ARGS="--lr 5e-4 --lambda 0.9" for more)
	$(LADDER) train --store $(STORE) --run $(RUN) $(if $(CNN),--cnn-checkpoint $(CNN)) $(ARGS)

.PHONY: sweep
sweep: STORE = $(DEMO)/store.zarr
sweep: build ## Search λ and the learning rate on the demo's store (STORE), by the file CONFIG, into the folder SWEEP; goes on if it is there
	bench/sweep.sh $(LADDER) $(STORE) $(CONFIG) $(SWEEP)

.PHONY: eval
eval: build ## Evaluate RUN on the test scans of STORE; tables, pictures and a report go to OUT
	$(LADDER) eval --store $(STORE) --run $(RUN) --out $(OUT) $(ARGS)

.PHONY: predict
predict: build ## Segment the new scans SCAN (files or a folder) with RUN into OUT (ARGS="--store new.zarr" keeps their embeddings)
	$(LADDER) predict --scan $(SCAN) --run $(RUN) $(if $(wildcard $(SAM)),--sam-checkpoint $(SAM)) --out $(OUT) $(ARGS)

.PHONY: install
install: ## Install the program below PREFIX (~/.local) with its manual pages and shell completions (FEATURES=cuda for NVIDIA GPUs)
	$(CARGO) install --path . --locked --root $(PREFIX) $(if $(FEATURES),--features $(FEATURES))
	$(PREFIX)/bin/sam-ladder man --out $(PREFIX)/share/man/man1
	mkdir -p $(PREFIX)/share/bash-completion/completions $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/fish/vendor_completions.d
	$(PREFIX)/bin/sam-ladder completions bash > $(PREFIX)/share/bash-completion/completions/sam-ladder
	$(PREFIX)/bin/sam-ladder completions zsh > $(PREFIX)/share/zsh/site-functions/_sam-ladder
	$(PREFIX)/bin/sam-ladder completions fish > $(PREFIX)/share/fish/vendor_completions.d/sam-ladder.fish

.PHONY: table1
table1: build ## The paper's Table I: ROWS="run/a,run/b other=run/c" (commas: seeds of one method) of STORE beside the published rows; to TABLES
	bench/table1.sh $(LADDER) $(STORE) $(TABLES) "$(ROWS)" $(ARGS)

.PHONY: table2
table2: build ## The paper's ablation: trains and evaluates every arm on STORE for each of SEEDS (ARGS="--epochs 50" for train); to TABLES
	bench/table2.sh $(LADDER) $(STORE) $(TABLES) "$(SEEDS)" $(ARGS)

.PHONY: test
test: ## Every test; needs nothing but Rust, a C compiler and make
	$(CARGO) test --release --workspace

.PHONY: settings-page
settings-page: ## docs/reference/settings.md again, after a setting has changed
	SAM_LADDER_WRITE_DOCS=1 $(CARGO) test --release -p sam-ladder-schemas --test settings_page

.PHONY: test-pages
test-pages: ## The pages that we write, in headless Chromium (installed by apt-get if there is none); pictures go to target/pages
	browser=$$(.ci/chromium.sh) && SAM_LADDER_CHROMIUM=$$browser $(CARGO) test --release --workspace --test pages --test sweep_page -- --ignored --test-threads=1

.PHONY: test-slurm
test-slurm: ## --slurm on a real Slurm of two nodes on this machine (Debian, root; installed by apt-get if there is none)
	$(CARGO) test --release --workspace --test slurm_cluster --no-run
	tests/slurm_cluster/with-slurm.sh $(CARGO) test --release --workspace --test slurm_cluster -- --ignored --test-threads=1

.PHONY: fuzz
fuzz: ## Damaged and hostile files to every parser, for a minute each (FUZZ_SECONDS; FUZZ_FIRST=1000000000 for other files)
	SAM_LADDER_FUZZ_SECONDS=$(FUZZ_SECONDS) SAM_LADDER_FUZZ_FIRST=$(FUZZ_FIRST) $(CARGO) test --release --workspace --test fuzz_parsers -- --nocapture

.PHONY: soak
soak: ## The fault campaign with many kills of precompute and of training (KILLS=200 each), all resumed to the same bytes
	SAM_LADDER_KILLS=$(KILLS) $(CARGO) test --release --workspace --test faults -- --nocapture --test-threads=1

.PHONY: soak-sweep
soak-sweep: ## A sweep killed fifty times (SWEEP_KILLS) at random moments, resumed each time to the same table
	SAM_LADDER_KILLS=$(SWEEP_KILLS) $(CARGO) test --release --workspace --test sweep a_killed_sweep -- --nocapture

.PHONY: bench-sweep
bench-sweep: build $(VENV)/ready ## TPE with successive halving against a grid of 64 points, five seeds, on a small phantom
	$(VENV)/bin/python bench/sweep_search.py $(LADDER) $(ARGS)

.PHONY: bench-sharing
bench-sharing: build ## What a sweep's trials save by going through the store together
	python3 bench/sharing.py $(LADDER) $(ARGS)

.PHONY: check
check: fmt clippy doc check-cuda ## Everything that CI checks besides the tests

.PHONY: fmt
fmt: ## Check the formatting
	$(CARGO) fmt --all --check

.PHONY: clippy
clippy: ## Lint, warnings are errors
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

.PHONY: doc
doc: ## Build the documentation of every crate, warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps --quiet

.PHONY: test-kernels
test-kernels: ## Every CUDA kernel on the host, against the CPU's operations (needs a C++ compiler, no GPU)
	$(CARGO) test --release --workspace --features emulate-kernels --lib -- device::
	SAM_LADDER_EMULATION_ORDER=reverse $(CARGO) test --release --workspace --features emulate-kernels --lib -- device::

.PHONY: test-kernels-whole
test-kernels-whole: ## The golden step and whole runs through the kernels on the host (slow)
	SAM_LADDER_EMULATE_KERNELS=1 $(CARGO) test --release --workspace --features emulate-kernels --test golden_step --test train_run

.PHONY: check-cuda
check-cuda: ## Compile and link the CUDA build, GPU or not (installs NVIDIA's compiler below ~/.cache if there is none)
	$(CARGO) fetch --locked --quiet
	environment=$$(.ci/cuda-toolchain.sh) && eval "$$environment" && $(CARGO) build --release --features cuda --target-dir target-cuda
	@echo "check-cuda: target-cuda/release/sam-ladder is linked"

.PHONY: gpu-binaries
gpu-binaries: check-cuda ## The CUDA build's test binaries and benchmarks, for gpu-check and gpu-pack (CUDA_COMPUTE_CAP=80 runs on every GPU from Ampere on)
	environment=$$(.ci/cuda-toolchain.sh) && eval "$$environment" && \
	$(CARGO) test --release --workspace --features cuda --target-dir target-cuda --no-run --lib --test golden_encoder --test golden_step --test golden_trajectory && \
	$(CARGO) build --release --workspace --features cuda --target-dir target-cuda --example gpu_step --example gpu_encoder

.PHONY: gpu-check
gpu-check: ## On a machine with a GPU, after gpu-binaries: goldens, gradients, resuming and times beside PyTorch's (ARGS=--checks-only)
	python3 bench/gpu/check.py $(ARGS)

.PHONY: gpu-pack
gpu-pack: ## After gpu-binaries: what gpu-check needs as one file under 60 MB, for a machine without Rust
	bench/gpu/pack.sh gpu-check.tar.xz

$(VENV)/ready: bench/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.PHONY: pictures
pictures: build $(VENV)/ready ## The pictures of README and docs again, from DEMO after `make demo` and `make sweep`, by headless Chromium
	browser=$$(.ci/chromium.sh) && $(VENV)/bin/python bench/pictures.py $(LADDER) $(DEMO) $$browser docs/pictures

.PHONY: users-path
users-path: build ## How long each command leaves its user without a word, over the whole way on phantom scans
	python3 bench/users_path.py $(LADDER)

.PHONY: parity
parity: build $(VENV)/ready ## Cross-check against PyTorch, SciPy, MedPy, nibabel, zarr-python and more, and run the how-tos (own virtual environment)
	$(VENV)/bin/python bench/parity.py $(LADDER)

.PHONY: bench
bench: $(VENV)/ready ## Every figure of docs/speed.md, PyTorch beside it in the same run; writes bench/results and the page
	$(CARGO) build --release --quiet --workspace --examples --bins
	$(VENV)/bin/python bench/bench.py $(ARGS)

.PHONY: bench-formats
bench-formats: build $(VENV)/ready ## What each number format and compression of a store costs and gives (ARGS=--dice trains the demo on each)
	$(CARGO) build --release --quiet --workspace --examples
	$(VENV)/bin/python bench/formats.py $(LADDER) $(ARGS)
