# What there is to make: `make help`.
#
# One release configuration serves the program and the tests, so everything compiles once. `swift test` without
# --skip-build would compile all of it again, with -enable-testing, which these tests don't need.

SWIFT      ?= swift
SWIFTFLAGS ?=
TESTFLAGS  ?=
LABFLAGS   ?=
PREFIX     ?= /usr/local
DESTDIR    ?=
FUZZ       ?= 10000
FUZZ_SOFT  ?= 1000000
DIFFERENTIAL ?= 200000
SOAK       ?= 1800

BUILT := .build/release/vmrr

# The binary that the end-to-end tests, the demo and the benchmarks run.
export VMRR_BINARY ?= $(CURDIR)/$(BUILT)

bindir  = $(DESTDIR)$(PREFIX)/bin
datadir = $(DESTDIR)$(PREFIX)/share
installed = $(bindir)/vmrr $(datadir)/man/man1/vmrr.1 $(datadir)/bash-completion/completions/vmrr \
	$(datadir)/zsh/site-functions/_vmrr $(datadir)/fish/vendor_completions.d/vmrr.fish

.NOTPARALLEL:
.PHONY: help setup build test-build demo test lab test-lab differential fuzz soak bench install uninstall clean

help:
	@echo 'make demo       records a guest until it fails, replays the failure, shows it'
	@echo 'make test       runs every test on this host'
	@echo 'make test-lab   runs the tests of KVM and the built-in guests in the lab; LABFLAGS="--filter LinuxGuest": Linux'
	@echo 'make build      builds $(BUILT)'
	@echo 'make lab        a shell on a machine with a stock /dev/kvm, which QEMU emulates: scripts/lab help'
	@echo 'make install    installs what make build left: PREFIX=$(PREFIX), DESTDIR is honoured'
	@echo 'make uninstall  takes it away again'
	@echo 'make fuzz       $(FUZZ) mutated traces (FUZZ=N), a hundred times as many predicates, and'
	@echo '                $(FUZZ_SOFT) guests of random code in each mode of the processor (FUZZ_SOFT=N), or in some'
	@echo '                (VMRR_FUZZ_MODES=real,long)'
	@echo 'make differential  $(DIFFERENTIAL) cases of instructions on the processor and in the soft engine (DIFFERENTIAL=N)'
	@echo 'make soak       records with --keep for half an hour (SOAK=SECONDS)'
	@echo 'make bench      measurements, side by side'
	@echo 'make clean      removes what was built'
	@echo
	@echo 'demo, test and build install missing packages first, and name them before they do.'
	@echo 'SWIFTFLAGS go to every swift build, TESTFLAGS to every swift test (TESTFLAGS="--filter UART"), LABFLAGS to the'
	@echo 'tests in the lab.'

setup:
	@scripts/setup

build: setup
	$(SWIFT) build -c release --product vmrr $(SWIFTFLAGS)

test-build: setup
	$(SWIFT) build -c release --build-tests $(SWIFTFLAGS)

demo: build
	@scripts/demo

test: test-build
	$(SWIFT) test -c release --skip-build --disable-xctest $(TESTFLAGS)

test-lab: test-build
	@scripts/test-lab $(LABFLAGS)

differential: test-build
	VMRR_DIFFERENTIAL=$(DIFFERENTIAL) $(SWIFT) test -c release --skip-build --disable-xctest --filter DifferentialTests $(TESTFLAGS)

lab: build
	@scripts/lab shell

fuzz: test-build
	VMRR_FUZZ_SOFT=$(FUZZ_SOFT) $(SWIFT) test -c release --skip-build --disable-xctest --filter RandomCodeTests $(TESTFLAGS)
	VMRR_FUZZ=$(FUZZ) $(SWIFT) test -c release --skip-build --disable-xctest --filter MutatedTraces $(TESTFLAGS)
	VMRR_FUZZ_PREDICATES=$$(($(FUZZ) * 100)) $(SWIFT) test -c release --skip-build --disable-xctest \
		--filter noInputCrashesTheParser $(TESTFLAGS)

soak: test-build
	VMRR_SOAK=$(SOAK) $(SWIFT) test -c release --skip-build --disable-xctest --filter goesOnForLong $(TESTFLAGS)

bench: build
	Benchmarks/run

# Built only when missing, so that `sudo make install` after `make build` needs no compiler.
$(BUILT):
	$(MAKE) build

install: $(BUILT)
	install -d $(sort $(dir $(installed)))
	install -m 755 $(BUILT) $(bindir)/vmrr
	install -m 644 docs/vmrr.1 $(datadir)/man/man1/vmrr.1
	$(BUILT) --generate-completion-script bash > $(datadir)/bash-completion/completions/vmrr
	$(BUILT) --generate-completion-script zsh > $(datadir)/zsh/site-functions/_vmrr
	$(BUILT) --generate-completion-script fish > $(datadir)/fish/vendor_completions.d/vmrr.fish

uninstall:
	rm -f $(installed)

clean:
	$(SWIFT) package clean
	rm -rf demo Benchmarks/out .build-lab lab-failures
