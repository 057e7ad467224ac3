"""Kubernetes manifests in, typed objects and one-line errors out.

In: text, a file or a folder of YAML/JSON. Out: `Loaded` objects (`istiodlite.objects`) and
`ManifestError`s that name file, document, object, field and what to do. Strict: unknown kinds, unknown
policy fields, aliases, duplicate keys and oversized files are refused, one object at a time.
"""

from istiodlite.manifests.errors import FieldError, ManifestError
from istiodlite.manifests.folder import (
    DEFAULT_SIZE_LIMIT,
    Loaded,
    load_file,
    load_folder,
    load_text,
    manifest_files,
    without_duplicates,
)

__all__ = [
    "DEFAULT_SIZE_LIMIT",
    "FieldError",
    "Loaded",
    "ManifestError",
    "load_file",
    "load_folder",
    "load_text",
    "manifest_files",
    "without_duplicates",
]
