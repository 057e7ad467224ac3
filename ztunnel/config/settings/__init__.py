"""The table: every setting that is read from one variable, subject by subject."""

from ztunnel.config.setting import Setting
from ztunnel.config.settings import control, node, operation, pods, traffic

SETTINGS: tuple[Setting, ...] = (
    *node.SETTINGS,
    *control.SETTINGS,
    *pods.SETTINGS,
    *traffic.SETTINGS,
    *operation.SETTINGS,
)
