# Both programs need Go alone; "make race" needs a C compiler too.

VERSION   ?= $(shell git describe --always --dirty 2>/dev/null || echo development)
PREFIX    ?= /usr/local
FUZZTIME  ?= 60s
PACKAGES  ?= ./...
TESTFLAGS ?=
GOFLAGS   += -trimpath
LDFLAGS    = -X main.version=$(VERSION)

export CGO_ENABLED ?= 0

.PHONY: build install run test race test-peers fuzz soak bench lint

# The two programs, into bin/.
build:
	go build $(GOFLAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/cloud-cup ./cmd/cupctl

install: build
	install -D -m 0755 bin/cloud-cup $(DESTDIR)$(PREFIX)/bin/cloud-cup
	install -D -m 0755 bin/cupctl $(DESTDIR)$(PREFIX)/bin/cupctl

# A built-in configuration with two built-in backends; it prints a curl line.
run: build
	bin/cloud-cup --demo

test: build
	go test -timeout 20m $(TESTFLAGS) $(PACKAGES)

race: build
	CGO_ENABLED=1 go test -race -timeout 20m $(TESTFLAGS) $(PACKAGES)

# Tests with other people's programs as clients, backends and peers (Debian).
PEERS = nginx haproxy wrk curl openssl chromium python3 strace systemd-analyze sslscan testssl h2load
test-peers: build
	@missing=; for p in $(PEERS); do command -v $$p >/dev/null || missing="$$missing $$(echo $$p | sed 's/-analyze$$//; s/^h2load$$/nghttp2-client/; s/^testssl$$/testssl.sh/')"; done; \
	if [ -n "$$missing" ]; then apt-get update && apt-get install -y --no-install-recommends $$missing; fi
	go test -count=1 -timeout 20m -tags peers $(TESTFLAGS) ./integration/...

# Every fuzz target for FUZZTIME. An input that fails is not made smaller: what
# goes over sockets cannot be repeated often enough. Before Go 1.27 a run may end
# with "context deadline exceeded" and no failing input: go.dev/issue/75804.
fuzz:
	@log=$$(mktemp); trap 'rm -f '$$log EXIT; \
	grep -rno --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*:[0-9]*:func | |' | sort -u | \
	while read -r dir target; do \
		echo "$$dir $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$dir 2>&1 | tee $$log; \
		grep -q '^ok' $$log || { grep -qx ' *context deadline exceeded' $$log && ! grep -q 'Failing input' $$log; } || exit 1; \
	done

# The long forms of the tests.
soak: build
	CUP_LONG=1 go test -count=1 -timeout 3h $(TESTFLAGS) $(PACKAGES)

# Both engines, nginx and haproxy under load, interleaved; writes the results.
bench: build
	go build $(GOFLAGS) -o bin/bench ./bench
	bin/bench

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt -w $$unformatted"; exit 1; fi
	go vet ./...
	go vet -tags peers ./...
	go tool staticcheck ./...
	go tool staticcheck -tags peers ./...
