# make serve   build and run a mirror with the built-in defaults on localhost:3000
# make cluster build and run three nodes on this machine, as one cluster
# make image   build a container image from deploy/Dockerfile, and a secret for deploy/docker-compose.yml
# make test    everything that a change must pass
# make faults  what of that kills, stops and parts real processes, in a build with failpoints (docs/faults.md)
# make chaos   more of it, and random faults for CHAOS (10m); CHAOS_SEED=7 has those of an earlier run again
# make fuzz    every fuzz target for FUZZTIME (10s); a finding is a file in testdata/fuzz, to be committed with its mend
# make sim     simulate SEEDS (24) clusters under faults, from seed FIRST (1) on; SEED=n: only that one, see docs/simulation.md
# make mutants break each promise on purpose, and see a test go red (docs/proof.md); make mutants MUTANT=name tries one
# make alerts  have Prometheus' promtool evaluate the alerts of deploy/prometheus in their cases, and read the dashboard
# make wan     nine nodes in three zones, in network namespaces: zones are lost, cut off and badly connected (Linux, as root)
# make soak    mixed load for half an hour (SOAK=5m: shorter), after which goroutines must be back and memory within its bounds
# make real    the same promises against the real public Go module proxy and sum.golang.org
# make bench   measure against nginx, and print a table; make bench BENCH=zips measures one part, see bench_test.go
# make bench-cluster  the same for three nodes on loopback, against a single one; BENCH=loss measures one part, see benchcluster_test.go
# make bench-backup   backup and restore, against cp -r of the same files
# make bench-refill   how long a new node takes until it holds everything, against copies of the same files; REFILL=10000 for fewer than 100,000 versions
# make bench-wan      what several datacenters cost, on nine nodes in three zones (as root); BENCH=rest measures one part
# make bench-scrub    how long a client waits for a blob that has rotted, how fast a scrub is, and what it costs at rest

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What the go toolchain itself would use when nobody sets anything. The mirror's default upstream is linked in from here.
DEFAULT_UPSTREAM := $(shell env -u GOPROXY GOENV=off go env GOPROXY)
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -X main.defaultUpstream=$(DEFAULT_UPSTREAM) -X main.version=$(VERSION)

FUZZTIME = 10s
SEEDS = $(if $(SEED),1,24)
FIRST = $(or $(SEED),1)
SIMTIME = $(if $(filter 24,$(SEEDS)),8m,12h)
CHAOS = 10m
CHAOS_SEED =

.PHONY: serve cluster image build test check unit sim faults chaos fuzz mutants browser chromium alerts wan soak real bench bench-cluster bench-backup bench-refill bench-wan bench-scrub clean

serve: build
	./bin/modmirror serve

cluster: build
	./bin/modmirror cluster local

image: build
	rm -rf bin/image && mkdir -p bin/image/data
	cp bin/modmirror deploy/Dockerfile bin/image/
	cp /etc/ssl/certs/ca-certificates.crt bin/image/
	docker build -t modmirror bin/image
	mkdir -p -m 700 deploy/secret
	test -s deploy/secret/cluster-token || { ./bin/modmirror cluster token --new > deploy/secret/cluster-token && chmod 644 deploy/secret/cluster-token; }

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/modmirror ./cmd/modmirror

test: check build unit sim faults fuzz mutants browser

check:
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt -w $$out"; exit 1; }
	go vet ./...
	go vet -tags faults ./...
	go vet -tags browser ./...
	go vet -tags alerts ./cmd/modmirror
	go run $(STATICCHECK) ./...
	go run $(STATICCHECK) -tags faults ./...

unit:
	go test -race -timeout 40m ./...

# Without -race, which makes it ten times slower; unit runs one seed with it.
# A wait under a lock stops simulated time for good, as the clock does not know of it: a run that stands still, and only that, is tried once more.
sim:
	@run="go test -count=1 -timeout $(SIMTIME) -run ^TestSimulation$$ ./cmd/modmirror -sim.first $(FIRST) -sim.seeds $(SEEDS)"; \
		out=$$($$run 2>&1) || case "$$out" in \
			*"test timed out"*) echo "stood still, once more"; out=$$($$run 2>&1) || { echo "$$out"; exit 1; } ;; \
			*) echo "$$out"; exit 1 ;; \
		esac; echo "$$out"

# Without the race detector, which makes processes so slow that they lose each other without any fault.
faults:
	go test -tags faults -count=1 ./mirror/artifact/fault
	CHAOS=45s go test -tags faults -count=1 -parallel 3 -timeout 15m -run '^Test(KillAtEachPoint|ErrorAtEachPoint|HangingDiskOfLeader|SplitThreeTwo|Chaos)$$' ./cmd/modmirror

chaos:
	CHAOS=$(CHAOS) CHAOS_SEED=$(CHAOS_SEED) go test -tags faults -count=1 -parallel 3 -v -timeout 24h \
		-run '^Test(KillAtEachPoint|ErrorAtEachPoint|HangingDiskOfLeader|SplitThreeTwo|MinorityAlone|OneWayPartition|LossyNetwork|Chaos)$$' ./cmd/modmirror

# To make an input shorter takes a minute by default, in which nothing else is tried: all of the time, of targets whose
# coverage differs from run to run.
# Up to Go 1.26 a target can fail with nothing but "context deadline exceeded" when its time is over (go.dev/issue/75804):
# that, and nothing else, is tried once more.
fuzz:
	@for file in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' $$file); do \
			run="go test -run ^$$ -fuzz ^$$target$$ -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$(dirname $$file)"; \
			out=$$($$run 2>&1) || case "$$out" in \
				*"Failing input written"*) echo "$$out"; exit 1 ;; \
				*"context deadline exceeded"*) out=$$($$run 2>&1) || { echo "$$out"; exit 1; } ;; \
				*) echo "$$out"; exit 1 ;; \
			esac; \
			echo "$$target $$(echo "$$out" | sed -n 's/^fuzz: elapsed: \([^,]*, execs: [0-9]*\).*new interesting: .*(total: \([0-9]*\)).*/\1, corpus: \2/p' | tail -1)"; \
		done; \
	done

mutants:
	go test -tags mutants -count=1 -v -timeout 40m -run '^TestMutants(AreJudged)?$$/$(MUTANT)' ./cmd/modmirror

# The page for people in a real browser. Where there is none and none can be installed, that is said last, and loudly: make test has not
# tested the page then.
browser: chromium
	@if $(HAVE_CHROMIUM); then \
		echo go test -tags browser -run '^TestBrowser' ./cmd/modmirror; \
		go test -tags browser -count=1 -timeout 5m -run '^TestBrowser' ./cmd/modmirror; \
	else \
		echo '*** NOT RUN: the tests of the page in a browser, as there is no Chromium. Install it (Debian: apt-get install chromium), then: make browser'; \
	fi

HAVE_CHROMIUM = command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null

chromium:
	@$(HAVE_CHROMIUM) || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo 'apt-get install chromium' && \
		{ apt-get install -qq -y --no-install-recommends chromium || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; }; } >/dev/null 2>&1; } || true

# promtool of Debian's package prometheus, of which nothing is installed: its server would start.
alerts:
	@mkdir -p bin && export PATH="$$PATH:$(CURDIR)/bin" && \
		{ command -v promtool >/dev/null || (cd bin && apt-get download -qq prometheus && dpkg --fsys-tarfile prometheus_*.deb | tar -xf - --strip-components 3 ./usr/bin/promtool && rm prometheus_*.deb); } && \
		go test -tags alerts -count=1 -v -run '^TestAlert' ./cmd/modmirror

real: build
	MODMIRROR_REAL_BINARY=$(CURDIR)/bin/modmirror MODMIRROR_REAL_UPSTREAM='$(DEFAULT_UPSTREAM)' go test -tags real -count=1 -v -timeout 30m -run '^TestReal$$' ./cmd/modmirror

# As root, on Linux with network namespaces and TUN devices; a test says what is missing. Without the race detector, as faults.
wan:
	go test -tags wan -count=1 ./replicate/replicatetest/wannet
	go test -tags wan -count=1 -v -timeout 20m -run '^TestWAN' ./cmd/modmirror

soak:
	go test -tags soak -count=1 -v -timeout 90m -run '^TestSoak$$' ./cmd/modmirror

bench: build
	MODMIRROR_BENCH_BINARY=$(CURDIR)/bin/modmirror go test -tags bench -count=1 -v -timeout 60m -run '^TestBench$$/($(BENCH))' ./cmd/modmirror

bench-cluster: build
	MODMIRROR_BENCH_BINARY=$(CURDIR)/bin/modmirror go test -tags bench -count=1 -v -timeout 60m -run '^TestBenchCluster$$/($(BENCH))' ./cmd/modmirror

bench-backup: build
	MODMIRROR_BENCH_BINARY=$(CURDIR)/bin/modmirror go test -tags bench -count=1 -v -timeout 60m -run '^TestBenchBackup$$' ./cmd/modmirror

bench-refill: build
	MODMIRROR_BENCH_BINARY=$(CURDIR)/bin/modmirror REFILL=$(REFILL) go test -tags bench -count=1 -v -timeout 100m -run '^TestBenchRefill$$' ./cmd/modmirror

# As root, see wan.
bench-wan:
	go test -tags 'wan bench' -count=1 -v -timeout 20m -run '^TestBenchWAN$$/($(BENCH))' ./cmd/modmirror

bench-scrub:
	go test -tags bench -count=1 -v -timeout 20m -run '^TestBenchScrub$$' ./cmd/modmirror

clean:
	rm -rf bin
