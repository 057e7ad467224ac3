"""The table of settings as `ztunnel --help` shows it."""

from ztunnel.config.setting import Setting
from ztunnel.config.settings import SETTINGS


def describe() -> str:
    """The table for `ztunnel --help`."""
    width = max(len(row.env) for row in SETTINGS)
    lines = [f"  {row.env:<{width}}  {row.doc}{_shown_default(row)}" for row in SETTINGS]
    lines.append(f"  {'XDS_HEADER_x, CA_HEADER_x':<{width}}  more request headers")
    lines.append(f"  {'ISTIO_META_x, ISTIO_METAJSON_x':<{width}}  metadata of the xDS node")
    return "\n".join(lines)


def _shown_default(row: Setting) -> str:
    return f" [{row.default}]" if row.default else ""
