"""What a pod's template says about its enrolment. Pure."""

from collections.abc import Mapping

from daemonset.local.template import PodTemplate
from ztunnel.enrol import settings
from ztunnel.enrol.membership import asked_for
from ztunnel.enrol.settings import CaptureSettings


def wanted(template: PodTemplate, namespace_labels: Mapping[str, str]) -> bool:
    """Whether the labels ask for enrolment."""
    return asked_for(
        template.labels, template.annotations, namespace_labels, host_network=template.host_network
    )


def capture(template: PodTemplate) -> CaptureSettings:
    """What the pod's annotations ask of its capture; what cannot be read is left out (and noted by `ambientctl up`)."""
    return settings.read(template.annotations)[0]
