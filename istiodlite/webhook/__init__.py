"""The validating admission webhook: what cannot be used is refused when it is applied, what will not do what it says
is warned of. Istio's port (15017) and path (/validate)."""

from istiodlite.webhook.registration import Registration
from istiodlite.webhook.review import BadReview, review
from istiodlite.webhook.server import WebhookServer

__all__ = ["BadReview", "Registration", "WebhookServer", "review"]
