"""`ambientctl analyze`: what is wrong with manifests, before they are applied."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemonset.ctl.errors import CommandFailed
from istiodlite.analyze import BadMetrics, Finding, Input, PlainFlow, Severity, analyze, plain_flows
from istiodlite.manifests import ManifestError, load_folder


def run(options: argparse.Namespace) -> int:
    """Prints one line for each finding; exit status 1 if one of them is an error."""
    try:
        loaded, errors = load_folder(Path(options.path))
    except OSError as error:
        raise CommandFailed(f"{options.path}: {error.strerror}; name a file or a folder") from None
    found = [_of_manifest(error) for error in errors]
    found += analyze((Input(one.object, one.body) for one in loaded), flows=_flows(options.metrics))
    files = {one.key: one.file for one in loaded}
    if options.json:
        print(json.dumps([_value(one, files) for one in found], indent=2))
    else:
        for one in found:
            print(one)
        if not found:
            print(f"{len(loaded)} objects, nothing to say")
    return 1 if any(one.severity is Severity.ERROR for one in found) else 0


def _flows(files: Sequence[str]) -> list[PlainFlow]:
    try:
        return plain_flows([Path(file).read_text(errors="replace") for file in files])
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}; save the page with curl first") from None
    except BadMetrics as error:
        raise CommandFailed(f"--metrics: {error}; save what NODE:15020/metrics answers") from None


def _of_manifest(error: ManifestError) -> Finding:
    where = f"{error.file}#{error.document}" if error.document else error.file
    if error.field == "kind":
        # Folders of manifests hold other things too; this mesh has no use for them.
        return Finding(Severity.INFO, "manifest", None, where, f"kind is not looked at: {error.message}")
    return Finding(Severity.ERROR, "manifest", error.key, error.field or where, error.message)


def _value(one: Finding, files: dict[Any, str]) -> dict[str, str]:
    key = one.object
    return {
        "severity": one.severity.value,
        "code": one.code,
        "kind": key.kind if key else "",
        "namespace": key.namespace if key else "",
        "name": key.name if key else "",
        "file": files.get(key, ""),
        "field": one.field,
        "message": one.message,
    }
