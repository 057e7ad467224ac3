"""Settings of the node agent, read from the environment once at start: `load` gives a `Config` or a `ConfigError`.

The table of them stands in `settings`, a part for each subject; names are Istio's where Istio has the setting.
"""

from ztunnel.config.help import describe
from ztunnel.config.load import ConfigError, load
from ztunnel.config.model import Config
from ztunnel.config.setting import Setting
from ztunnel.config.settings import SETTINGS
from ztunnel.config.values import Endpoint

__all__ = ["SETTINGS", "Config", "ConfigError", "Endpoint", "Setting", "describe", "load"]
