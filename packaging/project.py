#!/usr/bin/env python3
"""The addresses of the project: copies them from `[package.metadata.project]` in Cargo.toml to every file that has them.

    project.py write    write the fields and files anew
    project.py check    list those that are stale

A field or a file is omitted while its value is empty. A field that a package must have (Maintainer of Debian) has a
placeholder then.
"""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:
    sys.exit("packaging/project.py takes Python 3.11 or newer (tomllib); this is "
             f"{sys.version_info.major}.{sys.version_info.minor}")

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"homepage", "repository", "issues", "downloads", "security", "maintainer"}
NAME = "The echoed developers"
# example.org is reserved for documents (RFC 2606): no mail arrives there.
PLACEHOLDER = f"{NAME} <echoed@example.org>"


def values():
    """Returns the values, by their keys, with the version of the package."""
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    project = package.get("metadata", {}).get("project", {})
    if set(project) != KEYS:
        sys.exit(f"[package.metadata.project] in Cargo.toml has the keys {', '.join(sorted(project)) or '(none)'}, "
                 f"not {', '.join(sorted(KEYS))}")
    for key, value in project.items():
        is_address = re.fullmatch(r"https://[^\s\"'<>$`\\]+", value)
        if key == "maintainer":
            good, example = re.fullmatch(r"[^<>]+ <\S+@\S+>", value), "A Name <address@example.org>"
        elif key == "security":
            good, example = is_address or re.fullmatch(r"[^\s/<>]+@[^\s<>]+", value), "security@example.org"
        else:
            good, example = is_address, "https://example.org/echoed"
        if value and not good:
            sys.exit(f'invalid {key} "{value}" in [package.metadata.project] of Cargo.toml (example: {example})')
    return project | {"version": package["version"]}


def has_signing_key():
    """Returns whether the key that tags and tarballs are signed with is in the tree."""
    return (ROOT / "packaging/debian/upstream/signing-key.asc").exists()


# --- Fields ------------------------------------------------------------------------------------------------------------


def with_fields(text, after, pattern, fields):
    """Replaces the fields of a file: drops all lines that match `pattern`, and puts those of `fields` that have a value below
    the line that begins with `after`."""
    lines = [line for line in text.splitlines(keepends=True) if not re.match(pattern, line)]
    place = next(number for number, line in enumerate(lines) if line.startswith(after)) + 1
    return "".join(lines[:place] + [f"{start}{value}{end}\n" for start, value, end in fields if value] + lines[place:])


def cargo(project, text):
    """Cargo.toml: what crates.io shows."""
    fields = [('homepage = "', project["homepage"], '"'), ('repository = "', project["repository"], '"')]
    package, rest = text.split("[package.metadata.project]", 1)
    return with_fields(package, "description = ", r"(homepage|repository) = ", fields) + "[package.metadata.project]" + rest


def debian_control(project, text):
    text = re.sub(r"(?m)^Maintainer: .*", f"Maintainer: {project['maintainer'] or PLACEHOLDER}", text)
    repository = project["repository"]
    fields = [("Homepage: ", project["homepage"], ""), ("Vcs-Browser: ", repository, ""),
              # In brackets, where debian/ is in it.
              ("Vcs-Git: ", repository, " [packaging]")]
    return with_fields(text, "Standards-Version: ", r"(Homepage|Vcs-Browser|Vcs-Git): ", fields)


def debian_copyright(project, text):
    """The head of debian/copyright.in, which crates.py goes on from."""
    fields = [("Upstream-Contact: ", project["maintainer"], ""),
              ("Source: ", project["repository"] or project["homepage"], "")]
    return with_fields(text, "Upstream-Name: ", r"(Upstream-Contact|Source): ", fields)


def source_overrides(project, text):
    """debian/source/lintian-overrides: the tags that lintian reports while values are empty."""
    tags = [("debian-watch-file-is-missing", debian_watch(project)), ("no-homepage-field", project["homepage"]),
            ("upstream-metadata-file-is-missing", upstream_metadata(project))]
    lines = [f"echoed source: {tag}\n" for tag, value in tags if not value]
    reason = "# The project has no public address yet.\n"
    kept = [line for line in text.splitlines(keepends=True)
            if line != reason and line not in [f"echoed source: {tag}\n" for tag, _ in tags]]
    return "".join(kept + ([reason] + lines if lines else []))


def spec(project, text):
    address = address_of_downloads(project, "%{version}")
    for number, name in enumerate(["%{name}-%{version}.tar.gz", "%{name}-%{version}-vendor.tar.xz"]):
        text = re.sub(rf"(?m)^Source{number}: .*", lambda _, at=number, what=name: f"Source{at}:        {address}{what}", text)
    fields = [("URL:            ", project["homepage"] or project["repository"], ""),
              ("BugURL:         ", project["issues"], "")]
    return with_fields(text, "License: ", r"(Bug)?URL: ", fields)


def pkgbuild(project, text):
    address = address_of_downloads(project, "$pkgver")
    text = re.sub(r"(?m)^# Maintainer: .*", f"# Maintainer: {project['maintainer'] or PLACEHOLDER}", text)
    names = ["$pkgname-$pkgver.tar.gz", "$pkgname-$pkgver-vendor.tar.xz"]
    source = " ".join('"' + address + name + '"' for name in names)
    text = re.sub(r"(?m)^source=\(.*\)$", lambda _: f"source=({source})", text)
    return with_fields(text, "arch=", r"url=", [("url='", project["homepage"] or project["repository"], "'")])


def with_marked_line(text, line):
    """Replaces the line below the marker, which readers of the page do not see."""
    marker = '<!-- Written by "make project", from Cargo.toml: -->\n'
    before, after = text.split(marker)
    return before + marker + line + "\n" + after.split("\n", 1)[1]


def security_policy(project, text):
    """SECURITY.md: the contact."""
    contact = (f"Report it to <{project['security']}>, and not in public before a corrected version is released."
               if project["security"] else
               "The project has no public contact yet. Report it to the place from which you got echoed, and not in public.")
    return with_marked_line(text, contact)


def code_of_conduct(project, text):
    """CODE_OF_CONDUCT.md: the contact."""
    maintainer = project["maintainer"]
    contact = (f"Report what breaks these rules to {maintainer}." if maintainer else
               "The project has no public contact yet. Report what breaks these rules to a maintainer whom you know.")
    return with_marked_line(text, contact)


def address_of_downloads(project, version):
    """Returns what stands before the names of the tarballs of a version: their directory, or nothing."""
    address = project["downloads"].replace("@VERSION@", version)
    return address and address.rstrip("/") + "/"


# --- Files -------------------------------------------------------------------------------------------------------------


def debian_watch(project):
    """Returns debian/watch, which finds new versions by the tags that releases are made from."""
    if not project["repository"]:
        return None
    signed = "gittag" if has_signing_key() else "none"
    return ("# Generated by \"make project\".\n"
            "version=4\n"
            f'opts="mode=git, pgpmode={signed}" \\\n'
            f"  {project['repository']} refs/tags/v([\\d.]+)\n")


def upstream_metadata(project):
    """Returns debian/upstream/metadata (DEP 12)."""
    fields = {"Bug-Database": project["issues"], "Bug-Submit": project["issues"], "Repository": project["repository"],
              "Repository-Browse": project["repository"], "Security-Contact": project["security"]}
    lines = [f"{name}: {value}\n" for name, value in fields.items() if value]
    return "".join(["---\n", *lines]) if lines else None


FIELDS = {"Cargo.toml": cargo, "packaging/debian/control": debian_control, "packaging/debian/copyright.in": debian_copyright,
          "packaging/debian/source/lintian-overrides": source_overrides,
          "packaging/rpm/echoed.spec": spec, "packaging/arch/PKGBUILD": pkgbuild,
          "SECURITY.md": security_policy, "CODE_OF_CONDUCT.md": code_of_conduct}
FILES = {"packaging/debian/watch": debian_watch, "packaging/debian/upstream/metadata": upstream_metadata}


def wanted():
    """Returns every file with what should be in it: `None` for a file that should not be there."""
    project = values()
    texts = {ROOT / path: fill(project, (ROOT / path).read_text()) for path, fill in FIELDS.items()}
    return texts | {ROOT / path: make(project) for path, make in FILES.items()}


def write():
    for path, text in wanted().items():
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    # Git has no empty directories.
    upstream = ROOT / "packaging/debian/upstream"
    if upstream.is_dir() and not any(upstream.iterdir()):
        upstream.rmdir()


def main():
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["check"]:
            stale = [path for path, text in wanted().items() if (path.read_text() if path.exists() else None) != text]
            for path in stale:
                print(f"{path.relative_to(ROOT)} is not what Cargo.toml makes of it: make project, and commit what changed")
            sys.exit(1 if stale else 0)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
