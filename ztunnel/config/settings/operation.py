"""How the agent starts and ends, what it writes, and where it can be asked."""

from ztunnel.config import values
from ztunnel.config.setting import Setting

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "AMBIENT_TAKEOVER",
        "takeover",
        values.flag,
        "false",
        "start beside a running agent and take over its pods",
    ),
    Setting(
        "TERMINATION_GRACE_PERIOD_SECONDS",
        "grace_period",
        values.optional_seconds,
        "",
        "as in the pod; the drain deadline is derived from it",
    ),
    Setting(
        "CONNECTION_TERMINATION_DEADLINE",
        "termination_deadline",
        values.optional_seconds,
        "",
        "how long connections may go on after SIGTERM; empty: from the grace period, else 5s",
    ),
    Setting(
        "AMBIENT_HANDOVER_DEADLINE",
        "handover_deadline",
        values.optional_seconds,
        "",
        "the same where a successor has taken the pods over; empty: no difference",
    ),
    Setting("LOG_FORMAT", "log_format", values.log_format, "plain", "plain or json"),
    Setting("LOG_LEVEL", "log_level", values.text, "info", "level, scope=level, ...", also=("RUST_LOG",)),
    Setting("ADMIN_PORT", "admin_port", values.port, "15000", "admin pages (loopback only)"),
    Setting("STATS_PORT", "stats_port", values.port, "15020", "metrics"),
    Setting("READINESS_PORT", "readiness_port", values.port, "15021", "readiness"),
)
