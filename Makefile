# sam-ladder: `make` without arguments prints this help. Settings are variables: make precompute SCANS=/data/RawData STORE=synapse.zarr
.DEFAULT_GOAL := help
SHELL := /bin/bash

SCANS  ?= RawData
STORE  ?= store.zarr
RUN    ?= run
OUT    ?= $(RUN)/eval
# vit_b, vit_l or vit_h, for `make weights` and if SAM is not given
MODEL  ?= vit_b
WEIGHTS ?= weights
SAM    ?= $(WEIGHTS)/sam_$(MODEL)_$(SAM_$(MODEL)).pth
# Initial weights of the side network, if the file is there; CNN= starts from random ones
CNN    ?= $(wildcard $(WEIGHTS)/resnet18-f37072fd.pth)
PREFIX ?= $(HOME)/.local
TABLES ?= tables
ROWS   ?= $(RUN)
SEEDS  ?= 1 2 3
ARGS   ?=
DEMO   ?= demo
VENV   ?= .venv
CARGO  ?= cargo
# Where the CUDA build goes. It has compiler flags of its own, which in one folder with others would compile everything again
CUDA_TARGET ?= target-cuda
FUZZ_SECONDS ?= 60
FUZZ_FIRST   ?= 0
KILLS  ?= 200
SWEEP_KILLS ?= 50
MODEL_SECONDS ?= 300
CONFIG ?= docs/sweep.toml
SWEEP  ?= $(DEMO)/sweep
BEYOND ?= beyond
# On a machine with an NVIDIA GPU: make precompute FEATURES=cuda
FEATURES ?=

# The ending of the publisher's file names
SAM_vit_b := 01ec64
SAM_vit_l := 0b3195
SAM_vit_h := 4b8939

BUILD    := $(CARGO) build --release $(if $(FEATURES),--features $(FEATURES))
LADDER   := target/release/sam-ladder

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the program: target/release/sam-ladder (FEATURES=cuda for NVIDIA GPUs)
	$(BUILD)

.PHONY: demo
demo: build ## Run the whole pipeline on synthetic scans, on the CPU, in minutes; makes a page to look at (DEMO=folder)
	bench/demo.sh $(LADDER) $(DEMO)

.PHONY: weights
weights: ## Download the weights of SAM (MODEL=vit_b, vit_l or vit_h) and ResNet-18 from their publishers into WEIGHTS and check them
	bench/weights.sh $(WEIGHTS) $(MODEL) resnet18

.PHONY: viewer
viewer: ## Download the viewer NiiVue from npm's registry into WEIGHTS and check it, for `eval --viewer weights/niivue.umd.js`
	WEIGHTS_TABLE=bench/viewer.tsv bench/weights.sh $(WEIGHTS) niivue
	tar -xzf $(WEIGHTS)/niivue-0.69.0.tgz -C $(WEIGHTS) --strip-components=2 package/dist/niivue.umd.js

.PHONY: precompute
precompute: build ## Stage one: encode every slice of SCANS once into STORE with the SAM checkpoint SAM
	$(LADDER) precompute --scans $(SCANS) --store $(STORE) --sam-checkpoint $(SAM) $(ARGS)

.PHONY: train
train: build ## Stage two: train on STORE, into the run folder RUN (other settings: ARGS="--lr 5e-4 --lambda 0.9")
	$(LADDER) train --store $(STORE) --run $(RUN) $(if $(CNN),--cnn-checkpoint $(CNN)) $(ARGS)

.PHONY: sweep
sweep: STORE = $(DEMO)/store.zarr
sweep: build ## Search λ and the learning rate on the demo's store (or STORE), with the file CONFIG, into the folder SWEEP; resumes if it exists
	bench/sweep.sh $(LADDER) $(STORE) $(CONFIG) $(SWEEP)

.PHONY: eval
eval: build ## Evaluate RUN on the test scans of STORE; writes tables, pictures and a report to OUT
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

.PHONY: wheel
wheel: ## Build a Python wheel of the program and the package sam_ladder, in target/wheels (FEATURES=cuda for NVIDIA GPUs)
	FEATURES="$(FEATURES)" .ci/wheel.sh target/wheels

.PHONY: test-wheel
test-wheel: wheel ## Install the wheel into an empty environment and run the demo with it (FEATURES=cuda for that with CUDA)
	python/tests/$(if $(FEATURES),try_cuda_wheel.sh,try_wheel.sh) target/wheels

.PHONY: dist
dist: ## Make an archive of the program with licences, manual pages and completions, and its SHA-256, in target/dist (FEATURES=cuda for NVIDIA GPUs)
	CARGO="$(CARGO)" FEATURES="$(FEATURES)" .ci/dist.sh target/dist

.PHONY: table1
table1: build ## The paper's Table I, in TABLES: published rows and ROWS="run/a,run/b other=run/c" of STORE (commas separate seeds of one method)
	bench/table1.sh $(LADDER) $(STORE) $(TABLES) "$(ROWS)" $(ARGS)

.PHONY: table2
table2: build ## The paper's ablation, in TABLES: trains and evaluates every arm on STORE for each of SEEDS (ARGS="--epochs 50" for train)
	bench/table2.sh $(LADDER) $(STORE) $(TABLES) "$(SEEDS)" $(ARGS)

.PHONY: test
test: ## Run every test that needs only Rust, a C compiler and make
	$(CARGO) test --release --workspace

.PHONY: settings-page
settings-page: ## docs/reference/settings.md again, after a setting has changed
	SAM_LADDER_WRITE_DOCS=1 $(CARGO) test --release -p sam-ladder-schemas --test settings_page

.PHONY: test-pages
test-pages: ## Test the HTML pages in headless Chromium (installed by apt-get if there is none); writes pictures to target/pages
	$(MAKE) viewer WEIGHTS=target/viewer
	browser=$$(.ci/chromium.sh) && SAM_LADDER_CHROMIUM=$$browser $(CARGO) test --release --workspace --test pages --test sweep_page -- --ignored --test-threads=1

.PHONY: test-slurm
test-slurm: ## Test --slurm on a real Slurm of two nodes on this machine (Debian, root; installed by apt-get if there is none)
	$(CARGO) test --release --workspace --test slurm_cluster --no-run
	tests/slurm_cluster/with-slurm.sh $(CARGO) test --release --workspace --test slurm_cluster -- --ignored --test-threads=1

.PHONY: fuzz
fuzz: ## Give damaged and hostile files to every parser, for a minute each (FUZZ_SECONDS; FUZZ_FIRST=1000000000 for other files)
	SAM_LADDER_FUZZ_SECONDS=$(FUZZ_SECONDS) SAM_LADDER_FUZZ_FIRST=$(FUZZ_FIRST) $(CARGO) test --release --workspace --test fuzz_parsers -- --nocapture

.PHONY: soak
soak: ## Kill precompute and train many times (KILLS=200 each) and check that all resume to the same bytes; then drive stores and a sweep's folder by random commands (MODEL_SECONDS each)
	SAM_LADDER_MODEL_SECONDS=$(MODEL_SECONDS) $(CARGO) test --release --workspace --lib -- sweep::model_test --nocapture
	SAM_LADDER_KILLS=$(KILLS) $(CARGO) test --release --workspace --test faults -- --nocapture --test-threads=1
	SAM_LADDER_MODEL_SECONDS=$(MODEL_SECONDS) $(CARGO) test --release --workspace --test store_model -- --nocapture --test-threads=1

.PHONY: soak-sweep
soak-sweep: ## Kill a sweep fifty times (SWEEP_KILLS) at random moments and check that it resumes to the same table
	SAM_LADDER_KILLS=$(SWEEP_KILLS) $(CARGO) test --release --workspace --test sweep a_killed_sweep -- --nocapture

.PHONY: bench-sweep
bench-sweep: build $(VENV)/ready ## Compare TPE with successive halving with a grid of 64 points, five seeds, on a small phantom
	$(VENV)/bin/python bench/sweep_search.py $(LADDER) $(ARGS)

.PHONY: beyond
beyond: $(VENV)/ready ## Train each option beyond the paper on phantoms on which it can matter, three seeds each (BEYOND=folder, resumes; hours)
	$(CARGO) build --release --workspace --examples --bins
	$(VENV)/bin/python bench/beyond.py $(LADDER) $(BEYOND) --bench-step target/release/examples/bench_step $(ARGS)

.PHONY: bench-sharing
bench-sharing: build ## Measure what a sweep's trials save by reading the store together
	python3 bench/sharing.py $(LADDER) $(ARGS)

.PHONY: check
check: fmt clippy doc check-cuda kernels ## Everything that CI checks in addition to the tests

.PHONY: deny
deny: ## Check licences, sources and security advisories of every dependency (needs github.com; installs cargo-deny in target/tools)
	.ci/deny.sh

.PHONY: fmt
fmt: ## Check the formatting
	$(CARGO) fmt --all --check

.PHONY: clippy
clippy: ## Lint; warnings are errors
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

.PHONY: doc
doc: ## Build the documentation of every crate; warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps --quiet

.PHONY: test-cuda-host
test-cuda-host: ## Run the CUDA build on a driver of the host's: every kernel, the golden step and recorded steps (no GPU)
	CARGO="$(CARGO)" CUDA_TARGET="$(CUDA_TARGET)" tests/cuda_host/run.sh quick

.PHONY: test-cuda-host-whole
test-cuda-host-whole: ## The same with failing calls, the golden encoder, runs, sweeps, and other orders of streams
	CARGO="$(CARGO)" CUDA_TARGET="$(CUDA_TARGET)" tests/cuda_host/run.sh whole

.PHONY: gpu-calls
gpu-calls: ## Count the calls of a training step and of an encoder pass at their real sizes, on the host driver (no GPU)
	CARGO="$(CARGO)" CUDA_TARGET="$(CUDA_TARGET)" tests/cuda_host/run.sh count

.PHONY: roofline
roofline: gpu-calls ## The least time that these calls can take on several GPUs: a calculation
	for calls in $(CUDA_TARGET)/host-calls/*.csv; do echo; echo "$$calls"; python3 bench/gpu/roofline.py "$$calls" --markdown; done

.PHONY: check-cuda
check-cuda: ## Compile and link the CUDA build, with or without a GPU (installs NVIDIA's compiler below ~/.cache if there is none)
	$(CARGO) fetch --locked --quiet
	environment=$$(.ci/cuda-toolchain.sh) && eval "$$environment" && \
	$(CARGO) test --release --workspace --features cuda --target-dir $(CUDA_TARGET) --no-run --lib --test golden_step --test cuda_host
	@echo "check-cuda: $(CUDA_TARGET)/release/sam-ladder is linked"

.PHONY: kernels
kernels: ## Assemble every CUDA kernel for each GPU that we support, and hold it against ops/kernels.csv (no GPU)
	environment=$$(.ci/cuda-toolchain.sh) && eval "$$environment" && .ci/kernels.py

.PHONY: gpu-binaries
gpu-binaries: check-cuda ## Build the CUDA test binaries and benchmarks, for gpu-check and gpu-pack (CUDA_COMPUTE_CAP=80 runs on every GPU from Ampere on)
	environment=$$(.ci/cuda-toolchain.sh) && eval "$$environment" && export SAM_LADDER_CUDA_ARCHITECTURES=$${SAM_LADDER_CUDA_ARCHITECTURES-80,90} && \
	$(CARGO) test --release --workspace --features cuda --target-dir $(CUDA_TARGET) --no-run --lib --test golden_encoder --test golden_step --test golden_trajectory && \
	$(CARGO) build --release --workspace --features cuda --target-dir $(CUDA_TARGET) --example gpu_step --example gpu_encoder --example gpu_rates

.PHONY: gpu-check
gpu-check: ## On a machine with a GPU, after gpu-binaries: correctness, times next to PyTorch's (ARGS="--call 1 --budget 300", then call 2)
	python3 bench/gpu/check.py $(ARGS)

.PHONY: gpu-rehearsal
gpu-rehearsal: ## Rehearse gpu-check against stubs that hang, crash and overrun (no GPU)
	python3 bench/gpu/rehearse.py

.PHONY: gpu-report
gpu-report: ## Collect what to send us if something fails on a GPU: gpu-report.tar.gz (RUN=folder of the run that failed)
	python3 bench/gpu/report.py --run $(RUN)

.PHONY: gpu-pack
gpu-pack: ## After gpu-binaries: pack what gpu-check needs into one file under 60 MB, for a machine without Rust
	bench/gpu/pack.sh gpu-check.tar.xz

$(VENV)/ready: bench/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.PHONY: pictures
pictures: build $(VENV)/ready ## Make the pictures of README and docs, from DEMO after `make demo` and `make sweep`, with headless Chromium
	$(MAKE) viewer WEIGHTS=target/viewer
	browser=$$(.ci/chromium.sh) && $(VENV)/bin/python bench/pictures.py $(LADDER) $(DEMO) $$browser target/viewer/niivue.umd.js docs/pictures

.PHONY: users-path
users-path: build ## Measure how long each command is silent, from scans to masks, on phantoms
	python3 bench/users_path.py $(LADDER)

.PHONY: parity
parity: build $(VENV)/ready ## Compare with PyTorch, SciPy, MedPy, nibabel, zarr-python and others, and run the how-tos (in its own virtual environment)
	$(VENV)/bin/python bench/parity.py $(LADDER)

.PHONY: test-python
test-python: build $(VENV)/ready ## Test the Python package and the models in ONNX against the program (in its own virtual environment)
	$(CARGO) build --release --workspace --examples
	PYTHONPATH=python SAM_LADDER_PROGRAM=$(CURDIR)/$(LADDER) SAM_LADDER_LOGITS=$(CURDIR)/target/release/examples/logits \
	$(VENV)/bin/python -m pytest -q python/tests

.PHONY: bench
bench: $(VENV)/ready ## Measure every figure of docs/reference/speed.md, with PyTorch in the same run; writes bench/results and the page
	$(CARGO) build --release --workspace --examples --bins
	$(VENV)/bin/python bench/bench.py $(ARGS)

.PHONY: bench-formats
bench-formats: build $(VENV)/ready ## Measure size, speed and error of each number format and compression of a store (ARGS=--dice trains the demo on each)
	$(CARGO) build --release --workspace --examples
	$(VENV)/bin/python bench/formats.py $(LADDER) $(ARGS)
