"""`reqdedup audit`: what a table that a team already has would save, and what to set."""

from reqdedup.storage.audit.audit import AuditProgress, audit_table
from reqdedup.storage.audit.render import render
from reqdedup.storage.audit.report import AuditReport

__all__ = ["AuditProgress", "AuditReport", "audit_table", "render"]
