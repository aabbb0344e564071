#!/usr/bin/env python3
"""Prints the licence texts of every crate that the program is made of, each text once, with the crates that have it.

Which licences are allowed is decided by tests/licences.rs.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = re.compile(r"(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)", re.IGNORECASE)


def packages():
    """Those that are linked: what normal dependencies reach, without build scripts and tests."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    reached, open_ends = set(), [metadata["resolve"]["root"]]
    while open_ends:
        node = open_ends.pop()
        if node not in reached:
            reached.add(node)
            open_ends += [edge["pkg"] for edge in nodes[node]["deps"] if any(kind["kind"] is None for kind in edge["dep_kinds"])]
    return [package for package in metadata["packages"] if package["id"] in reached and package["source"]]


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and TEXT.search(path.name) and path.suffix not in (".rs", ".toml"))
    return [path.read_text("utf-8", "replace").strip() for path in files]


def main():
    by_text, without = {}, []
    for package in sorted(packages(), key=lambda package: (package["name"], package["version"])):
        name = f"{package['name']} {package['version']} ({package['license']})"
        found = texts(package)
        for text in found:
            by_text.setdefault(text, []).append(name)
        if not found:
            without.append(f"{name}: {package.get('repository') or package['name']}")
    print("The program contains these crates, under these licences.\n")
    for text, names in by_text.items():
        print("=" * 100, *names, "-" * 100, text, "", sep="\n")
    if without:
        print("=" * 100, "Crates whose packages have no text; their manifests name these licences:", *without, sep="\n")
    print(f"licences: {len(by_text)} texts; {len(without)} crates have none in their package", file=sys.stderr)


if __name__ == "__main__":
    main()
