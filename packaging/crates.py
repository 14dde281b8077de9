#!/usr/bin/env python3
"""Lists the crates in the programs of echoed and their licences, and collects their sources for packagers.

    crates.py write          write the lists anew: third-party.md, echoed.cdx.json, LICENSE.dependencies, debian/copyright
    crates.py check          say which of them are stale
    crates.py vendor FILE    the sources of all crates that a build on Linux takes, as FILE (.tar.xz)

Two runs make the same bytes: nothing depends on the time, the machine or the order in which anything is found. `vendor`
needs the network, the others only what a build has fetched.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from datetime import timezone
from email.utils import parseaddr, parsedate_to_datetime
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:
    sys.exit("packaging/crates.py takes Python 3.11 or newer (tomllib); this is "
             f"{sys.version_info.major}.{sys.version_info.minor}")

# Nothing is left in the tree by it.
sys.dont_write_bytecode = True
import project  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CARGO = os.environ.get("CARGO", "cargo")

# Where packages are built. What none of them takes is of no use in a vendored directory.
TARGETS = [
    "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "i686-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf",
    "riscv64gc-unknown-linux-gnu", "powerpc64le-unknown-linux-gnu", "s390x-unknown-linux-gnu",
    "loongarch64-unknown-linux-gnu", "x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl",
]

CONFIG = """\
# For .cargo/config.toml beside vendor/: builds take the crates from there, and nothing from the network.
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "vendor"

[net]
offline = true
"""


def run(*words, **options):
    return subprocess.run(words, cwd=ROOT, check=True, text=True, **options)


class Crates:
    """What Cargo.lock holds for Linux."""

    def __init__(self, offline):
        self.packages, self.edges, self.root, self.ours = {}, {}, None, set()
        for target in TARGETS:
            words = [CARGO, "metadata", "--locked", "--format-version=1", f"--filter-platform={target}"]
            told = json.loads(run(*words, *(["--offline"] if offline else []), stdout=subprocess.PIPE).stdout)
            self.root = told["resolve"]["root"]
            self.ours = set(told["workspace_members"])
            taken = {node["id"] for node in told["resolve"]["nodes"]}
            self.packages |= {package["id"]: package for package in told["packages"] if package["id"] in taken}
            for node in told["resolve"]["nodes"]:
                self.edges.setdefault(node["id"], {}).update(
                    {dep["pkg"]: {kind["kind"] for kind in dep["dep_kinds"]} for dep in node["deps"]})
        lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
        self.checksums = {(one["name"], one["version"]): one.get("checksum") for one in lock["package"]}

    def all(self):
        """Those that a build or a test takes, without our own."""
        return self.sorted(identity for identity in self.packages if identity not in self.ours)

    def linked(self):
        """Those that are in the programs: without what only builds or tests them."""
        found, left = set(), [self.root]
        while left:
            for identity, kinds in self.edges[left.pop()].items():
                is_macro = any("proc-macro" in target["kind"] for target in self.packages[identity]["targets"])
                if None in kinds and not is_macro and identity not in found:
                    found.add(identity)
                    left.append(identity)
        return self.sorted(found)

    def sorted(self, identities):
        return sorted((self.packages[identity] for identity in identities), key=lambda one: (one["name"], one["version"]))

    def checksum(self, package):
        return self.checksums[package["name"], package["version"]]


# --- Licences ----------------------------------------------------------------------------------------------------------


def expression(package):
    """Its licence in SPDX's notation. (The slash is an old way to write OR.)"""
    return package["license"].replace("/", " OR ") if package["license"] else "no licence given"


def licence_files(package):
    directory = Path(package["manifest_path"]).parent
    is_one = re.compile(r"(licen[cs]e|copying|unlicense|notice)", re.IGNORECASE)
    return sorted(path for path in directory.iterdir() if path.is_file() and is_one.match(path.name))


def chosen_texts(package):
    """The texts that must go with the programs: of the licence that we choose where there is a choice, which is MIT."""
    files = licence_files(package)
    terms = expression(package)
    if "MIT" in terms:
        named = [path for path in files if "mit" in path.name.lower()]
        others = [path for path in files if not re.search(r"apache|unlicense|copying|bsd|lgpl", path.name.lower())]
        chosen = named or others
    else:
        chosen = files
    if "Unicode-3.0" in terms:
        chosen = chosen + [path for path in files if "unicode" in path.name.lower()]
    texts = []
    for path in chosen:
        text = path.read_text(encoding="utf-8", errors="replace")
        texts.append("\n".join(line.rstrip() for line in text.strip().splitlines()))
    return texts


def third_party(crates):
    """Who is in the programs, under which terms."""
    linked = crates.linked()
    lines = [
        "# What else is in the programs", "",
        "Generated by `make crates`. The programs are linked with these crates; where there is a choice of licences, the text",
        "below is that of MIT. The C library is that of the system.", "", "| crate | version | licence | where from |",
        "|---|---|---|---|",
    ]
    groups = {}
    for package in linked:
        source = package["repository"] or f"https://crates.io/crates/{package['name']}"
        lines.append(f"| {package['name']} | {package['version']} | {expression(package)} | {source} |")
        for text in chosen_texts(package) or [f"{expression(package)}: by {', '.join(package['authors']) or 'its authors'}"]:
            groups.setdefault(text, []).append(package["name"])
    for text, names in sorted(groups.items(), key=lambda group: group[1]):
        lines += ["", f"## {', '.join(sorted(set(names)))}", "", *("    " + line if line else "" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def holders(package):
    """Returns the copyright holders that its licence files name, or else its authors."""
    found = []
    for path in licence_files(package):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.match(r"\s*Copyright\s+(?:\(c\)|©)?\s*(\d{4}.*|The .*)", line, re.IGNORECASE)
            if match and "[" not in line and "{" not in line:
                found.append(" ".join(match.group(1).split()).replace(". All rights reserved.", ""))
    return sorted(set(found)) or package["authors"] or [f"the developers of {package['name']}"]


# What Debian calls a licence, and its text where Debian has no file for it.
DEBIAN_NAMES = {"MIT": "Expat", "BSD-2-Clause": "BSD-2-clause", "BSD-3-Clause": "BSD-3-clause", "LGPL-2.1-or-later": "LGPL-2.1+",
                "Apache-2.0 WITH LLVM-exception": "Apache-2.0-with-LLVM-exception"}


def debian_licence(package):
    """Its licence as debian/copyright writes it. Of a choice, what is needed: Expat or Apache-2.0 are always among it."""
    terms = expression(package)
    for name, debian in DEBIAN_NAMES.items():
        if name == "Apache-2.0 WITH LLVM-exception":
            terms = terms.replace(f"{name} OR ", "")
    for name, debian in DEBIAN_NAMES.items():
        terms = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.+-])", debian, terms)
    conjunction = re.fullmatch(r"\((.*)\) AND (.*)", terms)
    if conjunction:
        # DEP 5 has no parentheses, but a comma.
        return f"{conjunction[1].replace(' OR ', ' or ')}, and {conjunction[2]}"
    return terms.replace(" OR ", " or ").replace(" AND ", " and ")


def debian_copyright(crates):
    """debian/copyright: its head, and a paragraph for each vendored crate."""
    text = (HERE / "debian" / "copyright.in").read_text()
    head, licences = text.split("@CRATES@\n")
    stanzas = []
    for package in crates.all():
        holders_lines = "\n           ".join(holders(package))
        stanzas.append(f"Files: vendor/{package['name']}-{package['version']}/*\nCopyright: {holders_lines}\n"
                       f"License: {debian_licence(package)}\n")
    named = head + "".join(stanzas)
    used = [paragraph for paragraph in re.split(r"(?m)^(?=License: )", licences)
            if not (name := re.match(r"License: (\S+)", paragraph)) or is_named(name[1], named)]
    return head + "\n".join(stanzas) + "".join(used).rstrip("\n") + "\n"


def is_named(licence, paragraphs):
    """Returns whether a paragraph about files has this licence among its own."""
    return re.search(rf"(?m)^License: (.* )?{re.escape(licence)}(,| |$)", paragraphs) is not None


def licence_list(crates):
    """LICENSE.dependencies, as Fedora's %cargo_license writes it: the licence of each crate in the programs."""
    return "".join(sorted(f"{expression(package)}: {package['name']} v{package['version']}\n" for package in crates.linked()))


def day_of_version():
    """Returns when the version was made, in RFC 3339: as Debian's changelog has it."""
    changelog = (HERE / "debian" / "changelog").read_text()
    made = parsedate_to_datetime(re.search(r"(?m)^ -- .*>  (.*)$", changelog)[1])
    return made.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def supplier(values):
    """Returns the supplier of the programs, as an entity, and the addresses of the project, as external references."""
    name, address = parseaddr(values["maintainer"])
    entity = {"name": name or project.NAME}
    if values["homepage"]:
        entity["url"] = [values["homepage"]]
    if address:
        entity["contact"] = [{"name": name, "email": address}]
    security = values["security"]
    places = [("website", values["homepage"]), ("vcs", values["repository"]), ("issue-tracker", values["issues"]),
              ("distribution", project.address_of_downloads(values, values["version"])),
              ("security-contact", f"mailto:{security}" if "@" in security and "/" not in security else security)]
    return entity, [{"type": kind, "url": place} for kind, place in places if place]


def bill_of_materials(crates):
    """The programs as CycloneDX 1.5 lists them, with what NTIA's minimum elements ask for."""
    def reference(package):
        return f"pkg:cargo/{package['name']}@{package['version']}"

    linked = crates.linked()
    known = {package["id"] for package in linked} | {crates.root}
    own = crates.packages[crates.root]
    components = []
    for package in linked:
        # crates.io supplies them; the authors are named beside it.
        component = {"type": "library", "bom-ref": reference(package),
                     "supplier": {"name": "crates.io", "url": [f"https://crates.io/crates/{package['name']}"]},
                     "author": ", ".join(package["authors"]) or f"the developers of {package['name']}",
                     "name": package["name"], "version": package["version"], "scope": "required"}
        if crates.checksum(package):
            component["hashes"] = [{"alg": "SHA-256", "content": crates.checksum(package)}]
        component["licenses"] = [{"expression": expression(package)}]
        component["purl"] = reference(package)
        if package["repository"]:
            component["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        components.append(component)
    dependencies = []
    for package in [own, *linked]:
        normal = [identity for identity, kinds in crates.edges[package["id"]].items() if None in kinds and identity in known]
        dependencies.append({"ref": reference(package), "dependsOn": sorted(reference(crates.packages[one]) for one in normal)})
    us, places = supplier(project.values())
    program = {"type": "application", "bom-ref": reference(own), "supplier": us, "name": own["name"], "version": own["version"],
               "licenses": [{"expression": expression(own)}], "purl": reference(own)}
    if places:
        program["externalReferences"] = places
    tool = {"type": "application", "supplier": us, "name": "packaging/crates.py", "version": own["version"]}
    content = {
        "metadata": {"timestamp": day_of_version(), "tools": {"components": [tool]}, "authors": [{"name": us["name"]}],
                     "component": program, "supplier": us},
        "components": components,
        "dependencies": dependencies,
    }
    # Of what it says, so that two runs have one number, and two lists do not.
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    bill = {"$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.5",
            "serialNumber": f"urn:uuid:{number}", "version": 1} | content
    return json.dumps(bill, indent=1, ensure_ascii=False) + "\n"


def lists():
    crates = Crates(offline=True)
    return {
        HERE / "third-party.md": third_party(crates),
        HERE / "echoed.cdx.json": bill_of_materials(crates),
        HERE / "LICENSE.dependencies": licence_list(crates),
        HERE / "debian" / "copyright": debian_copyright(crates),
    }


# --- Sources -----------------------------------------------------------------------------------------------------------


def stub(directory, checksum):
    """Puts next to nothing in the place of a crate that is only for other systems: Cargo wants to see that it is there,
    with its features and dependencies."""
    manifest = (directory / "Cargo.toml").read_text()
    kept = []
    for block in re.split(r"(?m)^(?=\[)", manifest):
        name = block.split("\n", 1)[0].strip("[] ")
        if name in ("lib", "bin", "example", "test", "bench"):
            continue
        if name == "package":
            block = re.sub(r"(?m)^(build|links|readme|license-file) = .*\n", "", block)
        kept.append(block)
    kept.append("\n[lib]\npath = \"src/lib.rs\"\n")
    shutil.rmtree(directory)
    (directory / "src").mkdir(parents=True)
    (directory / "src" / "lib.rs").write_text("")
    (directory / "Cargo.toml").write_text("".join(kept))
    (directory / ".cargo-checksum.json").write_text(json.dumps({"files": {}, "package": checksum}))


# What a crate has beside what is built, in its directory: its own tests, and what tools generated from them.
UNUSED = {"tests", "benches", "examples", "fuzz", "proptest-regressions", ".github", "Cargo.toml.orig", "tarpaulin-report.html"}


def prune(directory):
    """Takes out of a crate what no build of ours uses: generated files whose source is elsewhere, and tests with their data."""
    code = "".join(path.read_text(encoding="utf-8", errors="replace") for path in directory.glob("src/**/*.rs"))
    # Some programs and documents of a crate are included in its code.
    unused = {name for name in UNUSED if not re.search(rf'"(\.\./)+{re.escape(name)}[/"]', code)}
    for name in unused:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    # Cargo looks at the sums of all files that are listed.
    listing = directory / ".cargo-checksum.json"
    told = json.loads(listing.read_text())
    told["files"] = {path: told["files"][path] for path in sorted(told["files"]) if path.split("/")[0] not in unused}
    listing.write_text(json.dumps(told))


def require(purpose, *programs):
    """Ends with an error that names the programs that are not installed, if any, before anything is done."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(f"{purpose} takes {', '.join(missing)}, which cannot be found; install it, and repeat "
                 "(on Debian: apt install cargo tar xz-utils)")


def pack(directory, name, archive):
    """Packs the directory `name` in `directory`, as `archive`. A half archive never has that name: make would take it for a
    whole one."""
    tar = ["tar", "--create", "--format=gnu", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner",
           "--directory", directory, name]
    archive.parent.mkdir(parents=True, exist_ok=True)
    # (Builds copy all tarballs whose names begin with echoed-, so this one begins otherwise.)
    partial = archive.with_name(f".partial-{os.getpid()}-{archive.name}")
    try:
        with open(partial, "wb") as file:
            packed = subprocess.Popen(tar, stdout=subprocess.PIPE, env=os.environ | {"LC_ALL": "C"})
            compressed = subprocess.run(["xz", "--threads=1", "-6"], stdin=packed.stdout, stdout=file)
            packed.stdout.close()
            # xz first: without it, tar ends by SIGPIPE.
            for program, status in [("xz", compressed.returncode), ("tar", packed.wait())]:
                if status != 0:
                    sys.exit(f"{archive} is not made: {program} failed (status {status})")
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)


def vendor(archive):
    """Makes the archive: vendor/ with a directory for each crate, and config.toml, which makes Cargo use it."""
    require("make vendor", CARGO, "tar", "xz")
    crates = Crates(offline=False)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "vendor"
        run(CARGO, "vendor", "--quiet", "--locked", "--versioned-dirs", directory, stdout=subprocess.DEVNULL)
        taken = {f"{package['name']}-{package['version']}" for package in crates.all()}
        for (name, version), checksum in crates.checksums.items():
            if checksum and f"{name}-{version}" not in taken:
                stub(directory / f"{name}-{version}", checksum)
            elif checksum:
                prune(directory / f"{name}-{version}")
        (directory / "config.toml").write_text(CONFIG)
        for path in directory.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
        directory.chmod(0o755)
        pack(temporary, "vendor", archive)
    print(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive}")


def main():
    match sys.argv[1:]:
        case ["write"]:
            for path, text in lists().items():
                path.write_text(text)
        case ["check"]:
            stale = [path for path, text in lists().items() if not path.exists() or path.read_text() != text]
            for path in stale:
                print(f"{path.relative_to(ROOT)} is not what Cargo.lock makes of it: make crates, and commit what changed")
            sys.exit(1 if stale else 0)
        case ["vendor", archive]:
            vendor(Path(archive))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
