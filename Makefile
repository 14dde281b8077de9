# make          build the programs; with STATIC=1, here and for "make install", programs that need no shared library: smaller
#               in memory and quicker to start (docs/performance.md says what that costs)
# make run      build the daemon and run it on 127.0.0.1:8085
# make test     run everything that this machine can run, and say what that takes, what was skipped and why;
#               with REQUIRE=all, build the packages and try them out, too, and fail if anything is skipped
# make bench    measure against a reference in C and other servers, and write docs/performance.md;
#               with QUICK=1, in four minutes after building, and without writing it
# make bench-core
#               measure the protocol alone, without sockets: per byte and per message
# make fuzz     run each fuzz target for FUZZ_SECONDS (60); takes cargo-fuzz and a nightly Rust
# make pages    generate the man pages, docs/messages.md and the completions, from the command lines, the documents and the catalog
# make recording
#               record docs/restart.svg anew: echoctl ping during a restart, on a booted machine; takes root, debootstrap and
#               systemd-container
# make crates   write the lists of the crates anew: third-party.md, the bill of materials, debian/copyright
# make project  write the addresses of the project anew wherever packages say them, from Cargo.toml
# make dist     make a tarball of the sources, as of the last commit
# make vendor   make a tarball of the crates that a build on Linux takes
# make deb, make rpm, make arch
#               build the package from both, in a clean Debian 13 without network; takes root, debootstrap and iproute2
# make test-packages
#               build all three, and install, upgrade, remove and purge them on booted machines; QUICK=1 without
#               their own tests and not optimized; REBUILD= takes those that are there, ONLY=debian13::deb is for some of the tests
# make install  put everything in its place; builds nothing, needs "make" before it

CARGO ?= cargo
CC ?= cc
INSTALL ?= install

PREFIX ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
BINDIR ?= $(PREFIX)/bin
DOCDIR ?= $(PREFIX)/share/doc/echoed
SYSCONFDIR ?= /etc
# The drop-ins of settings that come with the units. The daemon reads this directory, whatever PREFIX is.
SETTINGSDIR ?= /usr/lib/echoed/echoed.toml.d
UNITDIR ?= $(PREFIX)/lib/systemd/system
USERUNITDIR ?= $(PREFIX)/lib/systemd/user
CATALOGDIR ?= $(PREFIX)/lib/systemd/catalog
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
MANDIR ?= $(PREFIX)/share/man
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR ?= $(PREFIX)/share/zsh/site-functions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
# The root directory of the service: no files, only places where the units mount some.
ROOTDIR ?= $(PREFIX)/share/echoed/root
# What /run/systemd is for the service: links, each to its place in /run (LINKS, below). Not in ROOTDIR, where the units mount
# something on /run.
LINKSDIR ?= $(PREFIX)/share/echoed/links
# The version of systemd that the units are for: it decides which drop-ins are installed.
SYSTEMD_VERSION ?= $(or $(shell systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p'),252)
DESTDIR ?=

# The units of the system and of user managers. echoed-instance@.service is echoed.service with other names (INSTANCE).
UNITS = echoed.socket echoed-control.socket echoed-monitor.socket echoed-agent.socket echoed.service echoed@.service \
    echoed-instance@.socket echoed-instance@.service
USERUNITS = echoed.socket echoed.service

# What is put into units in place of the names of these directories.
FILL_IN = s|@SBINDIR@|$(SBINDIR)|g; s|@ROOTDIR@|$(ROOTDIR)|g; s|@LINKSDIR@|$(LINKSDIR)|g

# What is put into documents in place of the directories that they name, which are those of PREFIX=/usr/local; the longer
# before the shorter. Links lead to where things are when they are installed; what is not installed is not linked.
FILL_IN_PATHS = s|/usr/local/share/doc/echoed|$(DOCDIR)|g; s|/usr/local/lib/systemd/system|$(UNITDIR)|g; \
    s|/usr/local/sbin|$(SBINDIR)|g; s|/usr/local/bin|$(BINDIR)|g; s|/usr/local|$(PREFIX)|g
FILL_IN_LINKS = s|](docs/|](|g; s|](systemd/examples)|](examples)|g; s|](etc/echoed\.toml)|](/etc/echoed/echoed.toml)|g; \
    s|\[\([^]]*\)\](\.\./[^)]*)|\1|g; s|\[\([^]]*\)\](CO[A-Z_]*\.md)|\1|g

# How echoed.service becomes the service of an instance: one sandbox for both. Its connections are listed by no socket.
INSTANCE = /^Wants=echoed-control\.socket/d; s|^Description=.*|Description=Delimited echo service, the instance %i|; \
    s|echoed\.socket|echoed-instance@%i.socket|; \
    s|^\# The settings are in .*|\# The settings are in /etc/echoed/instances/%i: echoed.toml and echoed.toml.d, not in /etc/echoed.|; \
    s|^ConfigurationDirectory=echoed|ConfigurationDirectory=echoed/instances/%i|

# The drop-ins of units for versions of systemd.
VERSIONS = systemd/versions/*.conf systemd/user/*.conf

# Of one of them ($$file): the version, and the directories of the units that it is for. An instance has what echoed.socket and
# echoed.service have, a user manager the same without users (which it cannot choose) and what is for it alone.
define DROP_IN
version=$${file##*/}; unit=$${version#*-}; version=$${version%%-*}; unit=$${unit%.conf}; \
	    own="$(UNITDIR)/$$unit.d" instance="$(UNITDIR)/echoed-instance@.$${unit##*.}.d" user="$(USERUNITDIR)/$$unit.d"; \
	    case $$file in systemd/user/*) own='' instance='' ;; *@*) instance='' user='' ;; esac; \
	    if grep -q '^PrivateUsers=' "$$file"; then user=''; fi
endef

# Where cargo puts what it builds.
TARGETDIR ?= $(or $(CARGO_TARGET_DIR),target)
STATIC ?=
ifneq ($(STATIC),)
STATIC_ENV = RUSTFLAGS="$(strip $(RUSTFLAGS) -C target-feature=+crt-static)"
# With a target, the flags are not for what runs during the build.
STATIC_FLAGS = --target-dir "$(TARGETDIR)/static" --target "$$(rustc -vV | sed -n 's/^host: //p')"
STATIC_DIR = $(patsubst %/echoed,%,$(firstword $(wildcard $(TARGETDIR)/static/*/release/echoed)))
BUILDDIR ?= $(or $(STATIC_DIR),$(error there are no static programs to install: "make STATIC=1" first))
endif
# Where the programs to install are.
BUILDDIR ?= $(TARGETDIR)/release

# The man pages, each in its section.
PAGES = echoctl.1 echoed.toml.5 echoed-protocol.7 echoed.8

# Where tarballs and packages are made.
DISTDIR ?= $(TARGETDIR)/dist
VERSION = $(shell sed -n '0,/^version = "\(.*\)"/s//\1/p' Cargo.toml)

VENDOR = $(DISTDIR)/echoed-$(VERSION)-vendor.tar.xz

# What systemd mounts something on in the root directory of the service, or else would make there.
PLACES = bin dev etc/echoed lib lib64 proc root run sbin sys tmp usr/lib usr/lib64 var/tmp

# What the units or systemd mount in /run/systemd. A mount on a file of ours would go when an upgrade replaces the file, so
# links lead to places that systemd makes.
LINKS = incoming journal notify

REQUIRE ?=

REBUILD ?= yes
ONLY ?=

QUICK ?=
ARGS ?=
# Where the results are written, beside stdout: only those of a whole run, unless asked.
REPORT ?= $(if $(QUICK)$(ARGS),,docs/performance.md)

FUZZ_SECONDS ?= 60

.PHONY: all run test bench bench-core fuzz pages recording project crates dist vendor deb rpm arch test-packages \
    install uninstall clean

all:
	$(STATIC_ENV) $(CARGO) build --release --locked $(STATIC_FLAGS)

run:
	$(CARGO) build --locked
	@echo
	@echo "Talk to it from another terminal:"
	@echo "  $(TARGETDIR)/debug/echoctl send 127.0.0.1:8085 aaaa"
	@printf '  %s\n' "printf 'aaaa\t' | nc -N 127.0.0.1 8085"
	@printf '  %s\n' "printf 'aaaa\t' | socat -t2 - TCP:127.0.0.1:8085"
	@echo "Ctrl-C ends it."
	@echo
	@exec $(TARGETDIR)/debug/echoed

test:
	CARGO="$(CARGO)" TARGETDIR="$(TARGETDIR)" REQUIRE="$(REQUIRE)" sh tests/run

# What is measured is what is installed. What cargo builds beside a bench has features that only tests need, so that is
# kept apart.
bench: all
	-$(MAKE) --no-print-directory STATIC=1 all
	$(CARGO) bench --locked --target-dir "$(TARGETDIR)/bench" --bench loopback -- --server "$(BUILDDIR)/echoed" \
	    --static "$$(ls "$(TARGETDIR)"/static/*/release/echoed | head -n 1)" \
	    $(if $(QUICK),--quick) $(if $(REPORT),--report "$(REPORT)") $(ARGS)

# Without the programs, which would be linked for it too.
bench-core:
	$(CARGO) bench --locked --no-default-features --bench framer --bench session $(if $(ARGS),-- $(ARGS))

fuzz:
	@for target in fuzz/fuzz_targets/*.rs; do target=$${target##*/}; \
	    $(CARGO) +nightly fuzz run "$${target%.rs}" -- -max_total_time=$(FUZZ_SECONDS) || exit 1; done

pages:
	$(CARGO) run --quiet --locked --package xtask -- pages

# A systemd that is not too old to keep connections over a restart.
recording:
	ECHOED_WRITE_RECORDING=1 ECHOED_TEST_REQUIRE=all $(CARGO) test --locked --test system -- debian13::doc_recording

project:
	python3 packaging/project.py write

# debian/copyright has both.
crates: project
	CARGO="$(CARGO)" python3 packaging/crates.py write

dist:
	@git rev-parse --verify --quiet HEAD >/dev/null || { echo "cannot make a tarball: this is not a git checkout" >&2; exit 1; }
	@test -z "$$(git status --porcelain)" || echo "what is not committed is not in the tarball" >&2
	@mkdir -p "$(DISTDIR)"
	@# Named when it is whole: a half one would be taken for it. (The tarball's own format runs gzip, and fails if that does.)
	@partial="$(DISTDIR)/.partial-$$$$.tar.gz"; trap 'rm -f "$$partial"' EXIT; \
	    git -c tar.umask=022 -c tar.tar.gz.command='gzip -9n' archive --format=tar.gz --prefix="echoed-$(VERSION)/" \
	        --output="$$partial" HEAD -- . ':(exclude).ci' && \
	    mv "$$partial" "$(DISTDIR)/echoed-$(VERSION).tar.gz"

vendor: $(VENDOR)

$(VENDOR): Cargo.lock packaging/crates.py
	@command -v python3 >/dev/null || { echo "make vendor takes python3 (3.11 or newer), which is not installed" >&2; exit 1; }
	CARGO="$(CARGO)" python3 packaging/crates.py vendor "$@"

deb rpm arch: dist vendor
	$(if $(QUICK),BUILD_CHECK=no BUILD_QUICK=yes) packaging/build $@ "$(DISTDIR)"

test-packages: $(if $(REBUILD),deb rpm arch)
	ECHOED_PACKAGES="$(abspath $(DISTDIR))" $(CARGO) test --locked --test packages -- $(ONLY)

install:
	@for program in echoed echoctl; do test -x "$(BUILDDIR)/$$program" || { \
	    echo "$(BUILDDIR)/$$program is not built: run make first (not as root)" >&2; exit 1; }; done
	$(INSTALL) -d "$(DESTDIR)$(SBINDIR)" "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(USERUNITDIR)" \
	    "$(DESTDIR)$(CATALOGDIR)" "$(DESTDIR)$(SYSCONFDIR)/echoed/echoed.toml.d" "$(DESTDIR)$(SETTINGSDIR)" "$(DESTDIR)$(DOCDIR)"
	$(INSTALL) -m 755 "$(BUILDDIR)/echoed" "$(DESTDIR)$(SBINDIR)/echoed"
	$(INSTALL) -m 755 "$(BUILDDIR)/echoctl" "$(DESTDIR)$(BINDIR)/echoctl"
	@for unit in $(UNITS); do \
	    case $$unit in *.socket) sed='' ;; *) sed='$(FILL_IN)' ;; esac; \
	    case $$unit in echoed-instance@.service) source=echoed.service sed="$$sed; $(INSTANCE)" ;; *) source=$$unit ;; esac; \
	    $(INSTALL) -m 644 /dev/null "$(DESTDIR)$(UNITDIR)/$$unit" && \
	    sed "$$sed" "systemd/$$source" >"$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; done
	@for unit in $(USERUNITS); do \
	    $(INSTALL) -m 644 /dev/null "$(DESTDIR)$(USERUNITDIR)/$$unit" && \
	    sed '$(FILL_IN)' "systemd/user/$$unit" >"$(DESTDIR)$(USERUNITDIR)/$$unit" || exit 1; done
	@for file in $(VERSIONS); do \
	    $(DROP_IN); \
	    for directory in "$$own" "$$instance" "$$user"; do \
	        test -n "$$directory" || continue; \
	        rm -f "$(DESTDIR)$$directory/$$version.conf"; \
	        test "$$version" -gt "$(SYSTEMD_VERSION)" || { \
	            $(INSTALL) -d "$(DESTDIR)$$directory" && \
	            $(INSTALL) -m 644 "$$file" "$(DESTDIR)$$directory/$$version.conf"; } || exit 1; done; done
	@for place in $(PLACES); do $(INSTALL) -d "$(DESTDIR)$(ROOTDIR)/$$place" || exit 1; done
	$(INSTALL) -d "$(DESTDIR)$(ROOTDIR)$(SBINDIR)"
	@# Not replaced: a mount on it would go with it.
	@test -e "$(DESTDIR)$(ROOTDIR)$(SBINDIR)/echoed" || \
	    $(INSTALL) -m 644 /dev/null "$(DESTDIR)$(ROOTDIR)$(SBINDIR)/echoed"
	$(INSTALL) -d "$(DESTDIR)$(LINKSDIR)/systemd"
	@# The directories are there so that no link leads nowhere.
	@for link in $(LINKS); do $(INSTALL) -d "$(DESTDIR)$(LINKSDIR)/$$link" && \
	    ln -sfn "../$$link" "$(DESTDIR)$(LINKSDIR)/systemd/$$link" || exit 1; done
	$(INSTALL) -d "$(DESTDIR)$(TMPFILESDIR)"
	$(INSTALL) -m 644 systemd/tmpfiles/echoed.conf "$(DESTDIR)$(TMPFILESDIR)/echoed.conf"
	$(INSTALL) -d "$(DESTDIR)$(DOCDIR)/examples"
	$(INSTALL) -m 644 systemd/examples/* "$(DESTDIR)$(DOCDIR)/examples"
	$(INSTALL) -m 644 systemd/catalog/echoed.catalog "$(DESTDIR)$(CATALOGDIR)/echoed.catalog"
	$(INSTALL) -m 644 systemd/settings/10-sockets.toml "$(DESTDIR)$(SETTINGSDIR)/10-sockets.toml"
	@test -e "$(DESTDIR)$(SYSCONFDIR)/echoed/echoed.toml" || \
	    $(INSTALL) -m 644 etc/echoed.toml "$(DESTDIR)$(SYSCONFDIR)/echoed/echoed.toml"
	$(INSTALL) -m 644 CHANGELOG.md docs/*.svg LICENSE-MIT LICENSE-APACHE \
	    packaging/third-party.md packaging/echoed.cdx.json "$(DESTDIR)$(DOCDIR)"
	@for page in README.md SECURITY.md docs/*.md; do \
	    $(INSTALL) -m 644 /dev/null "$(DESTDIR)$(DOCDIR)/$${page##*/}" && \
	    sed '$(FILL_IN_PATHS); $(FILL_IN_LINKS)' "$$page" >"$(DESTDIR)$(DOCDIR)/$${page##*/}" || exit 1; done
	@for page in $(PAGES); do \
	    $(INSTALL) -d "$(DESTDIR)$(MANDIR)/man$${page##*.}" && \
	    $(INSTALL) -m 644 /dev/null "$(DESTDIR)$(MANDIR)/man$${page##*.}/$$page" && \
	    sed '$(FILL_IN_PATHS)' "docs/man/$$page" >"$(DESTDIR)$(MANDIR)/man$${page##*.}/$$page" || exit 1; done
	$(INSTALL) -d "$(DESTDIR)$(BASHCOMPDIR)" "$(DESTDIR)$(ZSHCOMPDIR)" "$(DESTDIR)$(FISHCOMPDIR)"
	@for program in echoed echoctl; do \
	    $(INSTALL) -m 644 packaging/completions/$$program.bash "$(DESTDIR)$(BASHCOMPDIR)/$$program" && \
	    $(INSTALL) -m 644 packaging/completions/_$$program "$(DESTDIR)$(ZSHCOMPDIR)/_$$program" && \
	    $(INSTALL) -m 644 packaging/completions/$$program.fish "$(DESTDIR)$(FISHCOMPDIR)/$$program.fish" || exit 1; done
	@test -n "$(DESTDIR)" || { echo "Now, as root:"; printf '  %s\n' 'systemctl daemon-reload' \
	    'systemd-tmpfiles --create echoed.conf' 'journalctl --update-catalog' 'systemctl enable --now echoed.socket'; }

uninstall:
	rm -f "$(DESTDIR)$(SBINDIR)/echoed" "$(DESTDIR)$(BINDIR)/echoctl"
	for unit in $(UNITS); do rm -f "$(DESTDIR)$(UNITDIR)/$$unit"; done
	for unit in $(USERUNITS); do rm -f "$(DESTDIR)$(USERUNITDIR)/$$unit"; done
	for file in $(VERSIONS); do \
	    $(DROP_IN); \
	    for directory in "$$own" "$$instance" "$$user"; do \
	        test -n "$$directory" || continue; \
	        rm -f "$(DESTDIR)$$directory/$$version.conf"; \
	        rmdir "$(DESTDIR)$$directory" 2>/dev/null; done; done; true
	rm -f "$(DESTDIR)$(CATALOGDIR)/echoed.catalog" "$(DESTDIR)$(TMPFILESDIR)/echoed.conf"
	@for page in $(PAGES); do rm -f "$(DESTDIR)$(MANDIR)/man$${page##*.}/$$page"; done
	@for program in echoed echoctl; do rm -f "$(DESTDIR)$(BASHCOMPDIR)/$$program" \
	    "$(DESTDIR)$(ZSHCOMPDIR)/_$$program" "$(DESTDIR)$(FISHCOMPDIR)/$$program.fish"; done
	rm -rf "$(DESTDIR)$(ROOTDIR)" "$(DESTDIR)$(LINKSDIR)"
	@rmdir "$(DESTDIR)$(dir $(ROOTDIR))" "$(DESTDIR)$(dir $(LINKSDIR))" 2>/dev/null; true
	rm -rf "$(DESTDIR)$(DOCDIR)"
	rm -f "$(DESTDIR)$(SETTINGSDIR)/10-sockets.toml"
	@rmdir "$(DESTDIR)$(SETTINGSDIR)" "$(DESTDIR)$(dir $(SETTINGSDIR))" 2>/dev/null; true
	@# Settings that were changed stay.
	@if cmp -s etc/echoed.toml "$(DESTDIR)$(SYSCONFDIR)/echoed/echoed.toml"; then \
	    rm -f "$(DESTDIR)$(SYSCONFDIR)/echoed/echoed.toml"; fi
	@rmdir "$(DESTDIR)$(SYSCONFDIR)/echoed/echoed.toml.d" "$(DESTDIR)$(SYSCONFDIR)/echoed/instances" \
	    "$(DESTDIR)$(SYSCONFDIR)/echoed" 2>/dev/null; true

clean:
	$(CARGO) clean
