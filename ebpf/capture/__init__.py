"""Capture on one node; the door is `Capture`.

`facade` is what the agent calls, `pod` the values that go in and come out. Behind it: `state` is what the rooms share,
`enrolment` and `withdrawal` put a pod in and out, `namespace` is what is done inside the pod on the way, `agents` who
else is at work on this node, `takeover` who of two agents has a pod.
"""

from ebpf.capture.facade import Capture
from ebpf.capture.pod import EnrolledPod, PodNetwork

__all__ = ["Capture", "EnrolledPod", "PodNetwork"]
