# banger. Each rule that a person starts has a remark behind "##"; `make help`
# shows them. Results that cost minutes are kept below $XDG_CACHE_HOME/banger.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN      := build/bin
# The lab gets programs of a constant version: what is installed there is cached
# by its content, and a commit that changes no program changes no content.
LAB_BIN  := build/lab-bin
# The fault matrix needs programs in which faults can be injected; nothing else
# gets those.
FAULTS_BIN := build/faults-bin
TAGS     :=
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X banger/internal/version.Version=$(VERSION)
PROGRAMS := banger bangerd banger-helper banger-agent

# Packages whose tests need root and real kernel objects say so in a build tag.
LAB_PACKAGES = $(sort $(dir $(shell grep -rl --include='*_test.go' '^//go:build lab' internal cmd 2>/dev/null)))

STEP := scripts/step

# Host packages as PROGRAM:PACKAGE; the name of the package is Debian's.
TEST_PACKAGES := gcc:gcc /usr/include/stdio.h:libc6-dev mke2fs:e2fsprogs cpio:cpio \
	xz:xz-utils zstd:zstd ssh:openssh-client
MACHINE_PACKAGES := qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils mmdebstrap:mmdebstrap \
	/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring \
	mke2fs:e2fsprogs ssh:openssh-client
KERNEL_PACKAGES := gcc:gcc make:make flex:flex bison:bison bc:bc pahole:dwarves xz:xz-utils dpkg-deb:dpkg \
	/usr/include/stdio.h:libc6-dev /usr/include/libelf.h:libelf-dev \
	/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
ifneq ($(shell id -u),0)
MACHINE_PACKAGES += fakeroot:fakeroot newuidmap:uidmap
endif

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: ## Run a command in a microVM, from nothing: packages, build, machine
	@rm -rf build/stages
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory build
	@scripts/run

.PHONY: test
test: test-unit test-lab ## Lint, unit tests; in labs: tests, scenarios, confinement, a spread of faults

.PHONY: test-unit
test-unit: lint ## Lint and unit tests: no root, no virtual machine
	@$(STEP) "host packages" scripts/host-packages $(TEST_PACKAGES)
	@$(STEP) "go vet" go vet ./...
	@$(STEP) "unit tests" env CGO_ENABLED=1 go test -race ./...
	@$(STEP) "unit tests with faults" go test -tags faults ./internal/fault ./internal/vm -run 'TestPoint|StandsStill'

.PHONY: lint
lint: ## golangci-lint alone
	@$(STEP) "golangci-lint" scripts/golangci-lint run ./...

.PHONY: test-lab
test-lab: ## The part of it in labs, machines made for that (KEEP_LAB=1 keeps them)
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory lab-build faults-build
	@scripts/halves $(MAKE)

# An emulated lab keeps one processor busy, and most hosts have two: each half has
# a lab of its own. HALVES=1 runs one after the other.
.PHONY: half-a half-b
half-a half-b: half-%:
	@scripts/half $* $(MAKE) --no-print-directory in-lab-$*

# What the halves do once their labs run. The tests are built here and run there,
# as root. All kinds run even if one fails.
# Scenarios tell each test when it begins and ends, so that a log shows what hangs.
IN_LAB := env CGO_ENABLED=0 go test -count=1 -p 1 -timeout 70m -exec "'$(CURDIR)/scripts/lab-exec'"
FAULT_TESTS := $(IN_LAB) -timeout 10h -v -tags e2e,faults ./test/e2e/faults

.PHONY: in-lab-a in-lab-b
in-lab-a:
	@status=0; \
	$(STEP) "tests on real kernel objects" $(IN_LAB) -tags lab $(LAB_PACKAGES:%=./%) || status=1; \
	$(STEP) "confinement" scripts/scenarios confinement $(IN_LAB) -v -tags e2e -run '^(TestUnitsAreAsTightAsTheyWere|TestVMMTriesEverything|TestFirecrackersOwnFilterIsOn)$$' ./test/e2e/hostile || status=1; \
	$(STEP) "a spread of the fault matrix" scripts/spread $(FAULT_TESTS) -timeout 60m -skip TestKillCycles || status=1; \
	exit $$status

in-lab-b:
	@$(STEP) "scenarios" scripts/scenarios scenarios $(IN_LAB) -v -tags e2e ./test/e2e

# Programs with faults are of another version, so that they are recognised.
.PHONY: faults-build
faults-build:
	@$(MAKE) --no-print-directory build BIN=$(FAULTS_BIN) VERSION=lab-faults TAGS=faults

.PHONY: test-hostile
test-hostile: ## What a hostile VMM, owner and guest can do, in a lab of its own
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory lab-build
	@scripts/lab $(STEP) "hostile" $(IN_LAB) -v -tags e2e,hostile ./test/e2e/hostile

.PHONY: test-spread
test-spread: ## A part of the faults, about twenty minutes: each step and each kind
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory lab-build faults-build
	@scripts/lab $(STEP) "a spread of the fault matrix" scripts/spread $(FAULT_TESTS) -timeout 60m -skip TestKillCycles

.PHONY: test-faults
test-faults: ## Every fault at every step and kill cycles, hours (FAULTS=slice:K/N: a part)
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory faults-build
	@LAB_BIN=$(FAULTS_BIN) scripts/lab $(STEP) "faults" $(FAULT_TESTS)

.PHONY: test-power
test-power: ## Take the power from a host at random moments of starts and stops, takes long
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory lab-build
	@POWER_BUILD='$(CURDIR)/build' $(STEP) "power" go test -count=1 -timeout 5h -v -tags power ./test/power

.PHONY: bench
# Hosts have more than one CPU, and what systemd does behind the end of a VM competes
# with the answer on one: docs/decisions.md has both.
bench: ## Speed and size beside a floor measured in the same lab boot (LAB_CPUS=1: a host with one CPU)
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES)
	@$(STEP) "build" $(MAKE) --no-print-directory lab-build
	@LAB_CPUS=$${LAB_CPUS:-2} scripts/lab env CGO_ENABLED=0 go run -exec "'$(CURDIR)/scripts/lab-exec'" ./test/bench $(BENCH)

.PHONY: bench-growth
bench-growth: ## Memory of the services after 20 and after 200 VMs, takes long
	@LAB_CPUS=1 $(MAKE) --no-print-directory bench BENCH="-only growth"

.PHONY: kernel
kernel: ## Build the guest kernel (once, minutes): the lab, bench and machines take it then
	@$(STEP) "host packages" scripts/host-packages $(KERNEL_PACKAGES)
	@$(STEP) "guest kernel" guestkernel/build

.PHONY: build
build: $(PROGRAMS:%=$(BIN)/%) $(BIN)/firecracker ## The programs, static, in build/bin

.PHONY: package
package: build ## A Debian package of build/bin, in build/
	@scripts/package $(BIN) $(VERSION)

.PHONY: test-package
test-package: ## The package on a plain host: install, upgrade with a VM running, remove, purge
	@$(STEP) "host packages" scripts/host-packages $(MACHINE_PACKAGES) lintian:lintian
	@$(STEP) "build" $(MAKE) --no-print-directory lab-build
	@set -e; for i in 1 2; do \
		$(MAKE) --no-print-directory build BIN=build/package/bin$$i VERSION=v0.0.$$i; \
		deb=$$(scripts/package build/package/bin$$i v0.0.$$i); \
		$(STEP) "lintian" lintian --fail-on error $$deb; \
		mv $$deb build/package/$$i.deb; \
	done
	@scripts/lab scripts/test-package $(IN_LAB) -v -tags deb ./test/deb

.PHONY: lab-build
lab-build:
	@$(MAKE) --no-print-directory build BIN=$(LAB_BIN) VERSION=lab
	@CGO_ENABLED=0 go build -o build/labexec ./scripts/labexec # so that two lab-exec at once find it made

# Go knows best what has changed.
.PHONY: $(PROGRAMS:%=$(BIN)/%)
$(PROGRAMS:%=$(BIN)/%): $(BIN)/%:
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false $(if $(TAGS),-tags $(TAGS)) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# fetchvmm ends with 3 where only pip could help and is not there.
.PHONY: $(BIN)/firecracker
$(BIN)/firecracker:
	@CGO_ENABLED=0 go build -o build/fetchvmm ./scripts/fetchvmm
	@fetch() { build/fetchvmm -o $(BIN) 2>build/fetchvmm.log; }; \
	fetch || { [ $$? = 3 ] && scripts/host-packages pip3:python3-pip && fetch; } || \
	{ cat build/fetchvmm.log >&2; exit 1; }

.PHONY: clean
clean: ## Remove build/, with the lab if it was kept; the cache stays
	@set -e; for lab in build build/half-a build/half-b; do \
		if [ -d $$lab/data/banger ]; then \
			$(MAKE) --no-print-directory $(LAB_BIN)/banger BIN=$(LAB_BIN) VERSION=lab; \
			XDG_DATA_HOME='$(CURDIR)'/$$lab/data $(LAB_BIN)/banger machine rm --force lab; \
		fi; \
	done
	@rm -rf build
