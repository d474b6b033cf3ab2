"""deps.py APP OUT: finds out what a Python app depends on, without installing anything.

It reads the first of uv.lock, poetry.lock, requirements.txt and pyproject.toml that there is, and writes to the
directory OUT:

  source      the file's name
  notes       lines for people, may be empty
  key         a hash of all that decides what gets installed
  hashed.txt  pip requirements with hashes, one for each locked package
  direct.txt  pip requirements of locked packages without hashes: git commits, directories
  loose.txt   pip requirements whose versions pip has to choose
  project     is there when the project itself is to be installed, for its commands

A text for the user and exit status 3 say that the app asks for what cannot be had. The locked files are read here, and
not by Poetry or uv, because neither is in the build image: it takes milliseconds, needs no download of either, and pip
checks the hashes.
"""

import hashlib
import os
import platform
import re
import sys
import tomllib
from pathlib import Path

from pip._vendor.packaging.markers import Marker, default_environment
from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
from pip._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import InvalidVersion, Version

LAYOUT = "1"  # of the layer; another number makes every app install anew
PYTHON = platform.python_version()
MINOR = ".".join(PYTHON.split(".")[:2])
PYPI = "https://pypi.org/simple"
ENVIRONMENT = default_environment()


class Fault(Exception):
    """The app cannot be built as it is; the text is for the user."""


def read_text(path):
    """A text file's content; editors on Windows begin them with a byte order mark, also of UTF-16."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return data.decode(encoding, errors="replace")


def read_toml(path):
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise Fault(f"{path.name}: {error}") from None


def applies(marker, extras=()):
    """Whether a dependency with this marker is one, for any of the extras that were asked for."""
    if not marker:
        return True
    parsed = Marker(marker)
    return any(parsed.evaluate({**ENVIRONMENT, "extra": extra}) for extra in extras or [""])


class Plan:
    """What pip is to install."""

    def __init__(self):
        self.options = []  # of pip, such as further indexes
        self.hashed, self.direct, self.loose, self.notes = [], [], [], []
        self.project = False

    def option(self, text):
        if text not in self.options:
            self.options.append(text)

    def pin(self, name, version, hashes):
        """Adds a locked package. Without hashes pip would not check what it gets."""
        if hashes:
            self.hashed.append(f"{name}=={version} " + " ".join(f"--hash={h}" for h in sorted(set(hashes))))
        else:
            self.direct.append(f"{name}=={version}")

    def write(self, out):
        for name in ("hashed", "direct", "loose"):
            lines = sorted(getattr(self, name)) if name != "loose" else self.loose
            if lines:
                (out / f"{name}.txt").write_text("\n".join(self.options + lines) + "\n")
        (out / "notes").write_text("".join(note + "\n" for note in self.notes))
        if self.project:
            (out / "project").touch()


# The version of Python.


def want_python(app, pyproject):
    """Checks the app's wishes against the interpreter, which is Debian's, and returns lines to tell."""
    notes = []
    for file, prefix in ((".python-version", ""), ("runtime.txt", "python-")):
        if (app / file).is_file():
            lines = [line.split("#")[0].strip() for line in read_text(app / file).splitlines()]
            wish = next(filter(None, lines), "").removeprefix(prefix)
            if not re.fullmatch(r"\d+(\.\d+){0,2}", wish):
                raise Fault(f"{file} says {wish!r}; it has to be a version of Python, such as {prefix}{MINOR}")
            if not f"{MINOR}.".startswith(f"{'.'.join(wish.split('.')[:2])}."):
                raise no_such_python(file, wish, f"write {prefix}{MINOR} in {file}")
            if wish.count(".") == 2 and wish != PYTHON:
                notes.append(f"{file} says {wish}: Python {PYTHON} is used, with Debian's fixes up to today")
            break
    wishes = {
        "requires-python": pyproject.get("project", {}).get("requires-python"),
        "tool.poetry.dependencies": pyproject.get("tool", {}).get("poetry", {}).get("dependencies", {}).get("python"),
    }
    for field, wish in wishes.items():
        if wish and not satisfies(PYTHON, wish):
            raise no_such_python(f"pyproject.toml ({field})", wish, "let pyproject.toml allow it, and lock again")
    return notes


def no_such_python(file, wish, how):
    return Fault(
        f"{file} asks for Python {wish}; this builder has Python {PYTHON}, of Debian 12.\n"
        f"Either {how}, or use a builder that has {wish}: deis config:set DEIS_BUILDER=IMAGE"
    )


def specifiers(constraint):
    """A version constraint of PEP 440 or of Poetry (^1.2, ~1.2, 1.*, a || b) as alternatives of PEP 440."""
    split = re.compile(r",\s*|\s+(?![\d.])")
    return [
        SpecifierSet(",".join(pep440(part) for part in split.split(alternative.strip()) if part))
        for alternative in re.split(r"\|\|?", constraint)
    ]


def pep440(part):
    part = re.sub(r"\s+", "", part)
    operator, version = re.fullmatch(r"([\^~<>=!]*)(.*)", part).groups()
    if version in ("", "*"):
        return ""
    numbers = [int(n) for n in re.match(r"\d+(?:\.\d+)*", version).group().split(".")]
    if operator == "^":
        fixed = next((i for i, n in enumerate(numbers) if n), len(numbers) - 1)
    elif operator == "~":
        fixed = min(1, len(numbers) - 1)
    else:
        return f"{operator or '=='}{version}"
    upper = [*numbers[:fixed], numbers[fixed] + 1]
    return f">={version},<{'.'.join(map(str, upper))}"


def satisfies(version, constraint):
    try:
        return any(s.contains(version, prereleases=True) for s in specifiers(constraint))
    except (InvalidSpecifier, InvalidVersion, AttributeError):
        raise Fault(f"{constraint!r} is no version constraint that can be read here") from None


# uv.lock: https://docs.astral.sh/uv/concepts/projects/layout/#the-lockfile


def plan_uv(app, pyproject, plan):
    lock = read_toml(app / "uv.lock")
    packages = {}
    for package in lock.get("package", []):
        packages.setdefault(package["name"], []).append(package)
    root = next((p for p in lock.get("package", []) if root_of(p["source"])), None)
    if root is None:
        raise Fault("uv.lock has no package for the project itself: run 'uv lock' and commit uv.lock")
    locked = {canonicalize_name(d["name"]) for d in root.get("dependencies", [])}
    for line in pyproject.get("project", {}).get("dependencies", []):
        if canonicalize_name(requirement(line).name) not in locked:
            raise Fault(f"uv.lock does not have {line!r} of pyproject.toml: run 'uv lock' and commit uv.lock")

    seen, todo = {}, [(root, "")]
    while todo:
        package, extra = todo.pop()
        key = package["name"], package.get("version")
        if extra in seen.setdefault(key, set()):
            continue
        seen[key].add(extra)
        if package is not root and len(seen[key]) == 1:
            add_uv(app, package, plan)
        for dependency in uv_edges(package, extra):
            if applies(dependency.get("marker")):
                target = choose_uv(packages.get(dependency["name"], []), dependency)
                todo += [(target, e) for e in ["", *dependency.get("extra", [])]]
    plan.project = "editable" in root["source"] and has_commands(pyproject)


def root_of(source):
    return source.get("virtual") == "." or source.get("editable") == "."


def uv_edges(package, extra):
    return package.get("optional-dependencies", {}).get(extra, []) if extra else package.get("dependencies", [])


def choose_uv(candidates, dependency):
    """The package that an edge of the lock file means: there are several when the lock has forks."""
    for package in candidates:
        if all(dependency.get(k) in (None, package.get(k)) for k in ("version", "source")):
            return package
    raise Fault(f"uv.lock has no package {dependency['name']}: run 'uv lock' and commit uv.lock")


def add_uv(app, package, plan):
    name, source = package["name"], package["source"]
    files = package.get("wheels", []) + [package[k] for k in ("sdist",) if k in package]
    hashes = [f["hash"] for f in files if "hash" in f]
    if "registry" in source:
        registry = source["registry"]
        if not registry.startswith(("http://", "https://")):
            plan.option(f"--find-links {within(app, registry)}")
        elif registry != PYPI:
            plan.option(f"--extra-index-url {registry}")
        plan.pin(name, package["version"], hashes)
    elif "git" in source:
        url, _, commit = source["git"].partition("#")
        url, _, query = url.partition("?")
        folder = re.search(r"subdirectory=([^&]+)", query)
        plan.direct.append(f"{name} @ git+{url}@{commit}" + (f"#subdirectory={folder[1]}" if folder else ""))
    elif "url" in source:
        digest = f"#{hashes[0].replace(':', '=', 1)}" if hashes else ""
        plan.direct.append(f"{name} @ {source['url']}{digest}")
    elif "path" in source or "directory" in source:
        plan.direct.append(str(within(app, source.get("path") or source["directory"])))
    elif "editable" in source:
        plan.direct.append(f"--editable {within(app, source['editable'])}")


# poetry.lock: https://python-poetry.org/docs/basic-usage/#installing-with-poetrylock


def plan_poetry(app, pyproject, plan):
    lock = read_toml(app / "poetry.lock")
    packages, old_files = {}, lock.get("metadata", {}).get("files", {})
    for package in lock.get("package", []):
        packages.setdefault(canonicalize_name(package["name"]), []).append(package)

    seen, todo = set(), [(d, ("",)) for d in poetry_main(pyproject)]
    while todo:
        (name, spec), extras_of_parent = todo.pop()
        spec = spec if isinstance(spec, dict) else {"version": spec}
        if not wanted(spec, extras_of_parent):
            continue
        package = choose_poetry(packages.get(canonicalize_name(name), []), name, spec.get("version", "*"))
        extras = ("", *sorted(canonicalize_name(e) for e in spec.get("extras", [])))
        key = name, package["version"]
        if (*key, extras) in seen:
            continue
        if not any(entry[:2] == key for entry in seen):
            add_poetry(app, package, old_files, plan)
        seen.add((*key, extras))
        todo += [(d, extras) for d in edges(package.get("dependencies", {}))]
    plan.project = has_commands(pyproject) and pyproject.get("tool", {}).get("poetry", {}).get("package-mode", True)


def edges(table):
    """The dependencies of a table in Poetry's form: a name has one specification or a list of alternatives."""
    for name, specs in table.items():
        for spec in specs if isinstance(specs, list) else [specs]:
            yield name, spec


def poetry_main(pyproject):
    """The dependencies of the app itself, without those of groups and extras."""
    table = pyproject.get("tool", {}).get("poetry", {}).get("dependencies", {})
    yield from (edge for edge in edges(table) if edge[0] != "python")
    more = {canonicalize_name(name) for name in table}
    for line in pyproject.get("project", {}).get("dependencies", []):
        r = requirement(line)
        if canonicalize_name(r.name) not in more:
            marker = str(r.marker) if r.marker else ""
            yield r.name, {"version": str(r.specifier) or "*", "extras": list(r.extras), "markers": marker}


def wanted(spec, extras_of_parent):
    if spec.get("optional") and "extra" not in spec.get("markers", ""):
        return False
    return satisfies(PYTHON, spec.get("python", "*")) and applies(spec.get("markers"), extras_of_parent)


def choose_poetry(candidates, name, constraint):
    for package in candidates:
        if len(candidates) == 1 or satisfies(package["version"], constraint):
            return package
    raise Fault(f"poetry.lock has no package {name} {constraint}: run 'poetry lock' and commit poetry.lock")


def add_poetry(app, package, old_files, plan):
    name, source = package["name"], package.get("source", {})
    kind = source.get("type")
    if kind == "git":
        folder = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
        plan.direct.append(f"{name} @ git+{source['url']}@{source['resolved_reference']}{folder}")
    elif kind == "url":
        plan.direct.append(f"{name} @ {source['url']}")
    elif kind in ("file", "directory"):
        editable = "--editable " if package.get("develop") else ""
        plan.direct.append(f"{editable}{within(app, source['url'])}")
    else:
        if kind == "legacy":
            plan.option(f"--extra-index-url {source['url']}")
        plan.pin(name, package["version"], [f["hash"] for f in package.get("files", old_files.get(name, []))])


# requirements.txt and pyproject.toml


def plan_requirements(app, _pyproject, plan):
    plan.loose.append("-r requirements.txt")


def plan_pyproject(_app, pyproject, plan):
    if "project" not in pyproject:
        raise Fault("poetry.lock is missing: run 'poetry lock' and commit it")
    plan.loose += pyproject["project"].get("dependencies", [])
    plan.notes.append(" !     There is no lock file: the packages' versions may differ from build to build.")
    plan.project = has_commands(pyproject)


def has_commands(pyproject):
    project, poetry = pyproject.get("project", {}), pyproject.get("tool", {}).get("poetry", {})
    return bool(project.get("scripts") or project.get("entry-points") or poetry.get("scripts") or poetry.get("plugins"))


def requirement(line):
    try:
        return Requirement(line)
    except InvalidRequirement as error:
        raise Fault(f"pyproject.toml: {line!r}: {error}") from None


def within(app, path):
    """A path of the app, which the build must not leave."""
    real = (app / path).resolve()
    if not real.is_relative_to(app):
        raise Fault(f"{path} is outside the app")
    return real


# The key: unchanged means that the same packages would be installed.

REFERENCE = re.compile(r"^\s*(-r|--requirement|-c|--constraint|-f|--find-links|-e|--editable)(?:\s+|=)\s*(\S+)")


def inputs(app, text, folder, seen):
    """Yields the app's files that lines of requirements refer to, directly or through other files."""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        match = REFERENCE.match(line)
        option, target = match.groups() if match else ("", line.split(" ;")[0].split(" --")[0].strip())
        target = target.split(" @ ")[-1].removeprefix("file://").split("[")[0]
        # pip takes files of requirements from the file that names them, all else from the app's directory.
        nested = option in ("-r", "--requirement", "-c", "--constraint")
        path = (folder if nested else app) / target
        if not target or not (option or "/" in target or target == ".") or not os.path.exists(path) or path in seen:  # false for what is too long for a path
            continue
        seen.add(path)
        if path.is_file():
            yield path
            if nested:
                yield from inputs(app, read_text(path), path.parent, seen)
        elif option in ("-e", "--editable"):
            yield from (path / f for f in ("pyproject.toml", "setup.py", "setup.cfg") if (path / f).is_file())
        else:
            yield from sorted(f for f in path.rglob("*") if f.is_file() and ".git" not in f.parts)


def key_of(app, out, source, plan):
    digest = hashlib.sha256(f"{LAYOUT} {MINOR} {platform.machine()}".encode())
    files = [out / f"{name}.txt" for name in ("hashed", "direct", "loose")]
    if plan.project:
        files.append(app / "pyproject.toml")
    seen = set()
    for file in [f for f in files if f.is_file()]:
        text = file.read_text()
        for path in [file, *inputs(app, text, app, seen)]:
            digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


PLANS = {
    "uv.lock": plan_uv,
    "poetry.lock": plan_poetry,
    "requirements.txt": plan_requirements,
    "pyproject.toml": plan_pyproject,
}


def main(app, out):
    pyproject = read_toml(app / "pyproject.toml") if (app / "pyproject.toml").is_file() else {}
    present = [name for name in PLANS if (app / name).is_file()]
    source = present[0]
    plan = Plan()
    plan.notes += want_python(app, pyproject)
    PLANS[source](app, pyproject, plan)
    ignored = [name for name in present[1:] if name != "pyproject.toml"]
    if ignored:
        plan.notes.append(f"{' and '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} not used: {source} is there")
    plan.write(out)
    (out / "source").write_text(source)
    (out / "key").write_text(key_of(app, out, source, plan))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
    except Fault as fault:
        print(f" !     {fault}".replace("\n", "\n !     "), file=sys.stderr)
        sys.exit(3)
    except (KeyError, TypeError) as error:
        print(f" !     The lock file is not in a form that is known here: {error!r}", file=sys.stderr)
        sys.exit(3)
