"""The HTTP service, with a web page: verify, enroll, identify and forget (extra ``serve``)."""

from margrave.serving.app import make_app
from margrave.serving.audit import AuditTrail, verify_trail
from margrave.serving.keys import SCOPES, Key, KeyFile
from margrave.serving.running import check_listening, serve
from margrave.serving.settings import ServiceSettings

__all__ = [
    "SCOPES",
    "AuditTrail",
    "Key",
    "KeyFile",
    "ServiceSettings",
    "check_listening",
    "make_app",
    "serve",
    "verify_trail",
]
